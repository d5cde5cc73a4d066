"""Settings of the learner: AWAC's hyper-parameters, each with its source, and the named presets.

Sources: [hand] the authors' published script `examples/awac/hand/awac1.py` (rlkit ac45a9d), [mujoco] the same for
locomotion, [paper] Nair et al. 2020 (arXiv:2006.09359), Table 2 and appendix A.3. The defaults are [hand].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from replay_service.config import require_at_least, require_between, require_positive
from replay_service.errors import ConfigError

SHAPING_SETTINGS = (
    "policy_hidden_sizes",
    "critic_hidden_sizes",
    "critic_layer_norm",
    "num_critics",
    "min_log_std",
    "max_log_std",
    "std_bounding",
    "bounded_mean",
    "normalise_observations",
    "policy_average_rate",
    "evaluated_average_rate",
    "max_q",
)
"""Settings that fix the meaning of the stored tensors; a run cannot be resumed with others."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The `[learner]` table."""

    batch_size: int = 1024
    """Transitions a gradient step, online. [hand], [paper]"""
    offline_batch_size: int = 128
    """Transitions a gradient step in the offline phase: the authors' trainer default, set by no script. [hand]"""
    discount: float = 0.99
    """Discount factor gamma. [hand], [paper]"""
    n_step: int = 1
    """Steps of reward before the bootstrap. 1: one-step targets. No return reaches beyond the end of a message, which
    is as long as `rollout_length`. [hand] 1."""
    target_update_rate: float = 0.005
    """Polyak rate tau of the target critics, applied at every gradient step. [hand], [paper]"""
    target_initialisation: Literal["independent", "copy"] = "independent"
    """Whether the target critics start with weights of their own, as rlkit's never-copied ones, or as copies. [hand]"""
    policy_learning_rate: float = 3e-4
    """Adam's step size for the policy. [hand], [paper]"""
    critic_learning_rate: float = 3e-4
    """Adam's step size for the critics. [hand], [paper]"""
    policy_weight_decay: float = 1e-4
    """Weight decay on every policy parameter, the std logits included. [hand], [paper]"""
    policy_weight_decay_form: Literal["l2", "decoupled"] = "l2"
    """l2: a penalty in Adam's gradient [hand]. decoupled: AdamW, as jaxrl."""
    policy_loss_reduction: Literal["mean", "sum"] = "mean"
    """Over the batch [hand]. sum: as d3rlpy; Adam does not see the scale, but an L2 penalty weighs B times less."""
    policy_average_rate: float = 1.0
    """Polyak rate of the policy that actors get: an average of the policy over the last 1 / rate gradient steps.
    1: the policy itself. [hand] 1."""
    evaluated_average_rate: float | None = None
    """Polyak rate of the policy that is evaluated: an average over about the last tenth of all gradient steps, until
    that is 1 / rate steps, and over the last 1 / rate from there on. None: the evaluator gets what actors get. [hand]
    none."""
    policy_hidden_sizes: tuple[int, ...] = (256, 256)
    """Hidden layers of the policy. [hand] 256-256, [paper] four of 256."""
    critic_hidden_sizes: tuple[int, ...] = (256, 256)
    """Hidden layers of each critic. [hand] 256-256, [paper] four of 256."""
    critic_layer_norm: bool = False
    """Layer normalisation before each hidden ReLU of the critics. [hand] none."""
    num_critics: int = 2
    """Critics in the ensemble. [hand], [paper] twin critics."""
    num_target_critics: int = 2
    """Critics whose minimum forms the target, drawn anew each step when fewer than `num_critics`. [hand] both."""
    bounded_mean: bool = True
    """Whether the policy's mean action passes a tanh. [hand] true, CORL false."""
    min_log_std: float = -6.0
    """Lower bound of the policy's log standard deviation. [hand]"""
    max_log_std: float = 0.0
    """Upper bound of the policy's log standard deviation. [hand]"""
    initial_log_std: float | None = None
    """Log standard deviation at the start; None: the middle of both bounds. [hand] -3, CORL and jaxrl 0."""
    std_bounding: Literal["sigmoid", "clamp"] = "sigmoid"
    """How the log standard deviation stays within its bounds: a sigmoid of a free parameter [hand], or cut off as
    CORL and jaxrl do."""
    normalise_observations: bool = False
    """Whether networks see observations less their mean over the seed data, over their standard deviation. [hand]
    false, CORL true."""
    temperature: float = 0.5
    """Lagrange multiplier lambda (rlkit: beta): advantages are divided by it. [hand] 0.5, [paper] 0.3, [mujoco] 2."""
    advantage_clip: float | None = 0.5
    """Upper bound of the advantage, applied before the division by the temperature; None: no bound. [hand] 0.5."""
    weighting: Literal["batch_softmax", "exponential", "state_normalised", "uniform"] = "batch_softmax"
    """batch_softmax: softmax of the batch's advantages, times the batch size [hand]. exponential: exp(A / lambda),
    bounded by `max_weight`. state_normalised: exp(A / lambda) / Z(s), the paper's Table 1 'Use Z(s)'. uniform: every
    weight 1, which is behaviour cloning."""
    normaliser_samples: int = 10
    """Actions of the policy that estimate Z(s) when `weighting` is 'state_normalised'. [paper] 10."""
    max_weight: float | None = None
    """Upper bound of an exponential or state-normalised weight; None: no bound. Unused by batch_softmax."""
    normalise_weights: bool = False
    """Scale exponential or state-normalised weights to mean 1 over the batch, after `max_weight`."""
    value_estimate: Literal["mean_action", "sample"] = "mean_action"
    """V(s) as the Q of the policy's mean action [hand], or the mean Q of `value_samples` sampled actions [mujoco]."""
    value_samples: int = 1
    """Sampled actions behind V(s) when `value_estimate` is 'sample'. [mujoco] 1."""
    advantage_critics: Literal["min", "mean"] = "min"
    """min: the smallest Q(s, a) of any critic less the smallest V(s) of any [hand]. mean: the mean over critics of
    Q(s, a) - V(s), each critic against itself, so that what it gets wrong about the state does not count."""
    update_order: Literal["together", "critics_first"] = "together"
    """together: advantages from the critics before this step [hand]. critics_first: from the critics that this step
    has moved already, as jaxrl and d3rlpy."""
    clip_policy_actions: bool = False
    """Whether actions sampled for targets, V(s) and Z(s) are clipped to [-1, 1]. [hand] false, CORL and
    d3rlpy true."""
    clip_stored_actions: bool = False
    """Whether actions of the data, offline and online, are clipped to [-1, 1] before the learner sees them; offline
    data of the hand tasks are clipped always. [hand] false; jaxrl, CORL and d3rlpy true."""
    max_q: float | None = 0.0
    """Clamp of the critics' output from above, online and target: rewards of -1 and 0 never pay more than 0. [hand]"""
    min_target: float | None = None
    """Lower bound of the critic's target; None: none. [hand]"""
    max_target: float | None = None
    """Upper bound of the critic's target; None: none, `max_q` bounds it already. [hand]"""
    use_terminals: bool = False
    """Whether a terminal state stops the bootstrap. The hand tasks never terminate. [hand] false, [mujoco] true."""
    offline_fraction: float | None = None
    """Share of each online batch that is drawn from the seed data; None: uniform over all data. [hand] uniform."""

    publish_every_grad_steps: int = 100
    """Gradient steps between two published policy versions."""
    evaluate_every_env_steps: int = 10_000
    """Online environment steps between two evaluated policy versions. 0: only the offline and the last one."""
    evaluate_untrained: bool = True
    """Also evaluate the policy before its first update (version 0)."""
    report_every_s: float = 2.0
    """Seconds between two reports of the learner's metrics."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""
    threads: int = 0
    """Threads of torch on the CPU. 0: one for batches up to 512, which more do not speed up, else one a core."""
    cuda_graph: bool = True
    """Whether a GPU is given a gradient step as one CUDA graph, once a replay was seen to do what the step does; a CPU
    takes no notice."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "offline_batch_size", "n_step", "num_critics", "num_target_critics",
                     "value_samples", "normaliser_samples", "publish_every_grad_steps",
                     "keep_checkpoints"):  # fmt: skip
            require_at_least(f"learner.{name}", getattr(self, name), 1)
        for name in ("policy_learning_rate", "critic_learning_rate", "temperature", "report_every_s",
                     "checkpoint_every_s"):  # fmt: skip
            require_positive(f"learner.{name}", getattr(self, name))
        for name in ("policy_weight_decay", "evaluate_every_env_steps", "threads"):
            require_at_least(f"learner.{name}", getattr(self, name), 0)
        require_between("learner.discount", self.discount, 0.0, 1.0)
        require_between("learner.target_update_rate", self.target_update_rate, 0.0, 1.0)
        require_between("learner.policy_average_rate", self.policy_average_rate, 0.0, 1.0)
        require_positive("learner.policy_average_rate", self.policy_average_rate)
        if self.evaluated_average_rate is not None:
            require_between("learner.evaluated_average_rate", self.evaluated_average_rate, 0.0, 1.0)
            require_positive("learner.evaluated_average_rate", self.evaluated_average_rate)
        require_at_least("learner.num_critics", self.num_critics, self.num_target_critics)
        if self.max_weight is not None:
            require_positive("learner.max_weight", self.max_weight)
        if self.offline_fraction is not None:
            require_between("learner.offline_fraction", self.offline_fraction, 0.0, 1.0)
        for name in ("policy_weight_decay", "min_log_std", "max_log_std", "advantage_clip", "max_q", "min_target",
                     "max_target"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"learner.{name}: expected a finite number, got {value:g}")
        if self.min_target is not None and self.max_target is not None and self.min_target >= self.max_target:
            raise ConfigError(f"learner.min_target: expected below {self.max_target:g}, got {self.min_target:g}")
        if self.min_log_std >= self.max_log_std:
            raise ConfigError(f"learner.min_log_std: expected below {self.max_log_std:g}, got {self.min_log_std:g}")
        if self.initial_log_std is not None and not self.min_log_std < self.initial_log_std < self.max_log_std:
            raise ConfigError(
                f"learner.initial_log_std: expected between {self.min_log_std:g} and {self.max_log_std:g}, "
                f"got {self.initial_log_std:g}"
            )
        for name in ("policy_hidden_sizes", "critic_hidden_sizes"):
            for size in getattr(self, name):
                require_at_least(f"learner.{name}", size, 1)


PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "paper": {
        "policy_hidden_sizes": (256, 256, 256, 256),
        "critic_hidden_sizes": (256, 256, 256, 256),
        "temperature": 0.3,
        "advantage_clip": None,
    },
    "locomotion": {
        "policy_hidden_sizes": (256, 256, 256, 256),
        "temperature": 2.0,
        "advantage_clip": None,
        "value_estimate": "sample",
        "max_q": None,
        "use_terminals": True,
    },
    "strong": {
        "batch_size": 256,
        "offline_batch_size": 256,
        "policy_average_rate": 0.001,
        "evaluated_average_rate": 0.0002,
        "num_critics": 4,
        "critic_layer_norm": True,
        "target_initialisation": "copy",
        "n_step": 3,
        "max_q": None,
        "min_target": -100.0,
        "max_target": 0.0,
        "weighting": "exponential",
        "advantage_clip": None,
        "max_weight": 20.0,
        "normalise_weights": True,
        "advantage_critics": "mean",
        "offline_fraction": 0.5,
    },
    "behaviour-cloning": {"weighting": "uniform", "offline_batch_size": 256},
}
"""Settings of the `[learner]` table that differ from its defaults, by preset.

published: the authors' hand script. paper: Table 2 and appendix A.3 (temperature 0.3 for manipulation), with what the
text leaves open taken from the script. locomotion: the authors' MuJoCo script, for environments with dense rewards and
terminal states. strong: our own, for the hand tasks: four layer-normalised critics with bounded three-step targets,
sharper weights from the advantage of each critic, half of each batch from the demonstrations, and averages of the
policy in its place: a short one acts, a longer one is evaluated; after 5,000 updates offline. behaviour-cloning: every
weight 1; the critics learn along and change nothing.
"""
