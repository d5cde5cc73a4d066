"""Mistakes on the command line: one clear message, exit code 2, nothing started, nothing lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli

MISTAKES = {
    "unknown environment": (["--env", "penn"], r"unknown environment 'penn'.*Did you mean 'pen'"),
    "discrete actions": (["--env", "CartPole-v1"], r"action space: expected a one-dimensional Box"),
    "missing dataset": (["--env", "pen", "--dataset", "/no/such/data"], r"/no/such/data"),
    "misspelt option": (["--actorss", "3"], r"Did you mean --actors\?"),
    "misspelt nested option": (["--learner.batchsize", "3"], r"Did you mean --learner.batch-size\?"),
    "no actors": (["--actors", "0"], r"actors: expected at least 1, got 0"),
    "a number that once stood for auto": (["--actors", "-1"], r"actors: expected at least 1, got -1"),
    "not a number": (["--actors", "many"], r"(?i)unable to convert \"?many"),
    "negative budget": (["--num-env-steps", "-5"], r"num_env_steps: expected at least 0, got -5"),
    "ratio of zero": (["--utd-ratio", "0"], r"utd_ratio: expected a number above 0, got 0"),
    "ratio not finite": (["--utd-ratio", "nan"], r"utd_ratio: expected a number above 0, got nan"),
    "negative batch": (["--learner.batch-size", "-1"], r"learner.batch_size: expected at least 1"),
    "unknown preset": (["--preset", "papr"], r"Did you mean 'paper'"),
    "unknown choice": (["--learner.weighting", "softmax"], r"(?i)weighting"),
    "no Redis there": (["--redis-url", "redis://127.0.0.1:1"], r"no Redis answers at redis://127.0.0.1:1"),
    "not a Redis URL": (["--redis-url", "http://x"], r"expected redis://, rediss:// or unix://"),
    "missing config file": (["--config", "/no/such.toml"], r"cannot read the configuration file /no/such.toml"),
    "unknown behaviour": (["--restart-behavior", "maybe"], r"\"maybe\".*resume.*restart.*overwrite"),
    "unknown device": (["--device", "gpu"], r"launcher.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    "unknown device in a dry run": (["--device", "gpu", "--dry-run"], r"expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    "the name of the link to the latest run": (["--run-dir", "runs/latest"], r"runs/latest is not there"),
    "nothing to resume": (["--run-dir", "/no/such/run", "--restart-behavior", "resume"], r"holds no run"),
    "another shape than the task's": (
        ["--environment.observation-dim", "7"],
        r"observation_dim: pen itself has 45, got 7",
    ),
    "bounds of its own": (["--environment.action-low", "-2"], r"action_low: pen itself has none, got \(-2.0,\)"),
    "none beside data": (["--dataset", "none", "--dataset", "x"], r"'none' cannot stand beside"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_gets_one_message_and_exit_code_2(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options, expected = MISTAKES[mistake]
    if "--env" not in options:
        options = ["--env", "pen", *options]
    if "--dataset" not in options and "--config" not in options:
        options = [*options, "--dataset", "none"]
    assert cli.main(["up", *options]) == 2
    out, err = capfd.readouterr()
    shown = re.sub(r"[│╭╮╰╯─\s]+", " ", out + err)
    assert re.search(expected, shown), shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env = pen\n", "is not valid TOML"),
        ("num_actor_steps = 3\n", "Unknown option"),
        ("[learner]\nbatchsize = 3\n", "Did you mean --learner.batch-size"),
        ("actors = 0\n", "actors: expected at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_file_names_file_or_key(
    text: str, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert cli.main(["up", "--config", str(path), "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert expected in re.sub(r"[│╭╮╰╯─\s]+", " ", out + err)


@pytest.mark.parametrize("command", ["status", "down", "logs"])
def test_commands_on_something_that_is_no_run(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, str(tmp_path)]) == 2
    assert "holds no run" in capfd.readouterr().err


def test_a_password_in_the_url_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["up", "--env", "pen", "--dataset", "none", "--redis-url", "redis://me:hunter2@127.0.0.1:1"]
    assert cli.main(options) == 2
    out, err = capfd.readouterr()
    assert "redis://me@127.0.0.1:1" in err
    assert "hunter2" not in out + err


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capfd.readouterr().out
    for command in ("up", "status", "down", "logs", "dataset"):
        assert command in out


def test_with_closed_streams_a_command_does_what_it_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher", "up", "--env", "Pendulum-v1", "--dataset", "none", "--dry-run"]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command, "--run-dir", str(tmp_path / "run")]
    assert subprocess.run(closed, timeout=120, check=False).returncode == 0
