"""The policies that a run's learner publishes, as its actors would fetch them."""

from __future__ import annotations

import hashlib

from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.weights_channel import WeightsChannel
from tests.system.launching import Launched, wait_until


def first_policy_after(run: Launched, version: int) -> PolicyWeights:
    """The first policy of a newer version that is published; asks so often that the learner cannot pass one by."""
    client = connect(RedisEndpoint.load(run.run_dir / "redis" / "connection.json"), reply_timeout_s=5.0)
    channel = WeightsChannel(client, Keys(load_run_config(run.run_dir / "config.toml").run_id))
    found: PolicyWeights | None = None

    def published() -> bool:
        nonlocal found
        assert run.process.poll() is None, f"launcher ended:\n{run.output}\n{run.logs()}"
        found = channel.fetch()
        return found is not None and found.version > version

    try:
        wait_until(published, f"a policy behind version {version}", pause_s=0.005, told=run.logs)
    finally:
        client.close()
    assert found is not None
    return found


def layer_hashes(policy: PolicyWeights) -> set[str]:
    """As a checkpoint's manifest has them of the layers that it saved."""
    return {hashlib.sha256(array.tobytes()).hexdigest() for array in (*policy.weights, *policy.biases)}
