#!/bin/sh
# What runs on the Ray cluster: a new run, or, when the volume holds it already, the same one from where it stopped.
# The password of Redis is in the file that AWAC_REDIS_PASSWORD_FILE names, its address in AWAC_REDIS_URL.
set -eu
run=/var/lib/awac/run/pen-0
if test -e "$run/config.toml"; then
  exec launcher up --ray-address auto --run-dir "$run" --restart-behavior resume
fi
exec launcher up --ray-address auto --run-dir "$run" --run-id pen-0 --env pen --actors 32 --launcher.actors-per-pool 4 \
  --num-env-steps 200000
