"""The learner's work: draw a batch, take a gradient step on it. On a GPU captured once, proved, and replayed.

A GPU takes longer to be told of the small operations of a step than to do them, so they are captured as a graph
(`learner.cuda_graph`). A graph that reads a tensor which has moved would learn nonsense without a word; so the first
replay of each is compared with the step itself, from the same state, and a graph that differs is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from learner import cuda_graph
from learner.config import LearnerConfig
from learner.mirror import ReplayMirror
from learner.update import LearnerState, gradient_step, named_tensors

Capture = Callable[[Callable[[], Tensor], torch.Generator], Callable[[], Tensor]]
"""(step, its generator) -> its replay; see `learner.cuda_graph.capture`."""

_Kind = tuple[int, float | None]
"""Batch size, and the share of seed data where a batch is drawn from two sides: what a graph is captured for."""
_EAGER_STEPS_FIRST = 3
"""Steps that make the buffers and load the kernels, before a step is captured."""
_RELATIVE_TOLERANCE = 1e-3
_ABSOLUTE_TOLERANCE = 1e-5

_log = logging.getLogger(__name__)


class GradientSteps:
    """Gradient steps on batches of one mirror.

    Args:
        state: is changed by every step.
        mirror: where batches are drawn.
        config: which variant of AWAC.
        capture: what turns a step into its replay; None launches every operation of every step. `capture_for` says
            which of them a device wants.
    """

    def __init__(
        self, state: LearnerState, mirror: ReplayMirror, config: LearnerConfig, *, capture: Capture | None
    ) -> None:
        self._state, self._mirror, self._config, self._capture = state, mirror, config, capture
        self._taken: dict[_Kind, int] = {}
        """Steps of each kind that were not replayed."""
        self._replays: dict[_Kind, Callable[[], Tensor]] = {}

    def take(self, batch_size: int, *, offline_fraction: float | None) -> Tensor:
        """Take one.

        Args:
            batch_size: B.
            offline_fraction: as in `ReplayMirror.sample`.

        Returns:
            (M,) on the device, in the order of `UpdateMetrics`; valid until the next step.
        """

        def step() -> Tensor:
            batch = self._mirror.sample(batch_size, self._state.generator, offline_fraction=offline_fraction)
            return torch.stack(tuple(gradient_step(self._state, batch, self._config)))

        if self._capture is None:
            return step()
        kind = (batch_size, offline_fraction if self._mirror.has_both else None)
        replay = self._replays.get(kind)
        if replay is not None:
            taken = self._state.grad_steps
            metrics = replay()
            self._state.grad_steps = taken + 1  # Python's part of the step is not in the graph
            return metrics
        self._taken[kind] = self._taken.get(kind, 0) + 1
        if self._taken[kind] <= _EAGER_STEPS_FIRST:
            return step()
        return self._capture_and_prove(kind, step, self._capture)

    def _capture_and_prove(self, kind: _Kind, step: Callable[[], Tensor], capture: Capture) -> Tensor:
        state = self._state
        before, grad_steps = _copied(state), state.grad_steps
        try:
            replay = capture(step, state.generator)
            _restore(state, before)
            expected = {"metrics": step().clone(), **_copied(state)}
            _restore(state, before)
            metrics = replay()
            why = _difference({"metrics": metrics, **named_tensors(state)}, expected)
        except RuntimeError as error:
            why = f"{error}".partition("\n")[0]
        if why:
            _log.warning("no CUDA graph: %s; every operation is launched on its own, which is slower", why)
            self._capture = None
            _restore(state, before)
            metrics = step()
        else:
            _log.info("CUDA graph of a step with batch %d: a replay does what the step does", kind[0])
            self._replays[kind] = replay
        state.grad_steps = grad_steps + 1
        return metrics


def capture_for(device: torch.device, config: LearnerConfig) -> Capture | None:
    """How steps are captured on a device; None where they are not."""
    return cuda_graph.capture if device.type == "cuda" and config.cuda_graph else None


def _copied(state: LearnerState) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(state).items()}


@torch.no_grad()
def _restore(state: LearnerState, saved: dict[str, Tensor]) -> None:
    for name, tensor in named_tensors(state).items():
        tensor.copy_(saved[name])
    state.generator.set_state(saved["generator"].cpu())


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    for name, tensor in expected.items():
        if name == "generator":
            continue  # its numbers were seen in what came of them
        if not torch.allclose(found[name], tensor, rtol=_RELATIVE_TOLERANCE, atol=_ABSOLUTE_TOLERANCE, equal_nan=True):
            return f"a replayed step leaves other {name} than the step itself"
    return ""
