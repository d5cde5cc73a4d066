"""Environments: the three binary tasks against the raw simulators, and any other gymnasium environment as it is."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest

from actors.environment import Environment, Step, make_environment
from replay_service.errors import EnvironmentUnknown
from replay_service.tasks import TASKS

OWN_ENVIRONMENT = """
import gymnasium, numpy

class Reach(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,), numpy.float32)
    at = numpy.zeros(1, numpy.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at[:] = self.np_random.uniform(-1, 1, 1)
        return self.at, {}

    def step(self, action):
        self.at[:] += action  # it always returns the same array
        met = bool(abs(self.at) < 0.1)
        return self.at, float(met) - 1.0, False, False, {"success": met}

gymnasium.register("Reach-v0", Reach, max_episode_steps=2)
"""


Array = npt.NDArray[np.float32]

TASK_NAMES = ("pen", "door", "relocate")
ENV_IDS = {"pen": "AdroitHandPen-v1", "door": "AdroitHandDoor-v1", "relocate": "AdroitHandRelocate-v1"}


@pytest.fixture
def make() -> Iterator[Callable[..., Environment]]:
    """`make_environment`, with everything closed at the end."""
    made: list[Environment] = []

    def make_one(env: str, **options: Any) -> Environment:
        made.append(make_environment(env, **options))
        return made[-1]

    yield make_one
    for environment in made:
        environment.close()


Make = Callable[..., Environment]


def is_solved(task: str, o: Array) -> bool:
    """Success by the authors' thresholds, number by number (recipe section 4.2)."""
    if task == "pen":
        distance = math.dist(o[39:42], (0.0, 0.0, 0.0))
        return distance < 0.075 and sum(float(x) * float(y) for x, y in zip(o[33:36], o[36:39], strict=True)) > 0.95
    if task == "door":
        return float(o[28]) >= 1.35
    return math.dist(o[36:39], (0.0, 0.0, 0.0)) < 0.1


def solve(task: str, environment: Environment) -> None:
    """Put the simulation into a state in which the task is solved."""
    env = environment.env.unwrapped
    state = env.get_env_state()
    if task == "pen":
        state["desired_orien"] = np.array(env.data.xquat[env.obj_body_id])
    elif task == "door":
        positions = np.array(state["qpos"])
        positions[env.door_hinge_addrs] = 1.5
        state["qpos"] = positions
    else:
        state = {name: state[name] for name in ("obj_pos", "qpos", "qvel")}
        state["target_pos"] = np.array(env.data.xpos[env.obj_body_id])
    env.set_env_state(state)


def random_actions(environment: Environment, count: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (count, environment.spec.action_dim)).astype(np.float32)


class TestBinaryTasks:
    @pytest.mark.parametrize(("task", "dimensions"), [("pen", (45, 24)), ("door", (39, 28)), ("relocate", (39, 30))])
    def test_have_the_documented_shape(self, make: Make, task: str, dimensions: tuple[int, int]) -> None:
        spec = make(task).spec
        assert (spec.env, spec.observation_dim, spec.action_dim, spec.max_episode_steps) == (task, *dimensions, 200)
        assert TASKS[task].env_id == ENV_IDS[task]
        assert (TASKS[task].observation_dim, TASKS[task].action_dim) == dimensions

    @pytest.mark.parametrize("task", TASK_NAMES)
    def test_follow_the_raw_simulator_with_reward_success_minus_one_for_the_whole_episode(
        self, make: Make, task: str
    ) -> None:
        environment = make(task)
        raw = gymnasium.make(ENV_IDS[task], disable_env_checker=True).unwrapped
        raw_start, _ = raw.reset(seed=11)
        np.testing.assert_array_equal(environment.reset(seed=11), raw_start.astype(np.float32))
        for count, action in enumerate(random_actions(environment, 200), start=1):
            if count == 100:
                solve(task, environment)  # from here on the two differ in state, and are compared no more
            step = environment.step(action)
            if count < 100:
                raw_observation, _, _, _, info = raw.step(np.clip(action, -1, 1))
                # The same action but for the last bits of its rescaling, which the contacts amplify.
                np.testing.assert_allclose(step.observation, raw_observation, atol=1e-3)
                assert step.success == bool(info["success"])
            assert step.observation.dtype == np.float32
            assert step.success is is_solved(task, step.observation)
            assert step.reward == (0.0 if step.success else -1.0)
            assert not step.terminated
            assert step.truncated == (count == 200)
        raw.close()

    @pytest.mark.parametrize("task", TASK_NAMES)
    def test_pay_0_where_the_task_is_solved_and_do_not_end(self, make: Make, task: str) -> None:
        environment = make(task)
        environment.reset(seed=2)
        still = np.zeros(environment.spec.action_dim, dtype=np.float32)
        solve(task, environment)
        step = environment.step(still)
        assert (step.success, step.reward, step.terminated, step.truncated) == (True, 0.0, False, False)
        assert is_solved(task, step.observation)
        info = environment.env.unwrapped.step(still.astype(np.float64))[4]
        assert bool(info["success"])
        assert environment.step(still).reward == 0.0  # it is paid again for every step that holds the goal

    def test_take_another_horizon(self, make: Make) -> None:
        environment = make("pen", max_episode_steps=3)
        assert environment.spec.max_episode_steps == 3
        for _ in range(2):  # episodes
            environment.reset()
            assert [s.truncated for s in play(environment, random_actions(environment, 3))] == [False, False, True]

    def test_start_where_the_seed_says(self, make: Make) -> None:
        environment = make("relocate")
        first, unseeded, again = environment.reset(seed=5), environment.reset(), environment.reset(seed=5)
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, unseeded)
        np.testing.assert_array_equal(unseeded, environment.reset())  # the generator goes on from the seed, too


