"""Programs of one run must agree on its spec and on the wire version; those that do not are told what differs."""

from __future__ import annotations

import json
from dataclasses import asdict

from replay_service.errors import SpecMismatch
from replay_service.experience import WIRE_VERSION, ExperienceSpec
from replay_service.keys import Keys
from replay_service.redis_client import RedisClient

SPEC_FIELD = "spec"
"""Field of the run's hash with `spec_text`; runs of earlier versions have the fingerprint alone."""

_SHOWN_CHARACTERS = 60


def spec_text(spec: ExperienceSpec) -> str:
    """A spec with the wire version, readable: what a fingerprint stands for."""
    return json.dumps({**asdict(spec), "wire_version": WIRE_VERSION}, sort_keys=True)


def mismatch(who: str, run_id: str, own: ExperienceSpec, *, fingerprint: str, text: str) -> SpecMismatch:
    """The error of a program whose spec is not the run's.

    Args:
        who: the program, as in 'actor 3'.
        run_id: name of the run.
        own: spec of the program.
        fingerprint: of the run; '' when there is no such run.
        text: `spec_text` of the run; '' when it has none.
    """
    if not fingerprint:
        return SpecMismatch(f"{who}: Redis holds no such run as {run_id!r}: check run_id and the address of Redis")
    differences = _differences(own, text)
    named = "; ".join(differences) if differences else "what differs is not on record"
    return SpecMismatch(
        f"{who} does not fit run {run_id!r}: {named} (spec {own.fingerprint}, the run's {fingerprint}). Start all "
        "programs of a run from one version of this project and one config.toml, or choose another run directory"
    )


def check_spec(client: RedisClient, keys: Keys, own: ExperienceSpec, *, who: str) -> None:
    """Compare a program's spec with that of the run in Redis, when the run is there already.

    Raises:
        SpecMismatch: they differ.
    """
    fingerprint = (client.hget(keys.run, "spec_fingerprint") or b"").decode(errors="replace")
    if fingerprint and fingerprint != own.fingerprint:
        text = (client.hget(keys.run, SPEC_FIELD) or b"").decode(errors="replace")
        raise mismatch(who, keys.run_id, own, fingerprint=fingerprint, text=text)


def _differences(own: ExperienceSpec, text: str) -> list[str]:
    try:
        theirs = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(theirs, dict):
        return []
    mine = json.loads(spec_text(own))
    return [
        f"{name.replace('_', ' ')} {mine[name]!r} here, {str(theirs.get(name))[:_SHOWN_CHARACTERS]!r} there"
        if isinstance(mine[name], str)
        else f"{name.replace('_', ' ')} {mine[name]} here, {str(theirs.get(name))[:_SHOWN_CHARACTERS]} there"
        for name in mine
        if theirs.get(name) != mine[name]
    ]
