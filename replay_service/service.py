"""The process of the replay service: Redis, the seed data, records, leases of silent actors, service discovery."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from replay_service import scripts, wandb_run
from replay_service.access import Role, role_endpoint
from replay_service.config import RunConfig
from replay_service.connection import (
    FAREWELL_ERRORS,
    URL_VARIABLE,
    RedisEndpoint,
    check,
    connect,
    password_from_environment,
)
from replay_service.data_lock import SERVICE_LOCK, DataLock, data_lock
from replay_service.datasets import OfflineDataset, load_dataset
from replay_service.demonstrations import shipped_path
from replay_service.discovery import DiscoveryServer, target_groups
from replay_service.disk_space import wait_for_space
from replay_service.errors import ConfigError, DatasetError, RunDirectoryError
from replay_service.keys import Keys
from replay_service.metrics import RunReader, register_run_metrics
from replay_service.patience import Patience
from replay_service.process import RESTARTED_VARIABLE, StopSignal, listening_host, serve_metrics
from replay_service.process_identity import ProcessIdentity
from replay_service.records import PointSink, Recorder, RunIdentity
from replay_service.redis_client import RedisClient
from replay_service.redis_server import LOOPBACK, EmbeddedRedis, find_server
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunStateStore
from replay_service.seeding import SeedInfo, seed, seed_info
from replay_service.waits import WaitSeconds

NO_DATASET = "none"
_PROCESS_NAME = "replay"
_REDIS_NAME = "redis"
_PERIOD_S = 1.0
_OUTAGE_S = 5.0
_LAST_SERVICE_TIMEOUT_S = 15.0
"""Longest wait for the last service of the run: one whose launcher was killed ends within seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceFiles:
    """Where the service keeps its own files in the run directory."""

    run_dir: Path

    @property
    def redis_dir(self) -> Path:
        """Data of the embedded Redis; for its owner's eyes only."""
        return self.run_dir / "redis"

    @property
    def connection(self) -> Path:
        """The endpoint with its password, mode 0600."""
        return self.redis_dir / "connection.json"

    @property
    def opened(self) -> Path:
        """Exists once the run's state has been created in Redis; from then on its absence is an error."""
        return self.redis_dir / "opened"

    @property
    def opening(self) -> Path:
        """Exists from just before the run's state is created in Redis: what is found there is this run's."""
        return self.redis_dir / "opening"

    @property
    def ready(self) -> Path:
        """Holds the service's process id once the run can be joined."""
        return self.redis_dir / "ready"


def another_run(run_id: str) -> str:
    """What to say of a run that a new run directory meets in Redis."""
    return (
        f"run_id: Redis holds a run {run_id!r} already, which this run directory did not begin: choose another "
        "--run-id, or resume the run in its own directory"
    )


def resolve_sources(run: RunConfig) -> tuple[str, ...]:
    """The datasets that a run is seeded with: as given, or the shipped one of its task, or none.

    Raises:
        ConfigError: 'none' stands beside other sources.
    """
    if NO_DATASET in run.dataset:
        if len(run.dataset) > 1:
            raise ConfigError(f"dataset: {NO_DATASET!r} cannot stand beside other datasets, got {run.dataset}")
        return ()
    if run.dataset:
        return run.dataset
    shipped = shipped_path(run.env)
    return (str(shipped),) if shipped is not None else ()


def load_seed_data(run: RunConfig) -> OfflineDataset | None:
    """Load and check the run's offline data.

    Raises:
        DatasetError: a source is missing, unreadable or does not fit the environment.
    """
    sources = resolve_sources(run)
    bounds = (run.environment.action_low, run.environment.action_high)
    return load_dataset(sources, spec=run.spec, action_bounds=bounds) if sources else None


def _is_restarted() -> bool:
    """Whether this process stands in for one that crashed in the same session."""
    return os.environ.get(RESTARTED_VARIABLE) == "1"


def _try_to(do: str, act: Callable[[], None]) -> None:
    """Do the last things one by one, so that none is left out for another's sake."""
    try:
        act()
    except FAREWELL_ERRORS as error:
        _log.warning("the replay service ends without having been able to %s: %s", do, error)


