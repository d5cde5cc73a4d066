"""Checkpoints: written beside, then renamed; read back only when every hash fits the manifest.

A checkpoint is a folder `step-<grad steps>` with two files: `state.safetensors` (every tensor: policy, critics,
targets, both optimizers, the generator) and `manifest.json` (progress, the configuration that shaped the networks, the
SHA-256 of every tensor, and its own). Neither format can carry code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from learner.config import SHAPING_SETTINGS, LearnerConfig
from learner.divergence import refuse_divergence
from learner.update import LearnerState, named_tensors
from replay_service.disk_space import is_full
from replay_service.errors import CheckpointError
from replay_service.experience import ExperienceSpec
from replay_service.run_state import Phase

_FORMAT = 1
_STATE_FILE = "state.safetensors"
_MANIFEST_FILE = "manifest.json"
_PREFIX = "step-"
_PROOF_FILE = "restored.json"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far the learner has come; changes with every step and is stored beside the tensors."""

    phase: Phase = Phase.SEEDING
    offline_grad_steps: int = 0
    online_grad_steps: int = 0
    policy_version: int = 0
    env_steps: int = 0
    next_evaluation_env_steps: int = 0
    stream_position: int = 0
    """Steps of the online stream up to the end of the last message taken in; unlike an entry's id it outlives Redis."""

    @property
    def grad_steps(self) -> int:
        """All gradient steps."""
        return self.offline_grad_steps + self.online_grad_steps


