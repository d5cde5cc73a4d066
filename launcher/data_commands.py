"""The commands about pictures, videos and the data themselves, added to the command line by `launcher.cli`.

Heavy imports (matplotlib, h5py, MuJoCo) stay inside the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from launcher.curve_axes import Axis, Metric
from launcher.replay_filter import ReplayFilter
from replay_service.errors import ConfigError

if TYPE_CHECKING:
    from replay_service.config import RunConfig
    from replay_service.redis_client import RedisClient

_FILMED_EPISODES = 3


def add_data_commands(app: App) -> None:
    """Register this module's commands."""
    app.command(plot)
    app.command(evaluate, name="eval")
    app.command(video)
    app.command(export)
    app.command(report)
    replay_app = App(name="replay", help="Look into a run's replay buffer, while it is up or afterwards.")
    app.command(replay_app)
    replay_app.command(replay_ls, name="ls")
    replay_app.command(replay_show, name="show")
    replay_app.command(replay_export, name="export")


def plot(
    *runs: Path,
    output: Path = Path("learning-curves.png"),
    metric: Metric = "success_final",
    x: Axis = "env_steps",
    label: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    reference: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    csv: Path | None = None,
) -> int:
    """Draw learning curves of runs: the mean over seeds, a band from the lowest to the highest seed, thin seeds.

    Runs of one environment, one preset and the same settings are one curve; several environments are panels side by
    side. Seeds are averaged only at evaluation points where all seeds of the group have data; two seeds are two lines.

    Parameters
    ----------
    runs
        Run directories, or CSV files with the columns of a run's evaluations.csv. Default: the run that was started
        last in this folder.
    output
        Picture to write, .png or .svg.
    metric
        What to show.
    x
        What the points are counted in.
    label
        Name of a run's group in place of its preset: one for each run, in their order.
    reference
        A horizontal line, NAME=NUMBER; ENV:NAME=NUMBER draws it in one panel alone.
    csv
        Also write the rows of all runs into this file, from the offline point on, a label in the place of the preset.
    """
    from launcher.learning_curves import (
        make_curves,
        merge,
        read_evaluations,
        refuse_other_settings,
        refuse_to_overwrite,
        write_rows,
    )  # fmt: skip
    from launcher.plot import check_picture_name, describe_group, draw_curves, is_mean, parse_reference
    from launcher.run_directory import find_run

    check_picture_name(output)
    paths = runs or (find_run(None).path,)
    if label and len(label) != len(paths):
        raise ConfigError(f"--label: expected one for each of {len(paths)} runs, got {len(label)}")
    if csv is not None and csv.resolve() == output.resolve():
        raise ConfigError(f"--csv: expected another file than the picture that --output names, got {csv}")
    for option, written in (("--output", output), ("--csv", csv)):
        refuse_to_overwrite(paths, written, option)
    labels = label or (None,) * len(paths)
    sources = [(path, read_evaluations(path, label=name)) for path, name in zip(paths, labels, strict=True)]
    refuse_other_settings(sources)
    rows = merge([(str(path), found) for path, found in sources])
    curves = make_curves(rows, metric=metric, axis=x)
    references = [parse_reference(text, [curve.env for curve in curves]) for text in reference]
    if csv is not None:
        write_rows(csv, rows)
        print(f"{csv}: {len(rows)} evaluations")
    draw_curves(curves, output, metric=metric, axis=x, references=references)
    for curve in curves:
        left_out = f"; left out of the mean: points that not all seeds have, {curve.points_left_out}"
        print(f"{curve.env}: {describe_group(curve)}{left_out if is_mean(curve) and curve.points_left_out else ''}")
    print(output)
    return 0


def replay_ls(
    run: Path | None = None,
    /,
    *,
    chosen: Annotated[ReplayFilter, Parameter(name="*")] = ReplayFilter(),  # noqa: B008 - frozen
    limit: int = 20,
) -> int:
    """List trajectories, the newest last, and say what all that fit are worth.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    limit
        Most rows; 0 for all.
    """
    from rich.console import Console

    from launcher.replay_contents import list_trajectories
    from replay_service.config import require_at_least

    require_at_least("--limit", limit, 0)
    with _replay_of(run) as (client, config):
        list_trajectories(client, config, chosen, limit=limit, console=Console())
    return 0


def replay_show(run: Path, entry: str, /, *, ends: int = 5) -> int:
    """Show one trajectory: where it comes from, what it achieved, its first and last steps.

    Parameters
    ----------
    run
        The run directory.
    entry
        Its name in `launcher replay ls`.
    ends
        Steps shown from each end; 0 for all.
    """
    from rich.console import Console

    from launcher.replay_contents import find_entry, show_trajectory
    from replay_service.config import require_at_least

    require_at_least("--ends", ends, 0)
    with _replay_of(run) as (client, config):
        show_trajectory(find_entry(client, config, entry), config, ends=ends, console=Console())
    return 0


