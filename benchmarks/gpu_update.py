"""How many AWAC updates a second does a GPU make, sampling included, as one graph, launched one by one, by autograd?

Autograd's side is the same update as most code has it: modules, losses, `backward`, torch's Adam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.arguments import take_no_arguments
from benchmarks.learner_update import SPEC, filled_mirror
from benchmarks.record import compared, report, skipped
from benchmarks.timing import Timer, alternate
from learner import awac
from learner.config import LearnerConfig
from learner.gradient_steps import GradientSteps, capture_for
from learner.mirror import ReplayMirror, TransitionBatch
from learner.update import LearnerState, make_state

BATCH_SIZES = (256, 1024, 4096, 32768)
TARGETED = 1024
LOWEST_RATE = 5_000.0
LOWEST_SPEEDUP = 10.0
_HIDDEN = (256, 256, 256, 256)
_TRANSITIONS = 1_000_000
_ROUNDS = 5
_ROUND_S = 1.0


def plain_update(state: LearnerState, config: LearnerConfig) -> Callable[[TransitionBatch], None]:
    """The same gradient step by autograd, for the published recipe."""
    policy, critics, targets = state.policy, state.critics, state.target_critics
    decay = config.policy_weight_decay
    policy_adam = torch.optim.Adam(policy.parameters(), lr=config.policy_learning_rate, weight_decay=decay)
    critic_adam = torch.optim.Adam(critics.parameters(), lr=config.critic_learning_rate)

    def update(batch: TransitionBatch) -> None:
        mean, log_std = policy(batch.observations), policy.log_std()
        with torch.no_grad():
            noise = torch.empty_like(batch.actions).normal_(generator=state.generator)
            next_actions = policy(batch.next_observations) + log_std.exp() * noise
            target = awac.td_target(batch.rewards, batch.discounts, targets(batch.next_observations, next_actions))
        q = critics(batch.observations, batch.actions)
        critic_loss = awac.critic_loss(q, target)
        with torch.no_grad():
            value = critics(batch.observations, mean).amin(dim=0)
            weights = awac.advantage_weights(
                q.amin(dim=0) - value, temperature=config.temperature, weighting=config.weighting,
                advantage_clip=config.advantage_clip,
            )  # fmt: skip
        policy_loss = awac.policy_loss(awac.gaussian_log_prob(mean, log_std, batch.actions), weights)
        for adam, loss in ((critic_adam, critic_loss), (policy_adam, policy_loss)):
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        with torch.no_grad():
            for theirs, own in zip(targets.parameters(), critics.parameters(), strict=True):
                theirs.lerp_(own, config.target_update_rate)

    return update


def on_device(step: Callable[[], object], device: torch.device) -> Timer:
    """Time steps until the device has done them."""

    def take(repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            step()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000.0

    return take


def measure(mirror: ReplayMirror, batch_size: int, device: torch.device) -> None:
    """One batch size."""
    config = LearnerConfig(batch_size=batch_size, policy_hidden_sizes=_HIDDEN, critic_hidden_sizes=_HIDDEN)

    def steps_of(capture: bool) -> Callable[[], object]:
        state = make_state(config, SPEC, seed=0, device=device)
        steps = GradientSteps(state, mirror, config, capture=capture_for(device, config) if capture else None)
        return lambda: steps.take(batch_size, offline_fraction=None)

    state = make_state(config, SPEC, seed=0, device=device)
    plain = plain_update(state, config)
    sides = {
        "graph": steps_of(capture=True),
        "one by one": steps_of(capture=False),
        "autograd": lambda: plain(mirror.sample(batch_size, state.generator, offline_fraction=None)),
    }
    once = on_device(sides["autograd"], device)
    once(10)
    found = alternate(
        {name: on_device(step, device) for name, step in sides.items()},
        rounds=_ROUNDS, repeats=max(10, round(_ROUND_S / (once(10) / 10))),
    )  # fmt: skip
    rate = {name: 1.0 / timing.best for name, timing in found.items()}
    targeted = batch_size == TARGETED
    report(compared(
        f"AWAC update on a GPU, batch {batch_size}, 4x256", rate["graph"], "updates/s", against="by autograd",
        other=rate["autograd"], target=LOWEST_SPEEDUP if targeted else None,
        note=f"{torch.cuda.get_device_name(device)}; launched one by one {rate['one by one']:.0f}"
        + (f"; the aim is {LOWEST_RATE:g}" if targeted else ""),
    ))  # fmt: skip


def main() -> None:
    take_no_arguments(__doc__)
    if not torch.cuda.is_available():
        report(skipped("AWAC update on a GPU", "no CUDA GPU here"))
        return
    device = torch.device("cuda")
    mirror = filled_mirror(_TRANSITIONS, device)
    for batch_size in BATCH_SIZES:
        measure(mirror, batch_size, device)


if __name__ == "__main__":
    main()
