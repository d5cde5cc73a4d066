from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from learner import awac
from learner.config import PRESETS, LearnerConfig
from learner.cuda_graph import capture
from learner.gradient_steps import GradientSteps, capture_for
from learner.mirror import ReplayMirror, Transitions
from learner.report import MetricMeans
from learner.update import LearnerState, UpdateMetrics, fit_observation_scale, gradient_step, make_state, named_tensors
from tests.learner.test_update import SPEC, VARIANTS, small_config

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
META = torch.device("meta")
BATCH_SIZE = 16
Step = Callable[[], Tensor]


def some_transitions(count: int, *, seed: int) -> Transitions:
    draw = np.random.default_rng(seed)
    shapes = ((count, 3), (count, 2), (count,), (count,), (count, 3))
    return Transitions(*(draw.standard_normal(shape, dtype=np.float32) for shape in shapes))


def filled_mirror(device: torch.device = CPU, *, online: bool = True) -> ReplayMirror:
    mirror = ReplayMirror(observation_dim=3, action_dim=2, seed_steps=40, capacity=100, evict_seed=False, device=device)
    mirror.insert_seed(some_transitions(40, seed=0))
    if online:
        mirror.insert_online(some_transitions(30, seed=1), first_step=0)
    return mirror


def state_for(config: LearnerConfig, device: torch.device = CPU) -> LearnerState:
    state = make_state(config, SPEC, seed=0, device=device)
    for name, tensor in named_tensors(state).items():
        if name.startswith(("policy.layers", "critics.weights")):
            with torch.no_grad():
                tensor.mul_(3.0)  # so that a step moves every part
    return state


def bits(state: LearnerState) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in named_tensors(state).items()}


def take(steps: GradientSteps, count: int, *, offline_fraction: float | None = 0.5) -> list[Tensor]:
    return [steps.take(BATCH_SIZE, offline_fraction=offline_fraction).clone() for _ in range(count)]


@pytest.fixture
def plainly() -> tuple[LearnerState, list[Tensor]]:
    """Eight steps without a graph."""
    config = small_config(offline_fraction=0.5)
    state = state_for(config)
    return state, take(GradientSteps(state, filled_mirror(), config, capture=None), 8)


class Captures:
    """A capture that replays by taking the step again, and keeps count."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, step: Step, _generator: torch.Generator) -> Step:
        self.captured += 1

        def replay() -> Tensor:
            self.replayed += 1
            return step()

        return replay


class TestTheFirstReplay:
    def test_is_one_step_like_any_other(self, plainly: tuple[LearnerState, list[Tensor]]) -> None:
        config, captures = small_config(offline_fraction=0.5), Captures()
        state = state_for(config)
        found = take(GradientSteps(state, filled_mirror(), config, capture=captures), 8)
        assert bits(state) == bits(plainly[0])
        assert all(torch.equal(one, other) for one, other in zip(found, plainly[1], strict=True))
        assert (captures.captured, captures.replayed) == (1, 5)

    def test_is_made_for_each_kind_of_batch(self) -> None:
        config, captures, mirror = small_config(), Captures(), filled_mirror(online=False)
        state = state_for(config)
        steps = GradientSteps(state, mirror, config, capture=captures)
        take(steps, 6)
        assert captures.captured == 1  # without online data half a batch of seed data is a batch of all data
        take(steps, 3, offline_fraction=None)
        assert captures.captured == 1
        mirror.insert_online(some_transitions(30, seed=1), first_step=0)
        take(steps, 6)
        assert captures.captured == 2
        for _ in range(5):
            steps.take(BATCH_SIZE // 2, offline_fraction=None)
        assert captures.captured == 3
        assert state.grad_steps == 20

    @pytest.mark.parametrize(
        "fault", ["learns nothing", "learns twice", "moves a copy", "tells other metrics", "fails"]
    )
    def test_is_not_trusted(
        self, fault: str, plainly: tuple[LearnerState, list[Tensor]], caplog: pytest.LogCaptureFixture
    ) -> None:
        config = small_config(offline_fraction=0.5)
        state = state_for(config)

        def faulty(step: Step, _generator: torch.Generator) -> Step:
            if fault == "fails":
                step()  # as far as it came
                raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
            if fault == "tells other metrics":
                return lambda: step() * 1.1
            if fault == "learns twice":
                return lambda: (step(), step())[0]
            if fault == "moves a copy":
                state.critics.weights[0].data = state.critics.weights[0].data.clone()
                kept = state.critics.weights[0].data.clone()

                def replay() -> Tensor:
                    found = step()
                    state.critics.weights[0].data.copy_(kept)
                    return found

                return replay
            return lambda: torch.zeros(len(UpdateMetrics._fields))

        steps = GradientSteps(state, filled_mirror(), config, capture=faulty)
        with caplog.at_level(logging.INFO):
            found = take(steps, 8)
        assert bits(state) == bits(plainly[0])
        assert all(torch.equal(one, other) for one, other in zip(found, plainly[1], strict=True))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "every operation is launched on its own" in caplog.text
        assert "Compile with" not in caplog.text


def test_a_step_is_a_draw_and_a_gradient_step() -> None:
    config = small_config()
    state, other, mirror = state_for(config), state_for(config), filled_mirror()
    (found,) = take(GradientSteps(state, mirror, config, capture=None), 1)
    batch = mirror.sample(BATCH_SIZE, other.generator, offline_fraction=0.5)
    assert torch.equal(found, torch.stack(tuple(gradient_step(other, batch, config))))
    assert bits(state) == bits(other)


def test_a_cpu_and_whoever_asks_for_it_do_without() -> None:
    assert capture_for(CPU, LearnerConfig()) is None
    assert capture_for(CUDA, LearnerConfig(cuda_graph=False)) is None
    assert capture_for(CUDA, LearnerConfig()) is capture


CONFIGS: dict[str, dict[str, Any]] = {**{f"preset {name}": preset for name, preset in PRESETS.items()}, **VARIANTS}


@pytest.fixture
def no_generators_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CPUs has no generators on another device; torch's meta tensors take any."""

    class Generator(torch.Generator):
        def __new__(cls, device: object = None) -> Self:
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)