class ReplayService:
    """The process. `run` is startup, main loop, shutdown."""

    def __init__(self, run: RunConfig, run_dir: Path, *, stop: StopSignal, listen: str = LOOPBACK) -> None:
        self._run = run
        self._listen = listen
        self._files = ServiceFiles(run_dir)
        self._stop = stop
        self._keys = Keys(run.run_id)
        self._redis: EmbeddedRedis | None = None
        self._registry = CollectorRegistry()
        self._waits = WaitSeconds.register(self._registry, _PROCESS_NAME)
        # Whoever else waits for the embedded Redis waits for this process to start it again: each try looks first.
        self._patience = Patience("replay service", stop, waits=self._waits, before_each_try=self._revive_redis)
        self._state: RunStateStore | None = None
        self._was_open = self._files.opened.exists()

    def run(self) -> None:
        """Work until a stop is asked for.

        Raises:
            UserError: the run directory cannot be written, another replay service has it, Redis cannot be reached or
                started, the dataset does not fit, the run in Redis is another.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._files.redis_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = stack.enter_context(data_lock(self._files.redis_dir, SERVICE_LOCK))
            except OSError as error:
                raise RunDirectoryError(f"cannot write {self._files.redis_dir}: {error.strerror}") from error
            if self._takes(lock):
                self._work()

    def _takes(self, lock: DataLock) -> bool:
        """Take the run directory for this process, which is how others see that the run is up.

        Returns:
            False when a stop was asked for first.

        Raises:
            RunDirectoryError: another replay service has it, and keeps it.
        """
        if lock.is_held():
            _log.warning("another replay service still runs on %s: waiting for its end", self._files.run_dir)
        try:
            if not lock.is_free_within(_LAST_SERVICE_TIMEOUT_S, pause=self._stop.wait):
                if self._stop.is_set():
                    return False
                raise BlockingIOError
            lock.take()
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"another replay service runs on {self._files.run_dir}: stop the processes of the run first, "
                "wherever they are"
            ) from error
        return True

    def _work(self) -> None:
        self._files.ready.unlink(missing_ok=True)
        endpoint = self._open_redis()
        try:
            client = connect(endpoint)
            self._serve(client, endpoint)
        finally:
            self._files.ready.unlink(missing_ok=True)
            if self._redis is not None:
                self._redis.stop()

    def _open_redis(self) -> RedisEndpoint:
        # A container finds Redis where the other roles do; `launcher up` names it in the file.
        url = os.environ.get(URL_VARIABLE) or self._run.redis_url
        if url:
            endpoint = RedisEndpoint.from_url(url, password_from_environment())
            _log.info("using Redis %s at %s", check(endpoint), endpoint.url)
        else:
            # Whoever was started before a crash of this process waits at the old port; after a whole start nobody does.
            self._redis = self._start_redis(self._previous_endpoint(), keep_port=_is_restarted())
            endpoint = self._redis.endpoint
        endpoint.save(self._files.connection)
        return endpoint if self._redis is None else role_endpoint(endpoint, Role.REPLAY)

    def _previous_endpoint(self) -> RedisEndpoint | None:
        return RedisEndpoint.load(self._files.connection) if self._files.connection.exists() else None

    def _start_redis(self, previous: RedisEndpoint | None, *, keep_port: bool) -> EmbeddedRedis:
        replay = self._run.replay
        return EmbeddedRedis.start(
            self._files.redis_dir,
            server=find_server(replay.server_path),
            max_memory_mb=replay.max_memory_mb,
            port=replay.port,
            previous=previous,
            run_id=self._run.run_id,
            keep_port=keep_port,
            host=self._listen,
        )

    def _serve(self, client: RedisClient, endpoint: RedisEndpoint) -> None:
        state = self._state = RunStateStore(client, self._keys)
        owner = self._files.opened.read_text(encoding="utf-8") if self._was_open else ""
        if owner not in ("", self._run.run_id):
            raise RunDirectoryError(
                f"{self._files.run_dir} is of run {owner!r}, and the configuration names run {self._run.run_id!r}: "
                "give that one a directory of its own (on Kubernetes: a volume)"
            )
        patiently = self._patience.until_answered
        if self._was_open and patiently(state.exists) is False:
            raise RunDirectoryError(
                f"run {self._run.run_id!r} was opened before, but Redis no longer has its data: put "
                f"{self._files.redis_dir} back, or start over with --restart-behavior restart"
            )
        if not self._was_open and not self._files.opening.exists() and patiently(state.exists):
            raise RunDirectoryError(another_run(self._run.run_id))
        self._files.opening.touch()
        resumed = patiently(lambda: state.initialise(self._run, keep_stop=_is_restarted()))
        if resumed is None:
            return  # asked to stop while Redis did not answer
        self._files.opened.write_text(self._run.run_id, encoding="utf-8")
        self._publish_redis()
        reports = Reports(client, self._keys)
        identity = RunIdentity(self._run.run_id, self._run.env, self._run.preset, self._run.seed)
        recorder = Recorder(self._files.run_dir, reports, identity, sinks=self._open_sinks())
        if resumed:
            patiently(recorder.skip_recorded_reports)
        if not self._seed(client, state):
            return
        known, can_seed_again = self._patience.until_answered(lambda: seed_info(client, self._keys)), True
        discovery = self._start_discovery(client, endpoint)
        self._files.ready.write_text(str(os.getpid()), encoding="utf-8")
        _log.info("run %s is open; service discovery at http://%s/targets", self._run.run_id, discovery.address)
        release = client.register_script(scripts.source("release"))
        silence_ms = int(self._run.replay.actor_timeout_s * 1000)
        own_identity = ProcessIdentity.own()
        steady_since = last_tick = time.monotonic()

        def final_status() -> str:
            return (client.hget(self._keys.run, "final_status") or b"").decode()

        def tick() -> None:
            # After a start or an outage nobody has been heard of, and nobody is silent by his own fault.
            nonlocal steady_since, last_tick
            counted, actors = reports.state_and_actors()
            # Changes nothing, but is refused as the actors' writes are where a Redis with a full disk still answers.
            state.publish_process(_PROCESS_NAME, own_identity)
            now = time.monotonic()  # after the answer: Redis measures silence by a clock that goes on in a pause
            if now - last_tick > _OUTAGE_S:
                steady_since = now
            patient = now - steady_since < self._run.replay.actor_timeout_s
            for actor in actors:
                if actor.lease and not patient:
                    release(keys=[self._keys.counters, self._keys.actor(actor.actor_id)], args=[silence_ms])
            last_tick = now  # not before: tries that failed belong to the outage
            recorder.update(counted, actors, status=final_status() or "running")

        def record_end() -> None:
            recorder.update(*reports.state_and_actors(), status=final_status() or "stopped")

        while not self._stop.wait(_PERIOD_S):
            # The wait for room stands outside: a full disk is no silence of Redis, and leases are looked after in it.
            wait_for_space(
                lambda: self._patience.until_answered(tick), "replay service", stop=self._stop, waits=self._waits
            )
            if can_seed_again and self._patience.until_answered(lambda: seed_info(client, self._keys) is None):
                can_seed_again = self._seed_again(client, known)
        discovery.stop()
        _try_to("write the last summary", record_end)
        _try_to("withdraw from service discovery", lambda: state.withdraw_endpoint(_PROCESS_NAME))
        wait_for_space(recorder.close, "replay service", stop=self._stop)

    def _seed(self, client: RedisClient, state: RunStateStore) -> bool:
        """Fill the seed stream if that is still to be done; returns False when a stop was asked for meanwhile.

        It may be to be done again: a Redis that dies may forget the end of what it was given.
        """
        found = self._patience.until_answered(lambda: (state.read().phase, seed_info(client, self._keys)))
        if found is None:
            return False
        phase, info = found
        if phase is not Phase.SEEDING and info is not None:
            return True
        _log.info("loading and storing the offline data")
        data = load_seed_data(self._run)
        self._patience.until_answered(
            lambda: seed(client, self._keys, data, before_each_request=self._patience.asks_again)
        )
        if self._stop.is_set():
            return False
        self._patience.until_answered(state.leave_seeding)
        return True

    def _seed_again(self, client: RedisClient, known: SeedInfo | None) -> bool:
        """Store the offline data again, whose end a Redis that died has forgotten; a learner that has them goes on.

        Returns:
            Whether they could be had, as they were.
        """
        try:
            data = load_seed_data(self._run)
            if known is not None and (data.fingerprint if data else "") != known.fingerprint:
                raise DatasetError("the dataset is another than before")
        except DatasetError as error:
            _log.error("Redis has lost the end of the offline data, and they cannot be stored again: %s", error)
            return False
        _log.error("Redis has lost the end of the offline data; storing them again")
        self._patience.until_answered(
            lambda: seed(client, self._keys, data, before_each_request=self._patience.asks_again)
        )
        return True

    def _open_sinks(self) -> tuple[PointSink, ...]:
        run = self._run
        if run.wandb == wandb_run.OFF:
            return ()
        shown = {name: value for name, value in asdict(run).items() if name != "redis_url"}
        group = f"{run.env} {run.preset}"
        return (
            wandb_run.WandbRun(self._files.run_dir, run_id=run.run_id, group=group, mode=run.wandb, settings=shown),
        )

    def _start_discovery(self, client: RedisClient, endpoint: RedisEndpoint) -> DiscoveryServer:
        # Clients of their own: both answer from other threads.
        observer = connect(endpoint)
        state = RunStateStore(observer, self._keys)
        register_run_metrics(self._registry, RunReader(observer, self._keys).read)
        address = serve_metrics(self._registry, self._run.metrics_host)
        store = RunStateStore(client, self._keys)
        self._patience.until_answered(lambda: store.publish_endpoint(_PROCESS_NAME, address))
        try:
            discovery = DiscoveryServer(
                lambda: target_groups(state.endpoints(), run_id=self._run.run_id, env=self._run.env),
                host=listening_host(self._run.metrics_host),
                port=self._run.discovery_port,
            )
        except OSError as error:
            raise ConfigError(
                f"discovery_port: cannot listen on {self._run.metrics_host}:{self._run.discovery_port}: "
                f"{error.strerror}"
            ) from error
        discovery.start()
        self._patience.until_answered(lambda: client.hset(self._keys.run, "discovery", discovery.address))
        return discovery

    def _publish_redis(self) -> None:
        if self._redis is not None and self._state is not None:
            self._state.publish_process(_REDIS_NAME, ProcessIdentity.of(self._redis.process.pid))

    def _revive_redis(self) -> None:
        if self._redis is None or self._redis.process.poll() is None:
            return
        _log.error("Redis ended with code %s; starting it again on its data", self._redis.process.returncode)
        began = time.monotonic()
        self._redis = self._start_redis(self._redis.endpoint, keep_port=True)
        with contextlib.suppress(*FAREWELL_ERRORS):
            self._publish_redis()
        _log.info("Redis is back after %.1f s", time.monotonic() - began)
