"""How much slower is an actor than its physics, and where does a step's time go?

The actor is environment, policy, packing and sending, to a real Redis. Beside it stand `env.step` of the bare
gymnasium environment and MuJoCo's own `mj_step`, with the actions that the actor chose, from the same states. All three
take turns, an episode of 200 steps each.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # as actors run

import statistics
import time

import mujoco
import numpy as np
from numpy.typing import NDArray

from actors.environment import make_environment
from actors.outbox import Outbox
from actors.policy import NumpyPolicy
from actors.rollout import Rollout
from benchmarks.arguments import take_no_arguments
from benchmarks.record import compared, limited, report
from benchmarks.synthetic import CHUNK_STEPS, service
from replay_service.policy_weights import PolicySpec, PolicyWeights
from replay_service.trajectory_stream import TrajectoryWriter

EPISODES = 60
LOWEST_SHARE_OF_ENV = 0.90
LOWEST_SHARE_OF_PHYSICS = 0.75
LARGEST_PART = 0.10


def some_weights(hidden_sizes: tuple[int, ...] = (256, 256)) -> PolicyWeights:
    """A policy as at the start of a run."""
    draw = np.random.default_rng(0)
    spec = PolicySpec(39, 30, hidden_sizes, True)
    return PolicyWeights(
        spec=spec, version=1, grad_steps=1, env_steps=0, published_unix_seconds=time.time(),
        weights=tuple(0.05 * draw.standard_normal(shape, dtype=np.float32) for shape in spec.layer_shapes),
        biases=tuple(np.zeros(shape[0], dtype=np.float32) for shape in spec.layer_shapes),
        log_std=np.full(30, -2.0, dtype=np.float32),
    )  # fmt: skip


class BareEnvironment:
    """The gymnasium environment alone, in the actor's states."""

    def __init__(self, seed: int) -> None:
        self._env = make_environment("relocate").env
        self._env.reset(seed=seed)

    def seconds(self, actions: NDArray[np.float64]) -> float:
        """Time of one episode with these actions and the reset behind it."""
        began = time.perf_counter()
        for action in actions:
            self._env.step(action)
        self._env.reset()
        return time.perf_counter() - began


class BarePhysics:
    """MuJoCo alone, in the actor's states."""

    def __init__(self, seed: int) -> None:
        self._env = make_environment("relocate").env
        self._env.reset(seed=seed)

    def seconds(self, actions: NDArray[np.float64]) -> float:
        """Time of the steps of one episode; the controls are made before, the reset comes after."""
        inner = self._env.unwrapped
        model, data, frames = inner.model, inner.data, inner.frame_skip
        controls = inner.act_mean + np.clip(actions, -1.0, 1.0) * inner.act_rng
        began = time.perf_counter()
        for control in controls:
            data.ctrl[:] = control
            mujoco.mj_step(model, data, nstep=frames)
        elapsed = time.perf_counter() - began
        self._env.reset()
        return elapsed


def main() -> None:
    take_no_arguments(__doc__)
    generator = np.random.default_rng(7)
    seed = int(np.random.default_rng(7).integers(2**31))  # as the rollout draws it
    policy = NumpyPolicy(some_weights())
    names = ("actor", "collecting", "sending", "policy", "bare env.step", "bare mj_step")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    bare, physics = BareEnvironment(seed), BarePhysics(seed)
    with service() as where:
        writer = TrajectoryWriter(where.connect(), where.keys, where.run.spec, actor_id=0)
        epoch = writer.register()
        rollout = Rollout(make_environment("relocate"), generator, actor_id=0, epoch=epoch)
        outbox = Outbox(writer, resend_window_s=5.0)
        for _ in range(EPISODES):
            began = time.perf_counter()
            trajectory, outcome = rollout.collect(policy, CHUNK_STEPS, lambda: False)
            collected = time.perf_counter()
            outbox.deliver(trajectory, outcome, want_steps=CHUNK_STEPS)
            sent = time.perf_counter()
            for observation, action in zip(trajectory.observations[1:], trajectory.actions, strict=True):
                policy.act(observation, action)
            seconds["policy"].append(time.perf_counter() - sent)
            seconds["actor"].append(sent - began)
            seconds["collecting"].append(collected - began)
            seconds["sending"].append(sent - collected)
            bounded = np.clip(trajectory.actions, -1.0, 1.0).astype(np.float64)
            seconds["bare env.step"].append(bare.seconds(bounded))
            seconds["bare mj_step"].append(physics.seconds(bounded))
    # The quarter of the episodes in which others disturbed least.
    time_of = {name: statistics.quantiles(values, n=4)[0] for name, values in seconds.items()}
    rate = {name: CHUNK_STEPS / value for name, value in time_of.items()}
    report(compared("one actor", rate["actor"], "env steps/s", against="bare env.step", other=rate["bare env.step"],
                    target=LOWEST_SHARE_OF_ENV))  # fmt: skip
    report(compared("one actor, against physics", rate["actor"], "env steps/s", against="bare mj_step",
                    other=rate["bare mj_step"], target=LOWEST_SHARE_OF_PHYSICS))  # fmt: skip
    parts = {
        "physics": time_of["bare mj_step"],
        "gymnasium's observation, reward and wrappers": time_of["bare env.step"] - time_of["bare mj_step"],
        "policy": time_of["policy"],
        "noise, judging and stacking": time_of["collecting"] - time_of["bare env.step"] - time_of["policy"],
        "packing and sending": time_of["sending"],
    }
    for name, value in parts.items():
        share = max(0.0, 100 * value / time_of["actor"])
        bound = None if name == "physics" else 100 * LARGEST_PART
        report(limited(f"one actor: {name}", share, "% of a step", at_most=bound))


if __name__ == "__main__":
    main()
