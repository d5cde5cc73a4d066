"""`launcher plot`: what is in the picture, equal bytes for equal data, and every mistake of the user's."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from launcher import cli, plot
from launcher.experiment import ExperimentConfig, LauncherConfig
from launcher.learning_curves import make_curves, merge, read_evaluations
from launcher.plot import Reference, parse_reference
from launcher.run_directory import RunDirectory
from learner.config import LearnerConfig
from replay_service.config import ReplayConfig, RunConfig
from replay_service.errors import ConfigError
from tests.launcher.test_learning_curves import run_file


def make_runs(folder: Path) -> list[str]:
    """Three seeds of pen as run directories, one seed of door as a file."""
    paths = []
    for seed in range(3):
        directory = folder / f"pen-{seed}"
        directory.mkdir()
        run_file(directory / "evaluations.csv", (0, 0, 0.0), (1, 0, 0.5), (2, 5000, 0.6 + seed / 10), seed=seed)
        paths.append(str(directory))
    return [*paths, str(run_file(folder / "door.csv", (1, 0, 0.1), (2, 5000, 0.2), env="door"))]


def test_the_picture_shows_every_group_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "curves.svg"
    options = ["--output", str(output), "--csv", str(tmp_path / "all.csv"), "--reference", "door:paper=0.98"]
    assert cli.main(["plot", *make_runs(tmp_path), *options]) == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 4 * 2
    ET.parse(output)
    picture = output.read_text()
    # matplotlib draws letters as outlines and keeps the text beside them as a comment.
    for text in (
        "pen",
        "door",
        "online environment steps",
        "success at the last step, of 50 episodes",
        "paper (mean of 3 seeds)",
        "paper (1 seed)",
        "after offline pretraining, before online steps",
        "band: lowest to highest seed",
        "paper (0.98)",
    ):
        assert f"<!-- {text} -->" in picture
    printed = capsys.readouterr().out
    assert "pen: paper (mean of 3 seeds" in printed
    assert "left out" not in printed


def test_equal_data_give_equal_bytes_in_another_process_too(tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    for suffix in (".png", ".svg"):
        outputs = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
        assert cli.main(["plot", *runs, "--output", str(outputs[0])]) == 0
        command = [sys.executable, "-m", "launcher", "plot", *runs, "--output", str(outputs[1])]
        subprocess.run(command, check=True, capture_output=True)
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        assert outputs[0].read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_points_that_not_all_seeds_have_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_runs(tmp_path)[:3]
    run_file(tmp_path / "pen-2" / "evaluations.csv", (1, 0, 0.5), seed=2)
    assert cli.main(["plot", *runs, "--output", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "pen: paper (mean of 3 seeds, where all have been judged, " in printed
    assert "left out of the mean: points that not all seeds have, 1" in printed


def test_two_seeds_are_drawn_as_two_lines_of_which_none_is_their_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_file(tmp_path / f"{seed}.csv", (1, 0, seed / 2), (2, 5000, seed), seed=seed) for seed in (0, 1)]
    assert cli.main(["plot", *map(str, runs), "--output", str(tmp_path / "a.svg")]) == 0
    assert "pen: paper (2 seeds, a line each, 50 episodes an evaluation)" in capsys.readouterr().out
    rows = merge([(run.name, read_evaluations(run)) for run in runs])
    curves = make_curves(rows, metric="success_final", axis="env_steps")
    with plot.picture_style():
        (panel,) = plot._figure(curves, "success_final", "env_steps", ()).axes
    drawn = [np.asarray(line.get_ydata()).tolist() for line in panel.get_lines()]
    assert [heights for heights in drawn if heights] == [[0.0, 0.0], [0.5, 1.0], [0.0, 0.5]]
    assert not [band for band in panel.collections if len(band.get_paths())]


def test_labels_take_the_place_of_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_runs(tmp_path)[:2]
    options = ["--label", "a", "--label", "b", "--metric", "episode_return", "--x", "grad_steps"]
    assert cli.main(["plot", *runs, *options, "--output", str(tmp_path / "a.svg")]) == 0
    assert "pen: a (1 seed, 50" in capsys.readouterr().out
    picture = (tmp_path / "a.svg").read_text()
    assert "<!-- episode return, of 50 episodes -->" in picture
    assert "<!-- gradient steps -->" in picture


def test_a_long_label_leaves_the_panel_its_room(tmp_path: Path) -> None:
    (run, *_) = make_runs(tmp_path)
    label = " ".join(["a rather long name of a group"] * 6)
    assert cli.main(["plot", run, "--label", label, "--output", str(tmp_path / "a.svg")]) == 0
    texts = re.findall("<!-- (.*?) -->", (tmp_path / "a.svg").read_text(), flags=re.DOTALL)
    lines = [line for text in texts for line in text.splitlines() if "a rather long name" in line]
    assert len(lines) > 2
    assert max(map(len, lines)) < 60


def test_a_label_is_shown_as_it_is_given(tmp_path: Path) -> None:
    (run, *_) = make_runs(tmp_path)
    for label in ("_hidden", "$\\foo$", "a_$"):
        options = ["--label", label, "--reference", f"{label}=0.5", "--output", str(tmp_path / "a.svg")]
        assert cli.main(["plot", run, *options]) == 0
        texts = [text.strip() for text in re.findall("<!-- (.*?) -->", (tmp_path / "a.svg").read_text())]
        assert {f"{label} (1 seed)", f"{label} (0.5)"} <= set(texts)


def test_the_record_of_another_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other, *_ = make_runs(tmp_path)
    RunDirectory(Path(other)).write_config(ExperimentConfig().to_toml())
    record = Path(other) / "evaluations.csv"
    before = record.read_bytes()
    assert cli.main(["plot", run, "--csv", str(record), "--output", str(tmp_path / "a.svg")]) == 2
    assert "which holds a run's evaluations" in capsys.readouterr().err
    assert record.read_bytes() == before


def make_configured_runs(folder: Path, *configs: ExperimentConfig) -> list[str]:
    """The first runs of `make_runs`, each with the configuration that `launcher up` would write."""
    runs = make_runs(folder)[: len(configs)]
    for run, config in zip(runs, configs, strict=True):
        RunDirectory(Path(run)).write_config(config.to_toml())
    return runs


def test_runs_with_other_settings_are_no_seeds_of_one_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_configured_runs(
        tmp_path,
        ExperimentConfig(run=RunConfig(env="pen", seed=0)),
        ExperimentConfig(run=RunConfig(env="pen", seed=1)),
        ExperimentConfig(run=RunConfig(env="pen", seed=2, actors=8), learner=LearnerConfig(temperature=2.0)),
    )
    output = tmp_path / "a.svg"
    assert cli.main(["plot", *runs, "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert f"{runs[0]} and {runs[2]} are no seeds of one curve (pen, paper)" in said
    assert "actors (2 and 8), learner.temperature (0.5 and 2.0)" in said
    assert not output.exists()
    one_label = [word for _run in runs for word in ("--label", "a")]
    assert cli.main(["plot", *runs, *one_label, "--output", str(output)]) == 2
    apart = ["--label", "narrow", "--label", "narrow", "--label", "wide"]
    assert cli.main(["plot", *runs, *apart, "--output", str(output)]) == 0
    assert "pen: narrow (2 seeds, a line each" in capsys.readouterr().out
    files = [f"{run}/evaluations.csv" for run in runs]
    assert cli.main(["plot", *files, "--output", str(output)]) == 0
    assert "mean of 3 seeds" in capsys.readouterr().out


def test_seeds_may_differ_in_machine_and_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = ExperimentConfig(
        run=RunConfig(
            env="pen", seed=1, num_env_steps=5000, run_id="pen-1", redis_url="redis://there:6379", discovery_port=9464,
            metrics_host="node", replay=ReplayConfig(port=6390, max_memory_mb=512, server_path="/usr/bin/redis-server"),
        ),
        learner=LearnerConfig(threads=8, checkpoint_every_s=5.0, evaluate_every_env_steps=5000),
        launcher=LauncherConfig(device="cuda", ray_address="auto"),
    )  # fmt: skip
    runs = make_configured_runs(tmp_path, ExperimentConfig(run=RunConfig(env="pen", run_id="pen-0")), elsewhere)
    assert cli.main(["plot", *runs, "--output", str(tmp_path / "a.svg")]) == 0
    assert "2 seeds, a line each" in capsys.readouterr().out


MISTAKES = {
    "another format": (["--output", "curves.jpg"], "expected a file that ends in .png or .svg, got curves.jpg"),
    "labels that do not match": (["--label", "a"], "--label: expected one for each of 2 runs, got 1"),
    "a reference without a number": (["--reference", "paper"], "--reference: expected NAME=NUMBER"),
    "a reference that is not finite": (["--reference", "paper=nan"], "--reference: expected NAME=NUMBER"),
    "no such run": (["no-such-run"], "no-such-run: no such file"),
    "a run without evaluations": (["."], "evaluations.csv: no such file: the run has not evaluated yet"),
    "an unknown metric": (["--metric", "success"], "success_final"),
    "output below a file": (["--output", "pen-0/evaluations.csv/a.png"], "cannot be written"),
    "rows in the place of the picture": (
        ["--output", "same.png", "--csv", "pen-0/../same.png"],
        "--csv: expected another file than the picture that --output names, got pen-0/../same.png",
    ),
    "rows of a run to be overwritten": (
        ["--csv", "pen-1/evaluations.csv"],
        "--csv: expected a file to write, got pen-1",
    ),
    "a reference in a panel that is not drawn": (["--reference", "door:paper=1"], "expected one of the panels pen"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_gets_one_message_and_no_picture(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options, message = MISTAKES[mistake]
    runs = make_runs(tmp_path)[:2]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plot", *runs, *options]) == 2
    out, err = capfd.readouterr()
    assert message in out + err
    assert "Traceback" not in out + err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reference_may_belong_to_one_panel() -> None:
    assert parse_reference("paper=0.98", ["pen"]) == Reference("paper", 0.98)
    assert parse_reference("pen:paper=1", ["door", "pen"]) == Reference("paper", 1.0, "pen")
    assert parse_reference("see: paper=-2.5", ["pen"]) == Reference("see: paper", -2.5)
    with pytest.raises(ConfigError):
        parse_reference("=0.5", ["pen"])


def test_other_commands_do_not_load_matplotlib() -> None:
    code = "import sys, launcher.cli; print([m for m in ('matplotlib', 'h5py', 'torch', 'mujoco') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_groups_that_were_judged_on_different_numbers_of_episodes_say_so_each(tmp_path: Path) -> None:
    fifty = run_file(tmp_path / "fifty.csv", (1, 0, 0.1), (2, 5000, 0.2))
    ten = run_file(tmp_path / "ten.csv", (1, 0, 0.1), (2, 5000, 0.2), preset="other")
    ten.write_text(ten.read_text().replace(",50,1.5,", ",10,1.5,"))
    assert cli.main(["plot", str(fifty), str(ten), "--output", str(tmp_path / "a.svg")]) == 0
    picture = (tmp_path / "a.svg").read_text()
    for text in ("success at the last step", "paper (1 seed, 50 episodes an evaluation)",
                 "other (1 seed, 10 episodes an evaluation)"):  # fmt: skip
        assert f"<!-- {text} -->" in picture