@dataclass(frozen=True, slots=True)
class RestoreProof:
    """What was found when a loaded state was compared with its checkpoint's manifest."""

    checkpoint: str
    grad_steps: int
    tensors: dict[str, int]
    """Part of the state -> tensors whose hash, computed again from the loaded state, is the manifest's."""
    generator: bool
    """Whether random numbers go on where they stopped; False on another kind of device."""
    stream_position: int
    """Of the checkpoint."""
    stream_position_found: int = 0
    """Of the mirror that was rebuilt from Redis, before the first update."""

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {count}" for part, count in self.tensors.items())
        return (
            f"{self.checkpoint}: the loaded state has the hashes of the manifest ({parts}), "
            f"{'the generator goes on' if self.generator else 'the generator starts from a new seed'}, "
            f"{self.grad_steps} gradient steps; stream position {self.stream_position_found}, "
            f"in the checkpoint {self.stream_position}"
        )


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, spec: ExperienceSpec, config: LearnerConfig, run_id: str = "") -> None:
        """Name the folder and what fits it.

        Args:
            folder: is made by `prepare`, or by the first checkpoint.
            spec: of the run's environment.
            config: of the learner.
            run_id: of the run; checkpoints that name another are refused. '' takes any.
        """
        self._folder = folder
        self._run_id = run_id
        self._shape: dict[str, Any] = json.loads(
            json.dumps({"spec": asdict(spec), **{name: getattr(config, name) for name in SHAPING_SETTINGS}})
        )
        self._keep = config.keep_checkpoints
        self.proof: RestoreProof | None = None
        """Of the checkpoint that `restore` has loaded."""

    def prepare(self) -> None:
        """Make the folder and write into it, before work is done that it could not hold.

        Raises:
            CheckpointError: it cannot be made or written. A full disk is no error: every save waits for room.
        """
        probe = self._folder / ".writable"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            if is_full(error):
                return
            raise CheckpointError(
                f"checkpoints: expected a folder that this user can make and write at {self._folder} on "
                f"{socket.gethostname()}, got {type(error).__name__} ({error.strerror}): mend that, or name another one"
            ) from error

    def save(self, state: LearnerState, progress: Progress) -> Path:
        """Write a checkpoint; an interruption at any point leaves the one before it as the newest.

        Returns:
            The checkpoint's folder.

        Raises:
            LearningDiverged: a tensor is not finite; what is on the disk stays, to go on from.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(state).items()}
        not_finite = (name for name, tensor in tensors.items() if not tensor.isfinite().all())
        refuse_divergence(not_finite, progress.grad_steps)
        target = self._folder / f"{_PREFIX}{progress.grad_steps:012d}"
        partial = self._folder / f".{target.name}.partial"
        for left in self._folder.glob(f".{_PREFIX}*.partial"):  # by a save that was killed, at this step or another
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest = {
            "format": _FORMAT,
            "run_id": self._run_id,
            "shape": self._shape,
            "progress": asdict(progress),
            "device_type": state.generator.device.type,
            "sha256": {name: _sha256(tensor) for name, tensor in tensors.items()},
        }
        manifest["manifest_sha256"] = _manifest_sha256(manifest)
        _write_durably(partial / _STATE_FILE, safetensors.torch.save(tensors))
        _write_durably(partial / _MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        if target.exists():
            # The same step again, so the same tensors: first they, then the manifest, and each moment is sound.
            for name in (_STATE_FILE, _MANIFEST_FILE):
                os.replace(partial / name, target / name)
            partial.rmdir()
            _sync_folder(target)
        else:
            os.replace(partial, target)
        _sync_folder(self._folder)
        self._remove_old(target)
        return target

    def restore(self, state: LearnerState) -> Progress | None:
        """Load the newest sound checkpoint into a freshly made state; a damaged one is passed over with a warning.

        Returns:
            The progress, or None when there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints but none is sound, or the newest cannot be read, or was made by
                another configuration or another run.
        """
        candidates = self._newest_first()
        problems: list[str] = []
        for folder in candidates:
            try:
                progress = self._load(folder, state)
            except _Damaged as error:
                problems.append(f"{folder.name}: {error}")
                _log.warning("checkpoint %s is damaged and passed over: %s", folder.name, error)
            else:
                _log.info("restored %s: %s", folder, progress)
                return progress
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self._folder} is sound ({'; '.join(problems)}): "
                "start over with --restart-behavior restart, which keeps the old run aside"
            )
        return None

    def _load(self, folder: Path, state: LearnerState) -> Progress:
        try:
            manifest = json.loads((folder / _MANIFEST_FILE).read_text(encoding="utf-8"))
            if manifest["manifest_sha256"] != _manifest_sha256(manifest):
                raise _Damaged("the manifest does not have the hash that it names")
            stored = safetensors.torch.load((folder / _STATE_FILE).read_bytes())
            shape, hashes, values = manifest["shape"], dict(manifest["sha256"]), dict(manifest["progress"])
            progress = Progress(**{**values, "phase": Phase(values["phase"])})
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _Damaged(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            # What cannot be read now may be sound. To go on from an older one would delete it.
            raise CheckpointError(
                f"{folder} cannot be read on {socket.gethostname()}: {type(error).__name__} ({error.strerror}). Mend "
                "that and resume, or move it away to go on from the one before"
            ) from error
        except Exception as error:
            # Truncated or edited files raise many types, safetensors' own among them.
            raise _Damaged(f"{type(error).__name__}: {error}") from error
        if manifest.get("format") != _FORMAT:
            raise CheckpointError(f"{folder}: expected checkpoint format {_FORMAT}, got {manifest.get('format')}")
        owner = manifest.get("run_id", "")
        if owner and self._run_id and owner != self._run_id:
            raise CheckpointError(
                f"{folder} is of run {owner!r}, this is run {self._run_id!r}: move {self._folder} away on "
                f"{socket.gethostname()}, or delete it if that run is not wanted any more"
            )
        # A setting that is younger than the checkpoint is missing there, which stands for None.
        changed = sorted(name for name in {*shape, *self._shape} if shape.get(name) != self._shape.get(name))
        if changed:
            details = "; ".join(f"{n}: checkpoint {shape.get(n)}, now {self._shape.get(n)}" for n in changed)
            raise CheckpointError(f"{folder} was made by another configuration ({details}): a run keeps its networks")
        own = named_tensors(state)
        if set(stored) != set(own) or set(hashes) != set(stored):
            raise _Damaged(f"expected tensors {sorted(own)[:3]}..., got {sorted(stored)[:3]}...")
        for name, tensor in stored.items():
            if _sha256(tensor) != hashes[name]:
                raise _Damaged(f"tensor {name} does not have the hash that the manifest names")
            if name != "generator" and (tensor.shape != own[name].shape or tensor.dtype != own[name].dtype):
                raise _Damaged(f"tensor {name}: expected {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in stored.items():
                if name != "generator":
                    own[name].copy_(tensor)
        if manifest.get("device_type") == state.generator.device.type:
            state.generator.set_state(stored["generator"])
        else:
            _log.warning(
                "the checkpoint was made on %s, this is %s: random numbers are drawn from a new seed",
                manifest.get("device_type"),
                state.generator.device.type,
            )
            state.generator.manual_seed(progress.grad_steps)
        state.grad_steps = progress.grad_steps
        same_device = manifest.get("device_type") == state.generator.device.type
        self.proof = _prove(folder.name, state, hashes, progress, generator_goes_on=same_device)
        return progress

    def record_proof(self, *, stream_position: int) -> RestoreProof | None:
        """Complete the proof of a resume and write it where `launcher doctor` finds it.

        Args:
            stream_position: of the mirror that was rebuilt from Redis.

        Returns:
            The proof; None when nothing was restored.
        """
        if self.proof is None:
            return None
        self.proof = replace(self.proof, stream_position_found=stream_position)
        partial = self._folder / f".{_PROOF_FILE}.partial"
        _write_durably(partial, json.dumps(asdict(self.proof), indent=1).encode())
        os.replace(partial, self._folder / _PROOF_FILE)
        return self.proof

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True)

    def _remove_old(self, written: Path) -> None:
        """Keep what was just written and the newest before it; a later one was damaged and passed over."""
        before = [folder for folder in self._newest_first() if folder.name < written.name]
        for folder in self._newest_first():
            if folder != written and folder not in before[: self._keep - 1]:
                shutil.rmtree(folder, ignore_errors=True)


class _Damaged(Exception):
    """This checkpoint cannot be used; another one may."""


def _prove(
    name: str, state: LearnerState, hashes: dict[str, str], progress: Progress, *, generator_goes_on: bool
) -> RestoreProof:
    """Compute every hash again, from what lies in the state now, wherever it lies.

    Raises:
        _Damaged: a tensor is not what was saved.
    """
    found = {key: _sha256(tensor.detach().cpu()) for key, tensor in named_tensors(state).items()}
    if not generator_goes_on:
        del found["generator"]  # another kind of device has generators of another form
    wrong = sorted(key for key, value in found.items() if value != hashes[key])
    if wrong:
        raise _Damaged(f"{len(wrong)} tensors differ from the manifest after loading, {wrong[0]} among them")
    parts = Counter(key.partition(".")[0] for key in found)
    return RestoreProof(name, progress.grad_steps, dict(parts), generator_goes_on, progress.stream_position)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    """Of all that the manifest says but this."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