def replay_export(
    run: Path | None = None,
    /,
    *,
    output: Path,
    chosen: Annotated[ReplayFilter, Parameter(name="*")] = ReplayFilter(),  # noqa: B008 - frozen
    whole_only: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write episodes as a Minari dataset, which Minari loads and --dataset takes.

    The parts of an episode are joined, and the conditions are put to episodes as a whole. What is left of an episode
    whose other parts are missing (evicted, or not played to the end) is truncated where it stops.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    output
        Minari directory to write; its name ends in a version, as in pen-online-v0.
    whole_only
        Leave episodes out of which a part is missing.
    """
    from launcher.replay_export import export_episodes
    from replay_service.datasets import check_minari_name

    check_minari_name(output)
    with _replay_of(run) as (client, config):
        done = export_episodes(client, config, chosen, output, whole_only=whole_only)
    missing = f"; episodes of which a part is missing: {done.incomplete:,}"
    print(f"{output}: {done.episodes:,} episodes, {done.steps:,} steps{missing}")
    if done.damaged:
        print(f"damaged messages left out: {done.damaged:,}, see `launcher doctor`")
    return 0


def evaluate(
    run: Path | None = None,
    /,
    *,
    version: int | None = None,
    episodes: int = 200,
    first_seed: int = 2_000_000,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Judge a policy on starts that nobody has played, of a run that is up or has stopped.

    The mean action is played, as by the evaluator, whose episodes always have the same starts.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    version
        Policy version. Default: the newest that was evaluated. A run keeps the newest 64 evaluated versions, and the
        newest of all.
    episodes
        How many.
    first_seed
        Seed of the first start; the next ones follow. A run's evaluator begins at --evaluator.seed, 1,000,000.
    json
        One line of JSON in place of sentences.
    """
    import json as json_format

    from launcher.evaluation import judge
    from launcher.kept_policies import pick_policy
    from replay_service.keys import Keys

    with _replay_of(run) as (client, config):
        chosen = pick_policy(client, Keys(config.run_id), version)
    found = judge(config, chosen, episodes=episodes, first_seed=first_seed)
    print(json_format.dumps(found.fields()) if json else "\n".join(found.lines()))
    return 0


def video(
    run: Path | None = None, /, *, version: int | None = None, episodes: int | None = None, output: Path | None = None
) -> int:
    """Film the evaluator's own episodes as an MP4 in real time, the success flag drawn in.

    Needs the extra `video`, and a renderer: EGL, else OSMesa; MUJOCO_GL chooses another.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    version
        Policy version. Default: the newest that was evaluated. A run keeps the newest 64 evaluated versions, and the
        newest of all.
    episodes
        How many of the evaluator's episodes, from its first seed on. Default: 3.
    output
        MP4 to write. Default: version-N.mp4 in the folder videos of the run directory.
    """
    from actors.config import EvaluatorConfig
    from launcher.kept_policies import pick_policy
    from launcher.run_directory import find_run
    from launcher.video import check_packages, film
    from launcher.whole_file import file_to_write
    from replay_service.config_file import load_role_config
    from replay_service.keys import Keys

    if output is not None and output.suffix.lower() != ".mp4":
        raise ConfigError(f"--output: expected a file that ends in .mp4, got {output}")
    check_packages()
    directory = find_run(run)
    evaluator = load_role_config(directory.config, "evaluator", EvaluatorConfig)
    with _replay_of(directory.path) as (client, config):
        chosen = pick_policy(client, Keys(config.run_id), version)
    path = output or directory.videos / f"version-{chosen[0].version}.mp4"
    file_to_write(path)  # refuses here, before anything is filmed
    wanted = min(_FILMED_EPISODES, evaluator.episodes) if episodes is None else episodes
    print("\n".join(film(config, evaluator, chosen, path, episodes=wanted).lines()))
    return 0


def export(
    run: Path | None = None,
    /,
    *,
    format: Literal["onnx", "safetensors", "npz"],
    version: int | None = None,
    output: Path | None = None,
) -> int:
    """Write a policy to a file that other programs run without this project; docs/data.md has an example.

    The file's network gives the mean action, which the evaluator plays; log_std is in it for exploration.

    Parameters
    ----------
    run
        The run directory. Default: the run that was started last in this folder.
    format
        onnx (extra `onnx`), safetensors or npz.
    version
        Policy version. Default: the newest that was evaluated. A run keeps the newest 64 evaluated versions, and the
        newest of all.
    output
        File to write. Default: policy-N.onnx, .safetensors or .npz in the run directory.
    """
    from launcher.kept_policies import pick_policy
    from launcher.policy_export import encode_policy
    from launcher.run_directory import find_run
    from launcher.whole_file import whole_file
    from replay_service.keys import Keys

    directory = find_run(run)
    with _replay_of(directory.path) as (client, config):
        policy, evaluation = pick_policy(client, Keys(config.run_id), version)
    encoded = encode_policy(policy, config, format)
    path = output or directory.path / f"policy-{policy.version}.{format}"
    with whole_file(path) as partial:
        partial.write_bytes(encoded)
    judged = "" if evaluation is None or evaluation.success_any is None else f", success {evaluation.success_any:.0%}"
    print(f"{path}: policy version {policy.version}, {policy.env_steps:,} env steps{judged}")
    return 0


def report(run: Path | None = None, /, *, output: Path | None = None) -> int:
    """Write one HTML page about a run: configuration, curves, throughput, ledger, restarts, evaluations, videos.

    The page holds everything in itself: it can be sent by mail, and opens without a network.

    Parameters
    ----------
    run
        The run directory, up or stopped. Default: the run that was started last in this folder.
    output
        File to write. Default: report.html in the run directory.
    """
    import sys

    from launcher.report import write_report
    from launcher.run_directory import find_run

    directory = find_run(run)
    path = output or directory.path / "report.html"
    for missing in write_report(directory, path):
        print(missing, file=sys.stderr)
    print(path)
    return 0


@contextmanager
def _replay_of(run: Path | None) -> Iterator[tuple[RedisClient, RunConfig]]:
    from launcher.run_connection import redis_of
    from launcher.run_directory import find_run
    from replay_service.config_file import load_run_config

    directory = find_run(run)
    config = load_run_config(directory.config)
    with redis_of(directory, config) as client:
        yield client, config
