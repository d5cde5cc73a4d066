"""A process that is really killed as it writes a checkpoint, at any file operation and any byte, loses nothing."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.checkpoint import Progress
from learner.update import LearnerState
from replay_service.run_state import Phase
from tests.learner.test_checkpoint import assert_same_bits, fresh_state, progress_at, store_in, train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills itself from an audit hook in a forked child")

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.scandir", "os.listdir"}


def in_child(act: Callable[[], object]) -> int:
    """Do something in a forked child; returns its wait status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside torch's threads; the child computes nothing
        pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def die_at_operation(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Run `act`, and die of SIGKILL just before its file operation of that number, from 0."""

    def run() -> None:
        left = number

        def hook(event: str, _arguments: object) -> None:
            nonlocal left
            if event in FILE_EVENTS:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)  # cannot be taken out again: only in a child
        act()

    return run


def die_at_byte(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Run `act`, and die when a file would grow beyond `number` bytes: exactly so many are written."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        act()

    return run


def assert_old_or_new(folder: Path, old: tuple[LearnerState, Progress], new: tuple[LearnerState, Progress]) -> None:
    restored = fresh_state(seed=99)
    progress = store_in(folder).restore(restored)
    assert progress in (old[1], new[1])
    assert_same_bits(restored, old[0] if progress == old[1] else new[0])


@pytest.mark.parametrize("same_step", [False, True], ids=["a later step", "the same step again"])
def test_killed_before_any_file_operation(tmp_path: Path, same_step: bool) -> None:
    old = train(fresh_state(), 5)
    new = train(fresh_state(), 5 if same_step else 8)
    after = replace(progress_at(5), phase=Phase.FINISHED) if same_step else progress_at(8)
    kills = 0
    for number in range(200):
        folder = tmp_path / str(number)
        store_in(folder).save(old, progress_at(5))
        status = in_child(die_at_operation(number, partial(store_in(folder).save, new, after)))
        assert_old_or_new(folder, (old, progress_at(5)), (new, after))
        # The next save works in spite of what the dead process has left.
        store_in(folder).save(new, after)
        assert store_in(folder).restore(fresh_state()) == after
        if status == 0:
            break  # there were no more operations to die at
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    assert status == 0
    assert kills >= 6


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0.0, 1.0, exclude_max=True))
def test_killed_at_any_byte(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    old, new = train(fresh_state(), 5), train(fresh_state(), 8)
    older = store_in(folder).save(old, progress_at(5))
    limit = int(share * (older / "state.safetensors").stat().st_size)
    status = in_child(die_at_byte(limit, lambda: store_in(folder).save(new, progress_at(8))))
    assert os.WTERMSIG(status) == signal.SIGXFSZ
    restored = fresh_state(seed=99)
    assert store_in(folder).restore(restored) == progress_at(5)
    assert_same_bits(restored, old)
    store_in(folder).save(new, progress_at(8))
    assert store_in(folder).restore(restored) == progress_at(8)
    assert_same_bits(restored, new)
