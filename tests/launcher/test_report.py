"""`launcher report`: one page with everything in it, that asks no other host, and trusts no text of the run."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher import cli
from launcher.experiment import ExperimentConfig
from launcher.report import _status, _videos
from launcher.report_pictures import rates_over_time
from launcher.run_directory import RunDirectory
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.keys import Keys
from replay_service.records import Recorder, RunIdentity
from replay_service.redis_client import RedisClient
from replay_service.reports import Evaluation, LearnerReport, Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import TrajectoryWriter
from tests.faults import bound_by_modes
from tests.launcher.made_run import fill_streams, made_run, service_at_work
from tests.launcher.test_replay_commands import DOOR, door_stream

HOSTILE = '<script src="https://evil.example/x.js"></script>'


class Page(HTMLParser):
    """What a browser would see: tags, what they refer to, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def fill(directory: RunDirectory, client: RedisClient, run: RunConfig) -> None:
    """Trajectories, two evaluations, three reports of the learner, a restart, records, a warning and a film."""
    fill_streams(client, run, door_stream(), None)
    keys = Keys(run.run_id)
    reports = Reports(client, keys)
    for version, env_steps, success in ((0, 0, 0.0), (1, 0, 0.5), (9, 10, 0.75)):
        reports.add_evaluation(
            Evaluation(version, env_steps, 100 + env_steps, success, success, 0.25, -3.0, 5.0, 4, 1.0, 1.7e9),
            request_id=f"{version + 1}-0",
        )
    for number in range(3):
        reports.add_learner_report(
            LearnerReport(100 + 10 * number, 5 * number, 1.7e9 + 2 * number, {"critic_loss": 0.5 - 0.1 * number})
        )
    RunStateStore(client, keys).count_learner_restart()
    recorder = Recorder(directory.path, reports, RunIdentity(run.run_id, run.env, run.preset, run.seed))
    recorder.update(*reports.state_and_actors(), status="finished")
    recorder.close()
    directory.logs.mkdir(exist_ok=True)
    (directory.logs / "launcher.log").write_text(
        f"2026-01-01 00:00:00,000 launcher INFO all is well\n2026-01-01 00:00:01,000 launcher WARNING {HOSTILE}\n"
    )
    directory.videos.mkdir()
    (directory.videos / "version-9.mp4").write_bytes(b"not really a film")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A stopped run, and its page."""
    run = replace(DOOR, dataset=(HOSTILE,))
    path = tmp_path_factory.mktemp("report") / "run"
    with made_run(path, ExperimentConfig(run=run)) as (directory, client):
        fill(directory, client, run)
    assert cli.main(["report", str(path)]) == 0
    return path, (path / "report.html").read_text(encoding="utf-8")


def test_the_page_tells_what_the_run_recorded(reported: tuple[Path, str]) -> None:
    text = re.sub(r"\s+", " ", Page(reported[1]).text)
    assert "door, published, seed 0: run" in text
    assert "finished, up for" in text
    assert "online environment steps 17" in text
    # A row of the evaluations, and one of the ledger.
    assert "10 110 9 75 % 75 % 25 % -3.0 4" in text
    assert "0 10 0 0 0 0 - 3 1 0" in text
    assert "17 steps counted by the run; 0 of them in no actor's account" in text
    assert "0 of actors, 1 of the learner." in text
    assert "launcher WARNING <script" in text
    assert "all is well" not in text
    assert 'env = "door"' in text


def test_pictures_and_films_are_inside(reported: tuple[Path, str]) -> None:
    references = Page(reported[1]).references
    kinds = [reference.partition(";base64,")[0] for reference in references]
    assert kinds == ["data:image/svg+xml"] * 2 + ["data:video/mp4"] + ["data:image/svg+xml"] * 2
    contents = [base64.b64decode(reference.partition(",")[2], validate=True) for reference in references]
    assert contents[2] == b"not really a film"
    curve, learner = contents[0].decode(), contents[4].decode()
    assert "<!-- success at the last step, of 4 episodes -->" in curve
    assert "<!-- critic_loss -->" in learner


def test_nothing_is_asked_of_another_host(reported: tuple[Path, str]) -> None:
    page = Page(reported[1])
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(""", reported[1])
    assert "default-src 'none'" in reported[1]
    for reference in page.references:
        if "svg" in reference[:20]:
            picture = base64.b64decode(reference.partition(",")[2]).decode()
            assert not re.search(r"""(?:href|src)\s*=\s*["']https?:|@import|url\((?!#)""", picture)


def test_text_of_the_run_is_never_markup(reported: tuple[Path, str]) -> None:
    assert HOSTILE not in reported[1]
    assert "script" not in Page(reported[1]).tags
    assert HOSTILE.replace('"', '\\"') in Page(reported[1]).text  # as TOML writes it


def test_no_password_is_in_the_page(reported: tuple[Path, str]) -> None:
    password = json.loads((reported[0] / "redis" / "connection.json").read_text())["password"]
    assert len(password) > 20
    assert password not in reported[1]


