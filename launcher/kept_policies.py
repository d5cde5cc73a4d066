"""The policy versions that a run still has in its Redis, for those who play, film or export one."""

from __future__ import annotations

from replay_service import wire
from replay_service.errors import ConfigError, WireError
from replay_service.keys import Keys
from replay_service.policy_weights import PolicyWeights
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, Reports
from replay_service.weights_channel import WeightsChannel


def kept_policies(client: RedisClient, keys: Keys) -> dict[int, PolicyWeights]:
    """The policy versions that a run still has, by number: the newest evaluated ones, and the newest of all."""
    found: dict[int, PolicyWeights] = {}
    for _raw_id, fields in client.xrange(keys.evaluation_requests):
        try:
            policy = wire.decode_policy_weights(fields.get(b"m", b""))
        except WireError:
            continue  # damaged; the evaluator has skipped it too
        found[policy.version] = policy
    try:
        newest = WeightsChannel(client, keys).fetch()
    except WireError:
        newest = None
    if newest is not None:
        found.setdefault(newest.version, newest)
    return found


def pick_policy(client: RedisClient, keys: Keys, version: int | None) -> tuple[PolicyWeights, Evaluation | None]:
    """A policy version, and its evaluation when there is one.

    Args:
        client: the run's Redis.
        keys: the run's keys.
        version: None takes the newest version that has been evaluated, else the newest of all.

    Raises:
        ConfigError: the run has not got that version (any more), or none at all.
    """
    policies = kept_policies(client, keys)
    if not policies:
        raise ConfigError("this run has no policy yet: wait until it has published one")
    evaluations = {evaluation.policy_version: evaluation for _cursor, evaluation in Reports(client, keys).evaluations()}
    if version is None:
        version = max(set(policies) & set(evaluations), default=max(policies))
    if version not in policies:
        raise ConfigError(
            f"--version: this run keeps the versions {', '.join(map(str, sorted(policies)))} (the newest that were "
            f"evaluated, and the newest of all), got {version}"
        )
    return policies[version], evaluations.get(version)
