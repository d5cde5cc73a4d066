"""The commands `launcher dataset demos | inspect | rollout`, added to the command line by `launcher.cli`.

Heavy imports (h5py, MuJoCo) stay inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


def add_dataset_commands(app: App) -> None:
    """Register this module's commands."""
    dataset_app = App(name="dataset", help="Make and judge datasets.")
    app.command(dataset_app)
    dataset_app.command(dataset_demos, name="demos")
    dataset_app.command(dataset_inspect, name="inspect")
    dataset_app.command(dataset_rollout, name="rollout")


def dataset_demos(
    *,
    env: str,
    source: str,
    output: Path,
    noise_std: float,
    noise_correlation: float = 0.0,
    lag: float = 0.0,
    episodes: int = 25,
    steps: int = 10_000,
    seed: int = 0,
) -> int:
    """Remake a shipped dataset: clone an expert, record some noisy episodes, judge what cloning them gives.

    Parameters
    ----------
    env
        pen, door or relocate.
    source
        Expert data: a Minari id or directory, HDF5, DAPG pickle or .npz.
    output
        Dataset to write (.npz).
    noise_std
        Standard deviation of the noise on the expert's mean action.
    noise_correlation
        Correlation of one step's noise with the next one's, below 1.
    lag
        How much of the last action is in the next, below 1: a slower hand.
    episodes
        Demonstrations to record.
    steps
        Gradient steps of behaviour cloning.
    seed
        Of cloning and recording.
    """
    from launcher.demonstrations import make_demonstrations

    return make_demonstrations(
        env=env,
        source=source,
        output=output,
        episodes=episodes,
        noise=(noise_std, noise_correlation),
        lag=lag,
        steps=steps,
        seed=seed,
    )


def dataset_rollout(
    *,
    env: str,
    source: Annotated[list[str], Parameter(negative="")],
    output: Path,
    policies: int = 10,
    bc_steps: int = 10_000,
    episodes: int = 500,
    seed: int = 0,
) -> int:
    """Make the paper's second dataset: clone policies from demonstrations, record what they do, good or bad.

    The result is a Minari dataset of 500 episodes of 200 steps, half of them with sampled, half with mean actions, to
    be given to `launcher up` beside the demonstrations: --dataset DEMONSTRATIONS --dataset ROLLOUTS.

    Parameters
    ----------
    env
        pen, door or relocate.
    source
        Demonstrations: a Minari id or directory, HDF5, DAPG pickle or .npz; several may be given.
    output
        Minari directory to write; its name ends in a version, as in pen-bc-v0.
    policies
        Policies to clone, with one seed each.
    bc_steps
        Gradient steps of behaviour cloning, of each policy. The authors: 10,000 for pen, 200,000 and more for the
        others.
    episodes
        Episodes of all policies together.
    seed
        Of the first policy, and of the rollouts.
    """
    from launcher.cloned_rollouts import make_cloned_rollouts

    return make_cloned_rollouts(
        env=env, sources=source, output=output, policies=policies, steps=bc_steps, episodes=episodes, seed=seed
    )


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
