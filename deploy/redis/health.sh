#!/bin/sh
# Healthy once Redis has loaded its data: until then it answers LOADING to a user who has logged in.
# The password goes through the environment of redis-cli, not through its arguments.
set -eu
REDISCLI_AUTH="$(cat "$AWAC_HEALTH_PASSWORD_FILE")"
export REDISCLI_AUTH
# shellcheck disable=SC2086 # the options are several words, or none
answer="$(redis-cli --no-auth-warning --user awac-health ${AWAC_HEALTH_OPTIONS:-} ping)"
test "$answer" = PONG
