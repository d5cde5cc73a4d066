"""The policies that a run's learner publishes, as its actors would fetch them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from replay_service import wire
from replay_service.config_file import load_run_config
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from tests.system.launching import Launched, wait_until


def _policies_written(run: Launched) -> Iterator[PolicyWeights]:
    """All that the run's Redis has in its append-only file, in the order of their publication."""
    key = Keys(load_run_config(run.run_dir / "config.toml").run_id).weights.encode()
    put = re.compile(rb"\$3\r\nSET\r\n\$%d\r\n%s\r\n\$(\d+)\r\n" % (len(key), re.escape(key)))
    for path in sorted((run.run_dir / "redis" / "appendonlydir").glob("*.incr.aof")):
        content = path.read_bytes()
        for found in put.finditer(content):
            message = content[found.end() : found.end() + int(found[1])]
            if len(message) == int(found[1]):  # else it is still being written
                yield wire.decode_policy_weights(message)


def first_policy_after(run: Launched, version: int) -> PolicyWeights:
    """The first policy of a newer version that is published; read where those that follow do not take its place."""
    first: PolicyWeights | None = None

    def published() -> bool:
        nonlocal first
        assert run.process.poll() is None, f"launcher ended:\n{run.output}\n{run.logs()}"
        first = next((policy for policy in _policies_written(run) if policy.version > version), None)
        return first is not None

    wait_until(published, f"a policy behind version {version}", told=run.logs)
    assert first is not None
    return first


def layer_hashes(policy: PolicyWeights) -> set[str]:
    """As a checkpoint's manifest has them of the layers that it saved."""
    return {hashlib.sha256(array.tobytes()).hexdigest() for array in (*policy.weights, *policy.biases)}
