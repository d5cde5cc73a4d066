"""`launcher up`: check what can be checked at once, start the roles, watch them, end in order."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Callable

from rich.console import Console

from launcher.capacity import Node, pool_size
from launcher.dashboard import evaluation_table
from launcher.display import Display
from launcher.experiment import ExperimentConfig
from launcher.interrupts import Interrupts
from launcher.learner_node import LearnerNode
from launcher.opening_notice import OpeningNotice
from launcher.plan import make_plan
from launcher.program import RoleProgram, make_program
from launcher.ray_environment import set_ray_environment
from launcher.redis_link import RedisLink
from launcher.room_notice import RoomNotice
from launcher.run_directory import RunDirectory
from launcher.scale_requests import ScaleRequests
from launcher.snapshot import Snapshot
from launcher.supervisor import RunFailed, Supervisor
from launcher.wording import duration
from replay_service import wandb_run
from replay_service.access import role_endpoint
from replay_service.config import EnvironmentConfig, RunConfig
from replay_service.connection import (
    PASSWORD_VARIABLE,
    URL_VARIABLE,
    RedisEndpoint,
    check,
    password_from_environment,
)
from replay_service.errors import ConfigError
from replay_service.keys import Keys
from replay_service.run_state import Phase, is_in_redis
from replay_service.service import another_run, load_seed_data, resolve_sources
from replay_service.tasks import find_task

_TICK_S = 0.5
_SILENT_START_S = 120.0
"""Longest time that the replay service may write nothing to its log before the run is open."""
_REDIS_GONE_NOTICE = "Redis does not answer; the replay service brings it back, everybody waits"

_log = logging.getLogger(__name__)


def resolve_environment(run: RunConfig) -> EnvironmentConfig:
    """The environment's shape: known for the hand tasks, asked of the environment otherwise.

    Raises:
        EnvironmentUnknown: there is no such environment, or its spaces are not flat boxes.
        ConfigError: the configuration names another shape than the environment's own.
    """
    task = find_task(run.env)
    if task is not None:
        found = EnvironmentConfig(
            max_episode_steps=run.environment.max_episode_steps or task.max_episode_steps,
            observation_dim=task.observation_dim,
            action_dim=task.action_dim,
        )
    else:
        found = _ask_environment(run)
    for name in ("observation_dim", "action_dim", "action_low", "action_high"):
        named, own = getattr(run.environment, name), getattr(found, name)
        if named and named != own:
            raise ConfigError(f"environment.{name}: {run.env} itself has {own or 'none'}, got {named}: leave it out")
    return found


def _ask_environment(run: RunConfig) -> EnvironmentConfig:
    from actors.environment import make_environment  # MuJoCo and gymnasium take half a second to load

    environment = make_environment(run.env, max_episode_steps=run.environment.max_episode_steps)
    spec = environment.spec
    environment.close()
    return EnvironmentConfig(
        max_episode_steps=spec.max_episode_steps,
        observation_dim=spec.observation_dim,
        action_dim=spec.action_dim,
        action_low=tuple(environment.action_low.tolist()),
        action_high=tuple(environment.action_high.tolist()),
    )


def check_inputs(run: RunConfig, *, resuming: bool) -> None:
    """Ping the named Redis and load the dataset, so that a mistake is told before anything is started.

    A run that is resumed has its data in Redis already; the files may be gone.

    Raises:
        ConfigError: an extra that the settings need is not installed, or the named Redis holds a run of that name.
        DatasetError: a source is missing, unreadable or does not fit.
        RedisUnavailable: the named Redis does not answer or refuses the password.
    """
    if run.wandb != wandb_run.OFF:
        wandb_run.check_available()
    if run.redis_url:
        endpoint = RedisEndpoint.from_url(run.redis_url, _password())
        check(endpoint)
        if not resuming and is_in_redis(endpoint, Keys(run.run_id)):
            raise ConfigError(another_run(run.run_id))
    if not resuming:
        load_seed_data(run)
    else:
        resolve_sources(run)


def _password() -> str:
    return password_from_environment()


class Run:
    """One `launcher up`, from start to end.

    Args:
        config: resolved.
        directory: of the run, held by this process.
        console: of the terminal.
        begun: called once the learner has accepted its settings, behind which a run is no longer refused but ended.
        up: called when the run goes on by itself: once it has begun, or has begun to wait for nodes that are to join.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        directory: RunDirectory,
        console: Console,
        begun: Callable[[], None] = lambda: None,
        up: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._begun = begun
        self._up = up
        self._has_begun = False
        self.roles_may_live = False
        """Whether roles were started and not stopped in order."""
        self._directory = directory
        self._console = console
        self._interrupts = Interrupts()
        self._link: RedisLink | None = None
        self._scale: ScaleRequests | None = None
        self._began = time.monotonic()

    def execute(self) -> str:
        """Run until the budget is done, a stop is asked for, or a role cannot be kept alive.

        Returns:
            finished or stopped.

        Raises:
            RoleRefused: a role ended with a user error.
            RunFailed: a role crashed more often than its budget allows.
            RayUnavailable: a Ray of this machine's own did not start.
        """
        self._interrupts.install()  # before Ray is loaded, which takes seconds
        set_ray_environment(private_cluster=not self._config.launcher.ray_address)
        from launcher.placement import (
            RolePlacement,
            RunFiles,
        )  # ray reads its environment as it is imported, and loads slowly

        if self._interrupts.count:
            return "stopped"
        title = f"{self._config.run.env}  seed {self._config.run.seed}  {self._directory.path}"
        status = "failed"
        with Display(title, self._console) as display:
            display.say("starting Ray ...")
            placement = RolePlacement(
                address=self._config.launcher.ray_address,
                num_cpus=sum(program.num_cpus for program in make_program(self._config, self._directory, gpu=False)),
                files=RunFiles.of(self._directory),
                learner_node=LearnerNode(self._directory),
            )
            self._interrupts.install()  # again: Ray's start puts a handler of its own, which aborts, in SIGTERM's place
            supervisor = Supervisor(
                placement,
                environment=self._environment,
                max_restarts=self._config.launcher.max_restarts,
                restart_window_s=self._config.launcher.restart_window_s,
                on_restart=self._count_restart,
            )
            in_order = True
            try:
                nodes = placement.nodes()
                crosses = self._crosses_nodes(nodes)
                listen = placement.home if crosses and not self._config.run.redis_url else ""
                plan = make_plan(self._config, self._directory, nodes, placement.home, listen=listen)
                programs = plan.programs
                placement.reserve(programs, stay_home=not crosses, beside=plan.beside)
                room = RoomNotice(lambda: supervisor.waiting, placement.free, display.say)
                self._start(supervisor, programs, display, room)
                if self._link is not None:
                    self._scale = ScaleRequests(
                        self._config, self._directory, programs, supervisor, self._link, display.say,
                        pool_size=lambda actors: pool_size(actors, self._config.launcher, placement.nodes()),
                        reserve=bool(self._config.launcher.ray_address),
                    )  # fmt: skip
                status = self._watch(supervisor, display, room)
            except KeyboardInterrupt:
                in_order = False  # the second Ctrl-C: every role dies with Ray's workers, the run can be resumed
                raise
            finally:
                try:
                    if in_order:
                        self._stop(supervisor, status, display)
                finally:
                    placement.shutdown()
        return status

    def _crosses_nodes(self, nodes: list[Node]) -> bool:
        """Whether roles may run on other nodes than this one, now or later."""
        return len(nodes) > 1 or self._config.launcher.wait_for_nodes or bool(self._config.run.redis_url)

    def summary_lines(self, status: str) -> None:
        """Print what was learned and where the run lies."""
        snapshot = self._link.last if self._link is not None else None
        if snapshot is not None and snapshot.evaluations:
            shown = snapshot.evaluations
            if len(shown) > 12:
                shown = shown[:4] + shown[-8:]
            self._console.print(evaluation_table(shown))
        steps = (
            f"{snapshot.state.env_steps:,} env steps, {snapshot.state.grad_steps:,} gradient steps, "
            if snapshot
            else ""
        )
        elapsed = duration(time.monotonic() - self._began)
        self._say(f"{status}: {steps}{elapsed} in this session")
        self._say(f"run directory: {self._directory.path}")
        if status != "finished":
            path = shlex.quote(str(self._directory.path))
            self._say(f"go on with: launcher up --run-dir {path} --restart-behavior resume")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    # Start

    def _start(self, supervisor: Supervisor, programs: list[RoleProgram], display: Display, room: RoomNotice) -> None:
        self._directory.ready.unlink(missing_ok=True)
        display.say("starting the replay service, the learner, the actors and the evaluator ...")
        for program in programs:
            if self._interrupts.count:
                return
            self.roles_may_live = True
            supervisor.start(program)
            if not program.needs_redis:
                self._wait_until_open(supervisor, program, room, display)

    def _wait_until_open(self, supervisor: Supervisor, replay: RoleProgram, room: RoomNotice, display: Display) -> None:
        opening = OpeningNotice(replay.log_path, display.say)
        while not self._directory.ready.exists():
            supervisor.tend()
            room.look()
            if supervisor.waiting:
                opening = OpeningNotice(replay.log_path, display.say)  # it can say nothing before it has room
            elif opening.look() > _SILENT_START_S:
                raise RunFailed(
                    f"the replay service is not ready and has written nothing for {_SILENT_START_S:.0f} s; its log: "
                    f"{replay.log_path}"
                )
            if self._interrupts.count:
                return
            time.sleep(0.05)
        self._link = RedisLink(RedisEndpoint.load(self._directory.connection), self._config.run)
        while not self._link.open():
            display.warn(_REDIS_GONE_NOTICE)
            supervisor.tend()
            if self._interrupts.count:
                return
            time.sleep(_TICK_S)
        if self._config.launcher.wait_for_nodes:
            self._up()  # whoever waits for that may be the one who starts the other nodes

    def _environment(self, program: RoleProgram) -> dict[str, str]:
        if program.needs_redis and self._link is not None:
            # A Redis of the user's own has the one user that he named; the embedded one has one for each role.
            endpoint, is_embedded = self._link.endpoint, not self._config.run.redis_url
            return (role_endpoint(endpoint, program.role) if is_embedded else endpoint).environment()
        password = _password()
        # Ray's workers inherit this process's environment; the run's setting wins over what is exported there.
        named = {URL_VARIABLE: self._config.run.redis_url}
        return named | ({PASSWORD_VARIABLE: password} if password else {})

    def _count_restart(self, name: str) -> None:
        if name == "learner" and self._link is not None:
            self._link.try_to(self._link.state.count_learner_restart)

    # Watch

    def _watch(self, supervisor: Supervisor, display: Display, room: RoomNotice) -> str:
        while self._interrupts.count == 0:
            supervisor.tend()
            room.look()
            snapshot = self._link.read() if self._link is not None else None
            if snapshot is None:
                display.warn(_REDIS_GONE_NOTICE)
            else:
                display.clear_warning()
                display.show(snapshot)
                self._look_for_beginning()
                if snapshot.state.stop_requested:
                    display.say(f"stop requested: {snapshot.state.stop_requested}")
                    return "stopped"
                if self._is_finished(snapshot):
                    return "finished"
                if self._scale is not None:
                    self._scale.follow(snapshot.state)
            time.sleep(_TICK_S)
        display.say("stopping in order; Ctrl-C again ends at once")
        return "stopped"

    def _look_for_beginning(self) -> None:
        if not self._has_begun and self._link is not None and self._link.learner_has_registered():
            self._has_begun = True
            self._begun()
            self._up()

    @staticmethod
    def _is_finished(snapshot: Snapshot) -> bool:
        state = snapshot.state
        if state.env_steps < state.num_env_steps:
            return False  # a finished run that is resumed with a larger budget: its learner is still starting
        return state.phase is Phase.FINISHED and not state.evaluations_waiting

    # Stop

    def _stop(self, supervisor: Supervisor, status: str, display: Display) -> None:
        codes = supervisor.stop_all(self._config.launcher.stop_grace_s, before_replay=lambda: self._take_leave(status))
        self.roles_may_live = False
        for name, code in codes.items():
            if code not in (0, None, -signal.SIGTERM):  # the last one: it was still starting when it was asked to end
                _log.warning("%s ended with code %s", name, code)
                display.say(f"{name} ended with code {code}; see {self._directory.logs}")

    def _take_leave(self, status: str) -> None:
        if self._link is not None:
            link = self._link
            link.try_to(link.read)
            link.try_to(lambda: link.state.set_final_status(status))
