"""`launcher replay`: what it lists, shows and exports is what lies in the run's own Redis, up or stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launcher import cli
from launcher.experiment import ExperimentConfig
from launcher.run_connection import redis_of
from launcher.run_directory import RunDirectory, RunDirectoryInUse
from replay_service import data_lock
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.config_file import load_run_config
from replay_service.datasets import Episode, OfflineDataset, load_dataset
from replay_service.experience import Origin, Trajectory
from replay_service.keys import Keys
from tests.faults import fill, small_disk
from tests.launcher.made_run import fill_streams, made_run, service_at_work

DOOR = RunConfig(
    env="door",
    run_id="made",
    preset="published",
    dataset=("none",),
    rollout_length=3,
    environment=EnvironmentConfig(max_episode_steps=5, observation_dim=39, action_dim=28),
)
PENDULUM = RunConfig(
    env="Pendulum-v1",
    run_id="made",
    preset="locomotion",
    dataset=("none",),
    environment=EnvironmentConfig(
        max_episode_steps=20, observation_dim=3, action_dim=1, action_low=(-2.0,), action_high=(2.0,)
    ),
)
OPEN, SHUT = 1.5, 0.0
EPISODES = {
    # (actor, episode): hinge angles after the steps, cut into parts of at most 3 steps, and the policy version
    (0, 0): ([SHUT, SHUT, OPEN, OPEN, SHUT], 1),
    (1, 0): ([SHUT] * 5, 1),
    (0, 1): ([SHUT, OPEN, OPEN, OPEN, OPEN], 3),
    (1, 1): ([OPEN, OPEN], 4),  # not played to the end
}


def door_parts(actor: int, episode: int, hinge: list[float], version: int, first_sequence: int) -> list[Trajectory]:
    draw = np.random.default_rng([actor, episode])
    observations = draw.standard_normal((len(hinge) + 1, 39)).astype(np.float32)
    observations[:, 28] = [SHUT, *hinge]
    actions = draw.uniform(-1.2, 1.2, (len(hinge), 28)).astype(np.float32)
    rewards = (np.asarray(hinge) > 1.35).astype(np.float32) - np.float32(1)
    return [
        Trajectory(
            observations[first : first + 4],
            actions[first : first + 3],
            rewards[first : first + 3],
            terminated=False,
            truncated=first + 3 >= 5,
            origin=Origin(actor, 1, first_sequence + number, version, episode, first),
        )
        for number, first in enumerate(range(0, len(hinge), 3))
    ]


def door_stream() -> list[Trajectory]:
    """All parts, those of the two actors between each other."""
    queues: dict[int, list[Trajectory]] = {0: [], 1: []}
    for (actor, episode), (hinge, version) in EPISODES.items():
        queues[actor] += door_parts(actor, episode, hinge, version, len(queues[actor]))
    turns = [0, 1, 1, 0, 1, 0, 0]
    return [queues[actor].pop(0) for actor in turns]


def door_dataset() -> OfflineDataset:
    parts = door_parts(9, 9, [OPEN, OPEN, OPEN], 0, 0)
    return OfflineDataset(
        (Episode(parts[0].observations, parts[0].actions, parts[0].rewards, terminated=False, truncated=True),), ("x",)
    )


@pytest.fixture(scope="module")
def door_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped run with seven trajectories of four episodes, and one seed episode."""
    path = tmp_path_factory.mktemp("replay") / "run"
    with made_run(path, ExperimentConfig(run=DOOR)) as (_directory, client):
        fill_streams(client, DOOR, door_stream(), door_dataset())
    return path


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("options", "summary"),
    [
        ([], "7 trajectories, 17 steps, 2 actors, versions 1 to 4, return -3 to 0, mean -1.28571, goal met in 71 %"),
        (["--origin", "all"], "8 trajectories, 20 steps, 2 actors and the dataset, versions 0 to 4"),
        (["--origin", "seed"], "1 trajectory, 3 steps, the dataset, versions 0 to 0, return 0 to 0"),
        (["--actor", "1"], "3 trajectories, 7 steps, 1 actor, versions 1 to 4"),
        (["--success"], "5 trajectories, 12 steps, 2 actors, versions 1 to 4, return -2 to 0"),
        (["--failure"], "2 trajectories, 5 steps, 1 actor, versions 1 to 1, return -3 to -2"),
        (["--min-version", "2", "--max-version", "3"], "2 trajectories, 5 steps, 1 actor, versions 3 to 3"),
        (["--min-return", "-1", "--max-return", "-0.5"], "2 trajectories, 5 steps, 1 actor, versions 1 to 3"),
        (["--actor", "0", "--failure"], "no trajectory fits"),
    ],
)
def test_every_condition_picks_what_was_put_there(
    options: list[str], summary: str, door_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", "ls", str(door_run), *options]) == 0
    assert summary in words(capfd.readouterr().out)


def test_a_listed_entry_can_be_shown(door_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "ls", str(door_run), "--origin", "all", "--limit", "0"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[1:9]]
    assert len(rows) == 8
    assert rows[0][0].startswith("seed/")
    first_of_online = rows[1]
    assert first_of_online[1:] == ["0.1", "0", "0-2", "1", "-2", "last", "goes", "on"]
    assert cli.main(["replay", "show", str(door_run), first_of_online[0], "--ends", "1"]) == 0
    out = words(capfd.readouterr().out)
    assert "origin actor 0, epoch 1, message 0" in out
    assert "goal met at 1 of 3 steps, first at step 2; met at the last" in out
    assert "... 2 0 met" in out
    assert cli.main(["replay", "show", str(door_run), rows[0][0]]) == 0
    assert "offline dataset, episode 0" in words(capfd.readouterr().out)


def test_an_export_holds_the_episodes_joined_and_minari_loads_it(
    door_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "door-online-v0"
    assert cli.main(["replay", "export", str(door_run), "--output", str(output)]) == 0
    assert f"{output}: 4 episodes, 17 steps; episodes of which a part is missing: 1" in capfd.readouterr().out
    loaded = load_dataset([str(output)], spec=DOOR.spec)
    expected = {key: door_parts(*key, hinge, version, 0) for key, (hinge, version) in EPISODES.items()}
    order = [(1, 0), (0, 0), (0, 1), (1, 1)]  # as they ended; the one that did not end is the last
    assert loaded.num_episodes == len(order)
    for found, key in zip(loaded.episodes, order, strict=True):
        actions = np.concatenate([part.actions for part in expected[key]])
        np.testing.assert_array_equal(found.actions, np.clip(actions, -1, 1))
        np.testing.assert_array_equal(found.rewards, np.concatenate([part.rewards for part in expected[key]]))
        np.testing.assert_array_equal(found.observations[-1], expected[key][-1].observations[-1])
        assert found.truncated

    minari = pytest.importorskip("minari", reason="needs the minari package")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("door-online-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (4, 17)
    assert [len(episode.rewards) for episode in dataset.iterate_episodes()] == [5, 5, 5, 2]
    assert dataset.env_spec.id == "AdroitHandDoor-v1"


def test_an_export_may_be_of_some_episodes_alone(door_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "good-v0"
    options = ["--output", str(output), "--success", "--whole-only"]
    assert cli.main(["replay", "export", str(door_run), *options]) == 0
    assert [float(e.rewards.sum()) for e in load_dataset([str(output)], spec=DOOR.spec).episodes] == [-3.0, -1.0]
    metadata = json.loads((output / "data" / "metadata.json").read_text())
    provenance = json.loads(metadata["provenance"])
    assert provenance["filter"] == {"origin": "online", "success": True}
    assert provenance["whole_only"] is True
    assert provenance["run_id"] == "made"


def test_an_export_that_finds_no_room_is_told_and_leaves_nothing(door_run: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = fill(disk)
        done = subprocess.run(
            [sys.executable, "-m", "launcher", "replay", "export", str(door_run), "--output", str(disk / "door-v0")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr == f"error: {disk / 'door-v0'}: cannot be written: No space left on device\n"
        assert list(disk.iterdir()) == [filler]


def test_an_export_that_cannot_be_written_is_refused_before_the_stream_is_read(
    door_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    # No episode fits either, which only reading the stream would show.
    words = ["replay", "export", str(door_run), "--output", str(tmp_path / "file" / "a-v0"), "--min-return", "1"]
    assert cli.main(words) == 2
    assert "a-v0: cannot be written: " in capfd.readouterr().err


def test_actions_are_exported_in_the_environments_bounds_and_come_back(tmp_path: Path) -> None:
    actions = np.array([[0.5], [-1.0], [1.7]], dtype=np.float32)
    draw = np.random.default_rng(0)
    observations = draw.standard_normal((4, 3)).astype(np.float32)
    rewards = np.array([-1, -2, -3], dtype=np.float32)
    trajectory = Trajectory(observations, actions, rewards, False, True, Origin(0, 1, 0, 1, 0, 0))
    with made_run(tmp_path / "run", ExperimentConfig(run=PENDULUM)) as (_directory, client):
        fill_streams(client, PENDULUM, [trajectory], None)
    output = tmp_path / "swing-v0"
    assert cli.main(["replay", "export", str(tmp_path / "run"), "--output", str(output)]) == 0
    (as_stored,) = load_dataset([str(output)], spec=PENDULUM.spec, action_bounds=((-1000.0,), (1000.0,))).episodes
    np.testing.assert_allclose(as_stored.actions * 1000, [[1.0], [-2.0], [2.0]], rtol=1e-4)
    (found,) = load_dataset([str(output)], spec=PENDULUM.spec, action_bounds=((-2.0,), (2.0,))).episodes
    np.testing.assert_allclose(found.actions, [[0.5], [-1.0], [1.0]], atol=1e-6)
    space = json.loads(json.loads((output / "data" / "metadata.json").read_text())["action_space"])
    assert (space["low"], space["high"]) == ([-2.0], [2.0])
    assert cli.main(["dataset", "inspect", str(output), "--env", "Pendulum-v1"]) == 0
    assert cli.main(["replay", "ls", str(tmp_path / "run"), "--success"]) == 2


def test_a_run_that_is_up_is_read_too_and_damage_is_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        fill_streams(client, DOOR, door_stream(), None)
        client.xadd(Keys("made").online, {"m": b"no message"})
        with directory.held():
            assert directory.holder() is not None
            assert cli.main(["replay", "ls", str(directory.path)]) == 0
            out = words(capfd.readouterr().out)
            assert "7 trajectories" in out
            assert "damaged messages left out: 1, see `launcher doctor`" in out
            output = tmp_path / "live-v0"
            assert cli.main(["replay", "export", str(directory.path), "--output", str(output)]) == 0
            assert "damaged messages left out: 1" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words_of_command", "message"),
    [
        (["show", "RUN", "seed/x"], "expected an entry as `launcher replay ls` names it"),
        (["show", "RUN", "99999999999999999999999-0"], "expected an entry as `launcher replay ls` names it"),
        (["show", "RUN", "18446744073709551616-0"], "expected an entry as `launcher replay ls` names it"),
        (["show", "RUN", "1-18446744073709551616"], "expected an entry as `launcher replay ls` names it"),
        (["show", "RUN", "\N{ARABIC-INDIC DIGIT ONE}-0"], "expected an entry as `launcher replay ls` names it"),
        (["show", "RUN", "18446744073709551615-18446744073709551615"], "there is no entry 1844"),
        (["show", "RUN", "1-0"], "there is no entry 1-0 (any more)"),
        (["ls", "RUN", "--limit", "-1"], "--limit: expected at least 0, got -1"),
        (["ls", "RUN", "--origin", "offline"], "origin"),
        (["export", "RUN", "--output", "name"], "expected a name that ends in a version"),
        (["export", "RUN", "--output", "a-v0", "--min-return", "1"], "expected at least one episode to write"),
        (["ls", "."], "holds no run"),
    ],
)
def test_a_mistake_gets_one_message_and_leaves_nothing(
    words_of_command: list[str],
    message: str,
    door_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["replay", *[str(door_run) if word == "RUN" else word for word in words_of_command]]) == 2
    out, err = capfd.readouterr()
    assert message in out + err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_who_reads_a_stopped_run_says_that_it_is_no_launcher(door_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_lock, "_LOOKS_S", 0.0)  # nobody only looks at the lock here
    directory = RunDirectory(door_run)
    config = load_run_config(directory.config)
    with redis_of(directory, config):
        assert directory.holder() is None
        assert directory.reader() is not None
        with pytest.raises(RunDirectoryInUse, match="try again when it has ended"), redis_of(directory, config):
            pass
    assert directory.reader() is None


@pytest.mark.parametrize("was_read_before", [False, True])
def test_a_run_that_is_up_without_a_launcher_is_read_too(was_read_before: bool, tmp_path: Path) -> None:
    with made_run(tmp_path / "run", ExperimentConfig(run=DOOR)) as (directory, client):
        if was_read_before:
            with directory.held(reads=True):
                pass
        fill_streams(client, DOOR, door_stream(), None)
        with service_at_work(directory), redis_of(directory, DOOR) as found:
            assert found.xlen(Keys("made").online) == client.xlen(Keys("made").online)
            assert directory.reader() is None
    assert directory.lock.exists() == was_read_before


def test_a_run_that_never_came_up_is_told_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.config.write_text(ExperimentConfig(run=DOOR).to_toml())
    run.lock.touch()
    assert cli.main(["replay", "ls", str(run.path)]) == 2
    assert "the run never came up" in capfd.readouterr().err
