"""Who may load what: asserted in fresh interpreters, because linters do not see what third parties import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]


def loaded_after(module: str) -> set[str]:
    """Top-level modules in a fresh interpreter that has imported `module`."""
    program = f"import json, sys; import {module}; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S, cwd=REPOSITORY
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("module", "needs", "forbidden"),
    [
        ("actors.__main__", {"numpy", "gymnasium", "mujoco"}, {"torch", "ray", "learner", "launcher", "h5py"}),
        (
            "replay_service.__main__",
            {"numpy", "redis"},
            {"torch", "ray", "gymnasium", "mujoco", "learner", "actors", "launcher"},
        ),
        (
            "learner.__main__",
            {"numpy", "torch", "redis"},
            {"ray", "gymnasium", "gymnasium_robotics", "mujoco", "actors", "launcher"},
        ),
        ("launcher.cli", {"rich", "cyclopts"}, {"torch", "ray", "mujoco", "gymnasium", "h5py"}),
    ],
)
def test_a_role_loads_what_it_needs_and_nothing_that_it_must_not(
    module: str, needs: set[str], forbidden: set[str]
) -> None:
    loaded = loaded_after(module)
    assert needs <= loaded  # or the question was asked wrongly
    assert loaded & forbidden == set()


@pytest.mark.parametrize("module", ["replay_service", "actors", "learner", "launcher"])
def test_importing_a_package_loads_nothing_but_itself(module: str) -> None:
    before, after = loaded_after("json"), loaded_after(module)
    assert after - before == {module}


def test_importing_an_actor_prints_nothing() -> None:
    # gymnasium_robotics greets at import; actors are many.
    done = subprocess.run(
        [sys.executable, "-c", "import actors.__main__"],
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
        cwd=REPOSITORY,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
