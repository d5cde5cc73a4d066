"""Checkpoints: bit-exact, sound or refused, and nothing in them that could run."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from launcher.doctor import resume_findings
from learner.checkpoint import CheckpointStore, Progress
from learner.config import SHAPING_SETTINGS, LearnerConfig
from learner.mirror import TransitionBatch
from learner.update import LearnerState, fit_observation_scale, gradient_step, make_state
from replay_service.errors import CheckpointError
from replay_service.experience import ExperienceSpec
from replay_service.run_state import Phase

SPEC = ExperienceSpec("synthetic", observation_dim=3, action_dim=2, max_episode_steps=20)
CONFIG = LearnerConfig(
    policy_hidden_sizes=(4, 3),
    critic_hidden_sizes=(4,),
    critic_layer_norm=True,
    policy_average_rate=0.5,
    evaluated_average_rate=0.1,
    normalise_observations=True,
)
"""With every part that a state can have."""
FILES = ("state.safetensors", "manifest.json")


def fresh_state(config: LearnerConfig = CONFIG, *, seed: int = 0) -> LearnerState:
    state = make_state(config, SPEC, seed=seed, device=torch.device("cpu"))
    fit_observation_scale(state, torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)))
    return state


def train(state: LearnerState, steps: int) -> LearnerState:
    """Gradient steps on batches that the state's own generator draws, as the learner's do."""
    for _ in range(steps):
        rows, draw = 16, state.generator
        batch = TransitionBatch(
            torch.randn(rows, 3, generator=draw),
            torch.randn(rows, 2, generator=draw),
            -torch.rand(rows, generator=draw),
            torch.full((rows,), 0.99),
            torch.randn(rows, 3, generator=draw),
        )
        gradient_step(state, batch, CONFIG)
    return state


def progress_at(grad_steps: int) -> Progress:
    return Progress(
        phase=Phase.ONLINE,
        offline_grad_steps=grad_steps - 2,
        online_grad_steps=2,
        policy_version=7,
        env_steps=44,
        next_evaluation_env_steps=50,
    )


def store_in(folder: Path, config: LearnerConfig = CONFIG, *, spec: ExperienceSpec = SPEC) -> CheckpointStore:
    return CheckpointStore(folder, spec=spec, config=config)


def every_tensor(state: LearnerState) -> dict[str, Tensor]:
    """All that a gradient step changes, gathered from torch's own state dictionaries."""
    found = {"generator": state.generator.get_state()}
    assert state.average_policy is not None
    assert state.evaluated_average is not None
    for part, module in (
        ("policy", state.policy), ("average", state.average_policy), ("evaluated", state.evaluated_average),
        ("critics", state.critics), ("targets", state.target_critics),
    ):  # fmt: skip
        found |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    for part, optimizer in (("policy", state.policy_optimizer), ("critics", state.critic_optimizer)):
        for index, parameter in enumerate(optimizer.parameters):
            found |= {f"{part} Adam {index} {slot}": tensor for slot, tensor in optimizer.moments(parameter).items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_same_bits(one: LearnerState, other: LearnerState) -> None:
    left, right = every_tensor(one), every_tensor(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), name
    assert one.grad_steps == other.grad_steps


def save_two(folder: Path) -> tuple[Path, Path]:
    """Checkpoints of one run at 5 and 8 gradient steps."""
    store, state = store_in(folder), fresh_state()
    older = store.save(train(state, 5), progress_at(5))
    newer = store.save(train(state, 3), progress_at(8))
    return older, newer


class TestRestore:
    def test_gives_back_every_bit_and_the_same_future(self, tmp_path: Path) -> None:
        state = train(fresh_state(), 5)
        store_in(tmp_path).save(state, progress_at(5))
        restored = fresh_state(seed=99)
        assert store_in(tmp_path).restore(restored) == progress_at(5)
        assert_same_bits(restored, state)
        assert_same_bits(train(restored, 10), train(state, 10))

    def test_saving_changes_nothing(self, tmp_path: Path) -> None:
        saved, untouched = train(fresh_state(), 3), train(fresh_state(), 3)
        store_in(tmp_path).save(saved, progress_at(3))
        assert_same_bits(saved, untouched)
        assert_same_bits(train(saved, 3), train(untouched, 3))

    def test_works_before_the_first_gradient_step(self, tmp_path: Path) -> None:
        # A run with num_offline_steps = 0 goes online, and is saved, with optimizers that never stepped.
        progress = Progress(phase=Phase.ONLINE)
        store_in(tmp_path).save(fresh_state(), progress)
        restored = fresh_state(seed=99)
        assert store_in(tmp_path).restore(restored) == progress
        assert_same_bits(train(restored, 10), train(fresh_state(), 10))

    def test_overwrites_a_state_that_has_been_trained(self, tmp_path: Path) -> None:
        state = train(fresh_state(), 5)
        store_in(tmp_path).save(state, progress_at(5))
        restored = train(fresh_state(seed=99), 4)
        store_in(tmp_path).restore(restored)
        assert_same_bits(restored, state)

    @pytest.mark.parametrize("folder", [".", "never made"])
    def test_finds_nothing_where_nothing_was_saved(self, tmp_path: Path, folder: str) -> None:
        assert store_in(tmp_path / folder).restore(fresh_state()) is None

    def test_takes_the_newest(self, tmp_path: Path) -> None:
        save_two(tmp_path)
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(8)


class TestOwner:
    def test_checkpoints_of_another_run_are_refused_and_left_alone(self, tmp_path: Path) -> None:
        def store(run_id: str) -> CheckpointStore:
            return CheckpointStore(tmp_path, spec=SPEC, config=CONFIG, run_id=run_id)

        folder = store("first").save(train(fresh_state(), 5), progress_at(5))
        with pytest.raises(CheckpointError, match=r"is of run 'first', this is run 'second': move .* away"):
            store("second").restore(fresh_state())
        assert folder.exists()
        assert store("first").restore(fresh_state()) == progress_at(5)


class TestProof:
    def test_names_every_part_of_the_state_and_is_left_for_the_doctor(self, tmp_path: Path) -> None:
        store_in(tmp_path).save(train(fresh_state(), 5), replace(progress_at(5), stream_position=60))
        store = store_in(tmp_path)
        store.restore(fresh_state(seed=99))
        proof = store.record_proof(stream_position=48)
        assert proof is not None
        networks = {"policy", "average_policy", "evaluated_average", "critics", "targets"}
        assert set(proof.tensors) == {"generator", *networks, "policy_optimizer", "critic_optimizer"}
        assert sum(proof.tensors.values()) == len(every_tensor(fresh_state()))
        assert proof.generator
        assert (proof.grad_steps, proof.stream_position, proof.stream_position_found) == (5, 60, 48)
        for part in ("step-000000000005", "critic_optimizer", "generator goes on", "stream position 48"):
            assert part in str(proof)
        (finding,) = resume_findings(tmp_path)
        assert finding.sound
        assert "step-000000000005 restored" in finding.text
        assert "the stream lacked 12 steps" in finding.text

    def test_a_run_that_never_was_restored_has_none(self, tmp_path: Path) -> None:
        store = store_in(tmp_path)
        assert store.restore(fresh_state()) is None
        assert store.record_proof(stream_position=0) is None
        assert resume_findings(tmp_path) == []

    def test_a_proof_that_was_damaged_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "restored.json").write_text("{")
        assert [finding.sound for finding in resume_findings(tmp_path)] == [False]

    def test_a_state_that_loading_did_not_make_equal_is_refused(self, tmp_path: Path) -> None:
        """Critics and targets in one place by mistake: each hash of the file is right, the loaded state is not."""
        store_in(tmp_path).save(train(fresh_state(), 5), progress_at(5))
        state = fresh_state(seed=99)
        aliased = dict(zip(state.critics.parameters(), state.target_critics.parameters(), strict=True))
        for critic, target in aliased.items():
            target.data = critic.data
        with pytest.raises(CheckpointError, match="differ from the manifest after loading"):
            store_in(tmp_path).restore(state)


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def edit_manifest(folder: Path, *, renew_hash: bool = False, **values: Any) -> None:
    """Without a new hash, an edit is damage; with one, the manifest is as another program would have written it."""
    manifest = {**json.loads((folder / "manifest.json").read_text()), **values}
    if renew_hash:
        del manifest["manifest_sha256"]
        manifest["manifest_sha256"] = sha256(json.dumps(manifest, sort_keys=True).encode())
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestDamage:
    def assert_passed_over(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The newest checkpoint in `folder` is not used, the one before is, and the log says so."""
        restored = fresh_state(seed=99)
        with caplog.at_level(logging.WARNING, logger="learner.checkpoint"):
            assert store_in(folder).restore(restored) == progress_at(5)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "step-000000000008 is damaged and passed over" in caplog.text
        assert_same_bits(restored, train(fresh_state(), 5))

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, share: float) -> None:
        _, newer = save_two(tmp_path)
        cut(newer / name, int(share * (newer / name).stat().st_size))
        self.assert_passed_over(tmp_path, caplog)

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
        _, newer = save_two(tmp_path)
        (newer / name).unlink()
        self.assert_passed_over(tmp_path, caplog)

    @pytest.mark.parametrize("name", FILES)
    def test_a_flipped_bit_anywhere(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
        _, newer = save_two(tmp_path)
        path = newer / name
        sound = path.read_bytes()
        for count, position in enumerate(range(0, len(sound), max(1, len(sound) // 40))):
            flip(path, position, bit=count % 8)
            assert store_in(tmp_path).restore(fresh_state()) == progress_at(5)
            path.write_bytes(sound)
        assert len(caplog.records) == count + 1
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(8)

    def test_an_edited_progress(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        _, newer = save_two(tmp_path)
        manifest = json.loads((newer / "manifest.json").read_text())
        edit_manifest(newer, progress={**manifest["progress"], "online_grad_steps": 1})
        self.assert_passed_over(tmp_path, caplog)

    def test_an_edited_hash(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        _, newer = save_two(tmp_path)
        manifest = json.loads((newer / "manifest.json").read_text())
        edit_manifest(newer, sha256={**manifest["sha256"], "generator": "0" * 64})
        self.assert_passed_over(tmp_path, caplog)

    def test_tensors_of_another_checkpoint(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        older, newer = save_two(tmp_path)
        (newer / "state.safetensors").write_bytes((older / "state.safetensors").read_bytes())
        self.assert_passed_over(tmp_path, caplog)

    def test_none_sound(self, tmp_path: Path) -> None:
        older, newer = save_two(tmp_path)
        cut(older / "state.safetensors", 10)
        (newer / "manifest.json").unlink()
        state = fresh_state()
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound .*step-0*8.*step-0*5.*restart"):
            store_in(tmp_path).restore(state)

    def test_a_damaged_checkpoint_leaves_the_state_as_it_was(self, tmp_path: Path) -> None:
        only = store_in(tmp_path).save(train(fresh_state(), 5), progress_at(5))
        # The last byte belongs to the last tensor: every other one is sound.
        flip(only / "state.safetensors", (only / "state.safetensors").stat().st_size - 1, bit=0)
        state = train(fresh_state(seed=99), 1)
        with pytest.raises(CheckpointError):
            store_in(tmp_path).restore(state)
        assert_same_bits(state, train(fresh_state(seed=99), 1))


class TestUnreadable:
    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
    def test_is_refused_so_that_no_older_one_takes_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        older, newer = save_two(tmp_path)
        plain_read = Path.read_bytes

        def read(path: Path) -> bytes:
            if path.parent == newer:
                raise OSError(number, os.strerror(number))
            return plain_read(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read)
            with pytest.raises(CheckpointError, match=rf"step-0*8 cannot be read on .*\({os.strerror(number)}\)"):
                store_in(tmp_path).restore(fresh_state())
        assert older.exists()
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(8)


class TestPrepare:
    def test_makes_the_folder_and_leaves_nothing_in_it(self, tmp_path: Path) -> None:
        for _ in range(2):
            store_in(tmp_path / "runs" / "checkpoints").prepare()
            assert os.listdir(tmp_path / "runs" / "checkpoints") == []

    @pytest.mark.parametrize("below", [".", "checkpoints"])
    def test_refuses_a_file_in_place_of_the_folder_and_names_it(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / below
        with pytest.raises(CheckpointError, match=rf"write at {folder} on .* got (FileExists|NotADirectory)Error"):
            store_in(folder).prepare()

    def test_leaves_a_full_disk_to_the_saves_which_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "touch", full_disk)
        store_in(tmp_path).prepare()


class TestAnotherDevice:
    def test_goes_on_with_all_but_the_random_numbers(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A GPU's checkpoint on a CPU: its generators are of another form."""
        saved = train(fresh_state(), 5)
        folder = store_in(tmp_path).save(saved, progress_at(5))
        tensors = safetensors.torch.load((folder / "state.safetensors").read_bytes())
        tensors["generator"] = torch.zeros(16, dtype=torch.uint8)
        (folder / "state.safetensors").write_bytes(safetensors.torch.save(tensors))
        hashes = {name: sha256(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
        edit_manifest(folder, renew_hash=True, device_type="cuda", sha256=hashes)

        store, restored = store_in(tmp_path), fresh_state(seed=99)
        with caplog.at_level(logging.WARNING, logger="learner.checkpoint"):
            assert store.restore(restored) == progress_at(5)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "made on cuda, this is cpu: random numbers are drawn from a new seed" in caplog.text
        assert store.proof is not None
        assert not store.proof.generator
        assert "the generator starts from a new seed" in str(store.proof)
        assert restored.generator.initial_seed() == 5  # of its own at each checkpoint, but the same at each restore
        restored.generator.set_state(saved.generator.get_state())
        assert_same_bits(restored, saved)


class TestAnotherFormat:
    def test_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        _, newer = save_two(tmp_path)
        edit_manifest(newer, renew_hash=True, format=2)
        with pytest.raises(CheckpointError, match=r"step-0*8: expected checkpoint format 1, got 2"):
            store_in(tmp_path).restore(fresh_state())
        assert newer.exists()


OTHER_SHAPES: dict[str, tuple[Any, str, str]] = {
    "policy_hidden_sizes": ((8, 3), r"\[4, 3\]", r"\[8, 3\]"),
    "critic_hidden_sizes": ((4, 4), r"\[4\]", r"\[4, 4\]"),
    "critic_layer_norm": (False, "True", "False"),
    "num_critics": (3, "2", "3"),
    "min_log_std": (-5.0, "-6.0", "-5.0"),
    "max_log_std": (1.0, "0.0", "1.0"),
    "std_bounding": ("clamp", "sigmoid", "clamp"),
    "bounded_mean": (False, "True", "False"),
    "normalise_observations": (False, "True", "False"),
    "policy_average_rate": (1.0, "0.5", "1.0"),
    "evaluated_average_rate": (None, "0.1", "None"),
    "max_q": (None, "0.0", "None"),
}
"""Setting -> another value than in `CONFIG`, and how a refusal names both."""


class TestAnotherConfiguration:
    def test_is_tried_with_every_setting_that_shapes_the_state(self) -> None:
        assert OTHER_SHAPES.keys() == set(SHAPING_SETTINGS)

    @pytest.mark.parametrize("name", OTHER_SHAPES)
    def test_is_refused_with_both_named(self, tmp_path: Path, name: str) -> None:
        store_in(tmp_path).save(train(fresh_state(), 2), progress_at(2))
        value, then, now = OTHER_SHAPES[name]
        config = replace(CONFIG, **{name: value})
        with pytest.raises(CheckpointError, match=rf"{name}: checkpoint {then}, now {now}"):
            store_in(tmp_path, config).restore(fresh_state(config))

    def test_of_the_environment_is_refused_too(self, tmp_path: Path) -> None:
        store_in(tmp_path).save(train(fresh_state(), 2), progress_at(2))
        with pytest.raises(CheckpointError, match=r"spec: checkpoint .*'env': 'synthetic'.* now .*'env': 'pen'"):
            store_in(tmp_path, spec=replace(SPEC, env="pen")).restore(fresh_state())

    def test_of_what_shapes_nothing_is_welcome(self, tmp_path: Path) -> None:
        store_in(tmp_path).save(train(fresh_state(), 2), progress_at(2))
        config = replace(CONFIG, batch_size=7, temperature=3.0, policy_learning_rate=1e-5)
        assert store_in(tmp_path, config).restore(fresh_state(config)) == progress_at(2)


class TestSave:
    def test_a_partial_folder_is_harmless(self, tmp_path: Path) -> None:
        state = train(fresh_state(), 3)
        partial = tmp_path / ".step-000000000003.partial"
        partial.mkdir()
        (partial / "state.safetensors").write_bytes(b"half")
        assert store_in(tmp_path).restore(fresh_state()) is None
        store_in(tmp_path).save(state, progress_at(3))
        assert os.listdir(tmp_path) == ["step-000000000003"]
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(3)

    def test_removes_what_a_killed_save_of_another_step_has_left(self, tmp_path: Path) -> None:
        partial = tmp_path / ".step-000000000003.partial"
        partial.mkdir()
        (partial / "state.safetensors").write_bytes(b"half")
        store_in(tmp_path).save(train(fresh_state(), 4), progress_at(4))
        assert os.listdir(tmp_path) == ["step-000000000004"]

    @pytest.mark.parametrize("call", ["open", "fsync", "replace"])
    def test_an_interruption_leaves_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        store, state = store_in(tmp_path), train(fresh_state(), 3)
        store.save(state, progress_at(3))

        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path if call == "open" else os, call, full_disk)
            with pytest.raises(OSError, match="no space left"):
                store.save(state, progress_at(4))
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(3)

    def test_the_same_step_again_replaces_the_checkpoint(self, tmp_path: Path) -> None:
        store, state = store_in(tmp_path), train(fresh_state(), 3)
        store.save(state, progress_at(3))
        later = replace(progress_at(3), phase=Phase.FINISHED)
        store.save(state, later)
        assert store_in(tmp_path).restore(fresh_state()) == later

    @pytest.mark.parametrize("completed", [0, 1])
    def test_an_interruption_while_the_only_checkpoint_is_replaced_leaves_it_sound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, completed: int
    ) -> None:
        store, state = store_in(tmp_path), train(fresh_state(), 3)
        store.save(state, progress_at(3))
        plain_replace, calls = os.replace, itertools.count()

        def crash(source: Path, target: Path) -> None:
            if next(calls) == completed:
                raise KeyboardInterrupt
            plain_replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(KeyboardInterrupt):
                store.save(state, replace(progress_at(3), phase=Phase.FINISHED))
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(3)

    @pytest.mark.parametrize("keep", [1, 2])
    def test_keeps_only_the_newest(self, tmp_path: Path, keep: int) -> None:
        store = store_in(tmp_path, replace(CONFIG, keep_checkpoints=keep))
        for steps in (9, 10, 100):  # by number, not by text
            store.save(train(fresh_state(), 1), progress_at(steps))
        assert sorted(os.listdir(tmp_path)) == ["step-000000000010", "step-000000000100"][-keep:]

    def test_never_removes_the_checkpoint_just_written_for_the_sake_of_a_damaged_newer_one(
        self, tmp_path: Path
    ) -> None:
        _, newer = save_two(tmp_path)
        cut(newer / "state.safetensors", 10)
        store, state = store_in(tmp_path, replace(CONFIG, keep_checkpoints=1)), fresh_state()
        store.restore(state)
        store.save(train(state, 1), progress_at(6))  # behind the damaged one
        assert store_in(tmp_path).restore(fresh_state()) == progress_at(6)

    def test_writes_tensors_and_text_only(self, tmp_path: Path) -> None:
        folder = store_in(tmp_path).save(train(fresh_state(), 2), progress_at(2))
        assert sorted(os.listdir(folder)) == ["manifest.json", "state.safetensors"]
        tensors = safetensors.torch.load((folder / "state.safetensors").read_bytes())
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["sha256"]) == set(tensors)
        assert manifest["progress"]["phase"] == "online"
        assert len(tensors) == len(every_tensor(fresh_state()))  # three slots a parameter