def play(environment: Environment, actions: Array) -> list[Step]:
    return [environment.step(action) for action in actions]


class TestOtherEnvironments:
    def test_pendulum_is_reached_by_rescaling_the_action(self, make: Make) -> None:
        environment = make("Pendulum-v1")
        raw = gymnasium.make("Pendulum-v1", disable_env_checker=True)
        spec = environment.spec
        assert (spec.observation_dim, spec.action_dim, spec.max_episode_steps) == (3, 1, 200)
        raw_start, _ = raw.reset(seed=1)
        np.testing.assert_array_equal(environment.reset(seed=1), raw_start)
        # Its torque is in [-2, 2]; 1.5 lies outside of the policy's range and is clipped to 1.
        for action, torque in ((-1.0, -2.0), (-0.5, -1.0), (0.0, 0.0), (0.25, 0.5), (1.0, 2.0), (1.5, 2.0)):
            step = environment.step(np.array([action], dtype=np.float32))
            raw_observation, raw_reward, *_ = raw.step(np.array([torque]))
            np.testing.assert_allclose(step.observation, raw_observation, rtol=1e-6)
            assert step.reward == pytest.approx(float(raw_reward))
            assert step.success is None
        raw.close()

    def test_an_action_that_leaves_the_range_is_clipped_before_the_environment_sees_it(
        self, make: Make, register: Callable[..., str]
    ) -> None:
        environment = make(register(lambda: Line(high=3.0)))  # a line that clips nothing itself
        environment.reset(seed=0)
        steps = play(environment, np.array([[0.5], [7.0], [-7.0]], dtype=np.float32))
        assert [float(s.observation[0]) for s in steps] == [1.5, 4.5, 1.5]

    def test_a_terminal_state_is_no_time_limit(self, make: Make) -> None:
        environment = make("InvertedPendulum-v5")
        environment.reset(seed=0)
        ends = [s for s in play_until_end(environment, np.ones(1, dtype=np.float32)) if s.terminated or s.truncated]
        assert [(s.terminated, s.truncated) for s in ends] == [(True, False)]

    def test_a_terminal_state_at_the_time_limit_is_terminal_and_not_truncated(self, make: Make) -> None:
        push = np.ones(1, dtype=np.float32)
        environment = make("InvertedPendulum-v5")
        environment.reset(seed=0)
        length = len(play_until_end(environment, push))
        short = make("InvertedPendulum-v5", max_episode_steps=length)
        short.reset(seed=0)
        last = play_until_end(short, push)[-1]
        assert (last.terminated, last.truncated) == (True, False)
        shorter = make("InvertedPendulum-v5", max_episode_steps=length - 1)
        shorter.reset(seed=0)
        last = play_until_end(shorter, push)[-1]
        assert (last.terminated, last.truncated) == (False, True)

    def test_an_environment_without_a_time_limit_gets_one(self, make: Make, register: Callable[..., str]) -> None:
        env_id = register(Line)
        assert make(env_id).spec.max_episode_steps == 1_000
        assert make(env_id, max_episode_steps=7).spec.max_episode_steps == 7

    def test_an_environment_that_truncates_by_itself_is_heard(self, make: Make, register: Callable[..., str]) -> None:
        environment = make(register(Line, max_episode_steps=50))
        environment.reset(seed=0)
        steps = play_until_end(environment, np.ones(1, dtype=np.float32))
        assert len(steps) == Line.LENGTH
        assert (steps[-1].terminated, steps[-1].truncated) == (False, True)

    def test_wrappers_that_belong_to_the_environment_stay(self, make: Make, register: Callable[..., str]) -> None:
        flat = make(register(lambda: gymnasium.wrappers.FlattenObservation(DictLine())))
        assert flat.spec.observation_dim == 3
        assert flat.reset(seed=0).tolist() == [0.0, 7.0, 8.0]

    def test_success_is_read_where_the_environment_tells_it(self, make: Make, register: Callable[..., str]) -> None:
        environment = make(register(Line))
        environment.reset(seed=0)
        assert [s.success for s in play(environment, np.ones((3, 1), dtype=np.float32))] == [False, False, True]