def test_a_run_whose_redis_is_gone_still_has_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        fill(directory, client, DOOR)
    directory.connection.unlink()
    output = tmp_path / "elsewhere" / "page.html"
    assert cli.main(["report", str(directory.path), "--output", str(output)]) == 0
    out, err = capfd.readouterr()
    assert str(output) in out
    assert "the run never came up" in err
    text = Page(output.read_text()).text
    assert "The run's Redis cannot be read" in text
    assert "0 of actors, 1 of the learner." in text
    assert "75 %" in text


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        RunStateStore(client, Keys(DOOR.run_id)).initialise(DOOR)
        TrajectoryWriter(client, Keys(DOOR.run_id), DOOR.spec, actor_id=0).register()
        with directory.held():
            assert cli.main(["report", str(directory.path)]) == 0
    text = Page((directory.path / "report.html").read_text()).text
    assert "has no summary yet" in text
    assert "No trained policy has been evaluated yet." in text
    assert "The learner has not reported yet." in text


def test_a_run_in_containers_is_not_called_interrupted(tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, _client):
        pass
    summary = {"status": "running"}
    directory.summary.write_text(json.dumps(summary))
    with service_at_work(directory):
        assert _status(directory, summary) == "running, without a launcher here"
    assert _status(directory, summary) == "interrupted"


def test_a_run_whose_roles_cannot_be_seen_has_a_page_of_its_records(tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        fill(directory, client, DOOR)
    directory.summary.write_text(json.dumps({"status": "running"}))
    with service_at_work(directory):
        directory.connection.parent.chmod(0)
        look = [*bound_by_modes(), sys.executable, "-m", "launcher", "report", str(directory.path)]
        done = subprocess.run(look, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "running or interrupted, without a launcher here" in Page((directory.path / "report.html").read_text()).text


def test_half_a_film_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "version-9.mp4").write_bytes(b"whole")
    (tmp_path / ".version-7.123.partial.mp4").write_bytes(b"half")
    embedded, left_out = _videos(tmp_path)
    assert [film.alt for film in embedded] == ["version-9.mp4"]
    assert left_out == []


def test_damaged_records_are_told_in_the_page(tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        fill(directory, client, DOOR)
    directory.summary.write_text("{")
    (directory.path / "evaluations.csv").write_text("nonsense\n")
    assert cli.main(["report", str(directory.path)]) == 0
    text = Page((directory.path / "report.html").read_text()).text
    assert "summary.json cannot be read" in text
    assert "expected the columns env, preset" in text


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        ("", "summary.json cannot be read"),
        ("[]", "summary.json is no JSON object"),
        (
            '{"status": "finished", "evaluations": [{"env_steps": 10, "success_any": 0.75}, null]}',
            "10 - - 75 % - - - -",
        ),
        ('{"status": "finished", "evaluations": [{"success_any": "?", "episode_return": "?"}]}', "- - - - - - - -"),
        ('{"evaluations": 3}', "No trained policy has been evaluated yet."),
    ],
)
def test_a_damaged_summary_is_told_or_left_out(summary: str, told: str, tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, _client):
        pass
    directory.summary.write_text(summary)
    assert cli.main(["report", str(directory.path)]) == 0
    assert told in re.sub(r"\s+", " ", Page((directory.path / "report.html").read_text()).text)


def test_an_environment_without_success_has_its_return_alone(tmp_path: Path) -> None:
    run = RunConfig(
        env="Pendulum-v1", run_id="swing", preset="locomotion", dataset=("none",),
        environment=EnvironmentConfig(max_episode_steps=5, observation_dim=3, action_dim=1),
    )  # fmt: skip
    with made_run(tmp_path / "run", ExperimentConfig(run=run)) as (directory, client):
        fill_streams(client, run, [], None)
        reports = Reports(client, Keys(run.run_id))
        reports.add_evaluation(Evaluation(1, 0, 100, None, None, None, -900.0, 5.0, 4, 1.0, 1.7e9), request_id="1-0")
        recorder = Recorder(directory.path, reports, RunIdentity(run.run_id, run.env, run.preset, run.seed))
        recorder.update(*reports.state_and_actors())
        recorder.close()
    assert cli.main(["report", str(directory.path)]) == 0
    page = Page((directory.path / "report.html").read_text())
    assert len(page.references) == 1
    assert "interrupted" in page.text


def test_a_page_that_cannot_be_written_is_the_users_error(
    reported: tuple[Path, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(reported[0]), "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot be written" in capfd.readouterr().err
    for folder in (".", "/", str(tmp_path)):
        assert cli.main(["report", str(reported[0]), "--output", folder]) == 2
        assert f"{folder}: cannot be written: expected the name of a file, got a folder" in capfd.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capfd.readouterr().err


def test_rates_leave_pauses_and_restored_learners_out() -> None:
    points = [(0, 0, 0), (2, 10, 20), (4, 30, 60), (1004, 31, 61), (1006, 41, 71), (1008, 20, 50), (1010, 24, 52)]
    reports = [LearnerReport(grad, env, 1.7e9 + seconds, {}) for seconds, env, grad in points]
    found = rates_over_time(reports)
    assert [(r.env_steps_per_second, r.grad_steps_per_second) for r in found] == [(5, 10), (10, 20), (5, 5), (2, 1)]
    assert [r.minutes * 60 for r in found] == pytest.approx([2, 4, 1006, 1010])
    (together,) = rates_over_time(reports[:3], points=1)
    assert (together.env_steps_per_second, together.grad_steps_per_second) == (7.5, 15.0)
    assert rates_over_time(reports[:1]) == []
