"""The commands about pictures, videos and the data themselves, added to the command line by `launcher.cli`.

Heavy imports (matplotlib, h5py, MuJoCo) stay inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from launcher.learning_curves import Axis, Metric
from replay_service.errors import ConfigError


def add_data_commands(app: App, dataset_app: App) -> None:
    """Register this module's commands."""
    app.command(plot)
    dataset_app.command(dataset_inspect, name="inspect")


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

    Runs of one environment and one preset are one curve; several environments are panels side by side. Seeds are
    averaged only at evaluation points where all seeds of the group have data.

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
    from launcher.learning_curves import make_curves, merge, read_evaluations, write_rows
    from launcher.plot import check_picture_name, describe_group, draw_curves, parse_reference
    from launcher.run_directory import find_run

    check_picture_name(output)
    paths = runs or (find_run(None).path,)
    if label and len(label) != len(paths):
        raise ConfigError(f"--label: expected one for each of {len(paths)} runs, got {len(label)}")
    labels = label or (None,) * len(paths)
    rows = merge([(str(p), read_evaluations(p, label=name)) for p, name in zip(paths, labels, strict=True)])
    curves = make_curves(rows, metric=metric, axis=x)
    references = [parse_reference(text, [curve.env for curve in curves]) for text in reference]
    if csv is not None:
        write_rows(csv, rows)
        print(f"{csv}: {len(rows)} evaluations")
    draw_curves(curves, output, metric=metric, axis=x, references=references)
    for curve in curves:
        left_out = f"; {curve.points_left_out} points that not all seeds have are left out of the mean"
        print(f"{curve.env}: {describe_group(curve)}{left_out if curve.points_left_out else ''}")
    print(output)
    return 0


def dataset_inspect(source: str, /, *, env: str | None = None, plot: Path | None = None) -> int:
    """Show what is in a dataset, and whether a run would take it; exit code 1 when something is wrong with the data.

    Episodes, lengths, returns as stored and recomputed, success, dimensions, range of the actions, NaN, metadata.

    Parameters
    ----------
    source
        What --dataset would be given: a Minari id or directory, D4RL HDF5, DAPG pickle, .npy of paths or .npz.
    env
        Environment to compare with. Default: the task that the dimensions speak for.
    plot
        Picture of the histograms to write, .png or .svg.
    """
    from rich.console import Console

    from launcher.dataset_inspection import inspect

    if plot is not None:
        from launcher.plot import check_picture_name

        check_picture_name(plot, "--plot")
    return inspect(source, env=env, plot=plot, console=Console())
