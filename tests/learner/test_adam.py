from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from learner.adam import Adam

SHAPES = ((3, 4), (4,), (2, 1, 5))


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 6),
    learning_rate=st.floats(1e-5, 1.0),
    weight_decay=st.sampled_from((0.0, 1e-4, 0.3)),
    decoupled=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_moves_as_torchs_own_bit_by_bit(
    seed: int, steps: int, learning_rate: float, weight_decay: float, *, decoupled: bool
) -> None:
    mine, theirs = parameters(seed), parameters(seed)
    adam = Adam(mine, learning_rate=learning_rate, weight_decay=weight_decay, decoupled=decoupled)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    other = kind(theirs, lr=learning_rate, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed + 1)
    for one in mine:
        one.grad = torch.zeros_like(one)
    for _ in range(steps):
        for one, two in zip(mine, theirs, strict=True):
            two.grad = torch.randn(two.shape, generator=generator)
            assert one.grad is not None
            one.grad.copy_(two.grad)  # in place, as the passes write it
        adam.step()
        other.step()
    for one, two in zip(mine, theirs, strict=True):
        assert torch.equal(one, two)
        for slot, kept in adam.moments(one).items():
            assert torch.equal(kept, other.state[two][slot]), slot


def test_what_is_copied_into_the_moments_counts() -> None:
    """A checkpoint restores them in place."""
    mine = parameters(0)
    for one in mine:
        one.grad = torch.ones_like(one)
    adam = Adam(mine, learning_rate=0.1)
    adam.step()
    saved = [(p.detach().clone(), {k: v.clone() for k, v in adam.moments(p).items()}) for p in mine]
    adam.step()
    after = [p.detach().clone() for p in mine]
    for parameter, (value, slots) in zip(mine, saved, strict=True):
        with torch.no_grad():
            parameter.copy_(value)
        for slot, kept in adam.moments(parameter).items():
            kept.copy_(slots[slot])
    adam.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, after, strict=True))


def test_a_copy_goes_its_own_way() -> None:
    mine = parameters(0)
    for one in mine:
        one.grad = torch.ones_like(one)
    adam = Adam(mine, learning_rate=0.1)
    adam.step()
    before = [p.detach().clone() for p in mine]
    copy.deepcopy(adam).step()
    assert all(torch.equal(p, q) for p, q in zip(mine, before, strict=True))


def test_refuses_a_step_without_gradients() -> None:
    with pytest.raises(AssertionError, match="gradients are made first"):
        Adam(parameters(0), learning_rate=0.1).step()


def test_a_learner_starts_without_torchs_compiler() -> None:
    program = (
        "import sys, torch; from learner.config import LearnerConfig; from learner.update import make_state;"
        "from replay_service.experience import ExperienceSpec;"
        "import learner.learner;"
        "make_state(LearnerConfig(), ExperienceSpec('pen', 45, 24, 200), seed=0, device=torch.device('cpu'));"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
