"""Errors that are not the program's own are told in a sentence; those that are keep their traceback."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from launcher import cli
from launcher.mistakes import Told, in_words
from launcher.role_command import StepFailed
from replay_service.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("batch: too small"), Told("batch: too small", 2)),
        (StepFailed("cloning ended with code 1"), Told("cloning ended with code 1", 1)),
        (PermissionError(13, "Permission denied", "/runs/a/redis"), Told("/runs/a/redis: Permission denied", 2)),
        (OSError("no file is meant"), None),
        (KeyError("a defect"), None),
    ],
)
def test_what_is_told(error: Exception, told: Told | None) -> None:
    assert in_words(error) == told


def test_a_redis_that_restarts_is_told_with_what_to_do() -> None:
    told = in_words(redis.exceptions.ConnectionError("Connection refused"))
    assert told is not None
    assert told.exit_code == 1
    assert "does not answer (Connection refused); try again" in told.text


def test_refused_credentials_are_not_told_as_an_outage() -> None:
    told = in_words(redis.exceptions.AuthenticationError("WRONGPASS"))
    assert told == Told("the run's Redis refused the credentials (WRONGPASS)", 2)


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ResponseError("BUSY Redis is busy running a script."),
        redis.exceptions.MasterDownError("Link with MASTER is down"),
        redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    ],
)
def test_what_the_roles_wait_for_is_told_as_an_outage(error: Exception) -> None:
    assert in_words(error) == Told(f"the run's Redis does not answer ({error}); try again in a moment", 1)


def test_what_no_waiting_mends_is_not_told_as_an_outage() -> None:
    assert in_words(redis.exceptions.ResponseError("WRONGTYPE Operation against a key")) is None
    assert in_words(redis.exceptions.NoPermissionError("no rights to run 'hset'")) == Told(
        "the run's Redis refused the credentials (no rights to run 'hset')", 2
    )
    refused = redis.exceptions.ConnectionError("Error 1 connecting")
    refused.__cause__ = strange = ssl.SSLCertVerificationError("certificate verify failed")
    strange.verify_message = "self-signed certificate"
    assert in_words(refused) == Told("the certificate of the run's Redis is not accepted: self-signed certificate", 2)


DEMOS = ["dataset", "demos", "--env", "pen", "--source", "/no/such/expert", "--noise-std", "0.1"]
ROLLOUT = ["dataset", "rollout", "--env", "pen", "--source", "/no/such/demos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*DEMOS, "--output", "made.npz", "--lag", "1"], "--lag: expected a number from 0 to below 1, got 1"),
        ([*DEMOS, "--output", "made.npz", "--noise-correlation", "1"], "--noise-correlation: expected a number from 0"),
        ([*DEMOS, "--output", "made.npz", "--episodes", "-5"], "--episodes: expected at least 1, got -5"),
        ([*DEMOS, "--output", "made.npz", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        ([*DEMOS[:-1], "-1", "--output", "made.npz"], "--noise-std: expected a number from 0 to 2, got -1"),
        ([*DEMOS, "--output", "a-file/made.npz"], "a-file/made.npz: cannot be written: File exists"),
        ([*ROLLOUT, "--output", "made-v0", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        ([*ROLLOUT, "--output", "a-file/made-v0"], "a-file/made-v0: cannot be written: File exists"),
    ],
)
def test_a_dataset_is_refused_before_anything_is_cloned(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    assert cli.main(words) == 2
    assert capfd.readouterr().err.startswith(f"error: {message}")


def test_a_reader_that_has_had_enough_gets_no_traceback(tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    (tmp_path / "run" / "summary.json").touch()
    (logs / "learner.log").write_text("a line of a log\n" * 200_000, encoding="utf-8")
    command = [sys.executable, "-m", "launcher", "logs", str(tmp_path / "run"), "--lines", "200000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lines", "0"], "--lines: expected at least 1, got 0"),
        (["--lines=-2"], "--lines: expected at least 1, got -2"),
        (["--role", "/x"], "--role: expected one of learner, got '/x'"),
        (["--role", "*"], "--role: expected one of learner, got '*'"),
    ],
)
def test_logs_refuse_what_they_cannot_show(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "config.toml").touch()
    (tmp_path / "summary.json").touch()
    (logs / "learner.log").write_text("one\ntwo\n", encoding="utf-8")
    assert cli.main(["logs", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