@pytest.mark.usefixtures("no_generators_elsewhere")
class TestOnAnotherDevice:
    """What a graph can hold: everything stays on the device, and nothing waits for it.

    Torch's meta tensors stand for a GPU's: they have no numbers, so that none can be read back, and torch refuses to
    mix them with a CPU's.
    """

    @pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
    def test_a_step_never_leaves_it(self, changes: dict[str, Any]) -> None:
        config = small_config(**changes)
        state = make_state(config, SPEC, seed=0, device=META)
        if config.normalise_observations:
            fit_observation_scale(state, torch.zeros(8, 3, device=META))
        mirror, means = filled_mirror(META), MetricMeans()
        steps = GradientSteps(state, mirror, config, capture=None)
        for fraction in (None, 0.5):
            metrics = steps.take(BATCH_SIZE, offline_fraction=fraction)
            assert metrics.device == META
            means.add(metrics)
        mirror.insert_online(some_transitions(90, seed=2), first_step=30)
        assert {t.device for name, t in named_tensors(state).items() if name != "generator"} == {META}

    @pytest.mark.parametrize("fault", ["reads a number back", "uses one of the CPU's"])
    def test_who_leaves_it_is_found_out(self, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def loss(q: Tensor, target: Tensor) -> Tensor:
            return q.sum() * (float(q.mean()) if fault == "reads a number back" else torch.ones(1))

        monkeypatch.setattr(awac, "critic_loss", loss)
        state = make_state(small_config(), SPEC, seed=0, device=META)
        with pytest.raises(RuntimeError, match="meta"):
            GradientSteps(state, filled_mirror(META), small_config(), capture=None).take(8, offline_fraction=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_replays_on_a_gpu_are_the_steps(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(**changes)
    states = [make_state(config, SPEC, seed=0, device=CUDA) for _ in range(2)]
    mirror = filled_mirror(CUDA)
    with caplog.at_level(logging.INFO):
        for state, how in zip(states, (None, capture), strict=True):
            steps = GradientSteps(state, mirror, config, capture=how)
            for _ in range(20):
                steps.take(BATCH_SIZE, offline_fraction=0.5)
    assert "a replay does what the step does" in caplog.text
    one, other = (named_tensors(state) for state in states)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