def play_until_end(environment: Environment, action: Array) -> list[Step]:
    steps: list[Step] = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        steps.append(environment.step(action))
    return steps


class TestRefusals:
    @pytest.mark.parametrize(("wrong", "meant"), [("reloacte", "relocate"), ("Pendulm-v1", "Pendulum-v1")])
    def test_an_unknown_name_is_answered_with_the_nearest(self, wrong: str, meant: str) -> None:
        with pytest.raises(EnvironmentUnknown, match=f"unknown environment '{wrong}'.* Did you mean '{meant}'"):
            make_environment(wrong)

    def test_a_discrete_action_space(self) -> None:
        with pytest.raises(EnvironmentUnknown, match=r"CartPole-v1: action space: .*one-dimensional Box, got Discrete"):
            make_environment("CartPole-v1")

    def test_a_dictionary_of_observations(self, register: Callable[..., str]) -> None:
        with pytest.raises(EnvironmentUnknown, match=r"observation space: expected a one-dimensional Box, got Dict"):
            make_environment(register(DictLine))

    def test_an_action_space_without_bounds(self, register: Callable[..., str]) -> None:
        with pytest.raises(EnvironmentUnknown, match="expected an action space with finite bounds"):
            make_environment(register(lambda: Line(high=np.inf)))

    def test_a_missing_package_is_named_and_the_environment_is_not_called_unknown(self) -> None:
        with pytest.raises(EnvironmentUnknown, match=r"^environment 'no_such_package:Foo-v0' needs a package"):
            make_environment("no_such_package:Foo-v0")

    def test_a_dependency_that_gymnasium_misses(self, register: Callable[..., str]) -> None:
        def needs_more() -> gymnasium.Env[Array, Array]:
            raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

        with pytest.raises(EnvironmentUnknown, match=r"needs a package that is not installed: Box2D"):
            make_environment(register(needs_more))

    def test_an_environment_that_breaks_while_it_is_made(self, register: Callable[..., str]) -> None:
        def broken() -> gymnasium.Env[Array, Array]:
            raise AssertionError("joint type")

        with pytest.raises(EnvironmentUnknown, match="cannot be made: AssertionError: joint type"):
            make_environment(register(broken))


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Put an environment of the test's own into gymnasium's registry, and take it out again."""
    ids: list[str] = []

    def register_one(entry_point: Callable[..., gymnasium.Env[Any, Array]], **options: Any) -> str:
        ids.append(f"awac-test/Line{len(ids)}-v0")
        gymnasium.register(ids[-1], entry_point, **options)
        return ids[-1]

    yield register_one
    for env_id in ids:
        del gymnasium.registry[env_id]


class Line(gymnasium.Env[Array, Array]):
    """A point on a line that is moved by the action, solved beyond 2.5, and cut by itself after five steps."""

    LENGTH = 5

    def __init__(self, high: float = 1.0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-high, high, (1,), np.float32)
        self.position, self.steps = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.position, self.steps = 0.0, 0
        return self.observation, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.position += float(action[0])
        self.steps += 1
        return self.observation, self.position, False, self.steps >= self.LENGTH, {"success": self.position > 2.5}

    @property
    def observation(self) -> Array:
        return np.array([self.position], dtype=np.float32)


class DictLine(gymnasium.Env[Any, Array]):
    """A line with a goal, as goal-conditioned environments have it."""

    def __init__(self) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {"at": box(-1, 1, (1,), np.float32), "goal": box(-9, 9, (2,), np.float32)}
        )
        self.action_space = box(-1, 1, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return {"at": np.zeros(1, dtype=np.float32), "goal": np.array([7, 8], dtype=np.float32)}, {}


def test_an_environment_of_a_users_own_is_imported_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reaching.py").write_text(OWN_ENVIRONMENT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    environment = make_environment("reaching:Reach-v0")
    assert (environment.spec.observation_dim, environment.spec.action_dim, environment.task) == (1, 1, None)
    position = environment.reset(seed=1)
    start = float(position[0])
    there = environment.step(-position)
    assert position[0] == start != 0.0
    assert (there.success, there.reward, there.truncated) == (True, 0.0, False)
    away = environment.step(np.ones(1, dtype=np.float32))
    assert there.observation[0] == 0.0 != away.observation[0]
    assert (away.success, away.reward, away.truncated) == (False, -1.0, True)
    environment.close()


def test_an_environment_is_drawn_or_says_what_is_missing(make: Make) -> None:
    environment = make("Pendulum-v1", render_mode="rgb_array")
    environment.reset(seed=0)
    if importlib.util.find_spec("pygame") is None:
        with pytest.raises(EnvironmentUnknown, match=r"Pendulum-v1 cannot be drawn: .*pygame"):
            environment.render()
    else:
        picture = environment.render()
        assert (picture.shape, picture.dtype) == ((500, 500, 3), np.dtype(np.uint8))
