"""Weights & Biases: offline without any network, and never loaded unless asked for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay_service import wandb_run
from replay_service.config import RunConfig
from replay_service.errors import ConfigError
from tests.conftest import PATIENCE_S

ROOT = Path(__file__).parents[2]

OFFLINE = """
import sys
from pathlib import Path
from replay_service.points import Point
from replay_service.wandb_run import WandbRun

assert "wandb" not in sys.modules
run = WandbRun(Path(sys.argv[1]), run_id="pen/0 night", group="pen strong", mode="offline", settings={"seed": 7})
run.write(Point(10, 20, 1.0, {"eval/success_any": 0.625, "learner/critic_loss": 0.5}))
run.close()
"""


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed (pip install 'awac-online[wandb]')"
)
@pytest.mark.parametrize(("variables", "project", "group"), [
    ({}, b"awac-online", b"pen strong"),
    ({"WANDB_PROJECT": "my-lab", "WANDB_RUN_GROUP": "my-seeds"}, b"my-lab", b"my-seeds"),
])  # fmt: skip
def test_offline_it_writes_a_file_and_asks_nobody(
    tmp_path: Path, variables: dict[str, str], project: bytes, group: bytes
) -> None:
    # A proxy that nobody listens at stands for a machine without network.
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "WANDB_API_KEY": ""}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        env={**os.environ, **nowhere, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert written.name == "run-pen-0-night.wandb"
    content = written.read_bytes()
    for text in (b"eval/success_any", b"0.625", b"env_steps", b"grad_steps", project, group):
        assert text in content


def test_the_modes_are_those_of_the_setting() -> None:
    assert RunConfig().wandb == wandb_run.OFF
    assert set(wandb_run.MODES) == {"off", "offline", "online"}


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'awac-online\[wandb\]'"):
        wandb_run.check_available()


def test_the_service_does_not_load_it_unless_asked() -> None:
    program = "import sys; import replay_service.__main__, launcher.up; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=PATIENCE_S).returncode == 0
