"""The process of the replay service: Redis, the seed data, records, leases of silent actors, service discovery."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from replay_service import scripts
from replay_service.config import RunConfig
from replay_service.connection import TRANSIENT_ERRORS, RedisEndpoint, check, connect
from replay_service.datasets import OfflineDataset, load_dataset
from replay_service.demonstrations import shipped_path
from replay_service.discovery import DiscoveryServer, target_groups
from replay_service.errors import ConfigError, RunDirectoryError
from replay_service.keys import Keys
from replay_service.metrics import register_run_metrics
from replay_service.patience import Patience
from replay_service.process import RESTARTED_VARIABLE, StopSignal, serve_metrics
from replay_service.process_identity import ProcessIdentity
from replay_service.records import Recorder, RunIdentity
from replay_service.redis_client import RedisClient
from replay_service.redis_server import EmbeddedRedis, find_server
from replay_service.reports import Reports
from replay_service.run_state import Phase, RunState, RunStateStore
from replay_service.seeding import seed

NO_DATASET = "none"
_PROCESS_NAME = "replay"
_REDIS_NAME = "redis"
_PERIOD_S = 1.0
_OUTAGE_S = 5.0

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
    def ready(self) -> Path:
        """Holds the service's process id once the run can be joined."""
        return self.redis_dir / "ready"


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


class ReplayService:
    """The process. `run` is startup, main loop, shutdown."""

    def __init__(self, run: RunConfig, run_dir: Path, *, stop: StopSignal) -> None:
        self._run = run
        self._files = ServiceFiles(run_dir)
        self._stop = stop
        self._keys = Keys(run.run_id)
        self._redis: EmbeddedRedis | None = None
        self._patience = Patience("replay service", stop)
        self._was_open = self._files.opened.exists()

    def run(self) -> None:
        """Work until a stop is asked for.

        Raises:
            UserError: Redis cannot be reached or started, the dataset does not fit, the run in Redis is another.
        """
        self._files.redis_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        if self._run.redis_url:
            endpoint = RedisEndpoint.from_url(self._run.redis_url, os.environ.get("AWAC_REDIS_PASSWORD", ""))
            _log.info("using Redis %s at %s", check(endpoint), endpoint.url)
        else:
            # Whoever was started before a crash of this process waits at the old port; after a whole start nobody does.
            restarted = os.environ.get(RESTARTED_VARIABLE) == "1"
            self._redis = self._start_redis(self._previous_endpoint(), keep_port=restarted)
            endpoint = self._redis.endpoint
        endpoint.save(self._files.connection)
        return endpoint

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
            keep_port=keep_port,
        )

    def _serve(self, client: RedisClient, endpoint: RedisEndpoint) -> None:
        state = RunStateStore(client, self._keys)
        if self._was_open and not state.exists():
            raise RunDirectoryError(
                f"run {self._run.run_id!r} was opened before, but Redis no longer has its data: put "
                f"{self._files.redis_dir} back, or start over with --restart-behavior restart"
            )
        resumed = state.initialise(self._run)
        self._files.opened.touch()
        self._publish_redis(state)
        reports = Reports(client, self._keys)
        identity = RunIdentity(self._run.run_id, self._run.env, self._run.preset, self._run.seed)
        recorder = Recorder(self._files.run_dir, reports, identity)
        if resumed:
            recorder.skip_recorded_reports()
        if state.read().phase is Phase.SEEDING:
            seed(client, self._keys, load_seed_data(self._run))
            state.set_phase(Phase.PRETRAINING)
        discovery = self._start_discovery(client, endpoint)
        self._files.ready.write_text(str(os.getpid()), encoding="utf-8")
        _log.info("run %s is open; service discovery at http://%s/targets", self._run.run_id, discovery.address)
        release = client.register_script(scripts.source("release"))
        silence_ms = int(self._run.replay.actor_timeout_s * 1000)
        steady_since = last_tick = time.monotonic()

        def tick(status: str) -> None:
            # After a start or an outage nobody has been heard of, and nobody is silent by his own fault.
            nonlocal steady_since, last_tick
            now = time.monotonic()
            if now - last_tick > _OUTAGE_S:
                steady_since = now
            last_tick = now
            patient = now - steady_since < self._run.replay.actor_timeout_s
            for actor in reports.actors():
                if actor.lease and not patient:
                    release(keys=[self._keys.run, self._keys.actor(actor.actor_id)], args=[silence_ms])
            recorder.update(*reports.state_and_actors(), status=status)

        while not self._stop.wait(_PERIOD_S):
            self._revive_redis(state)
            self._patience.until_answered(lambda: tick("running"))
        discovery.stop()
        with contextlib.suppress(*TRANSIENT_ERRORS):
            state.withdraw_endpoint(_PROCESS_NAME)
            tick((client.hget(self._keys.run, "final_status") or b"stopped").decode())
        recorder.close()

    def _start_discovery(self, client: RedisClient, endpoint: RedisEndpoint) -> DiscoveryServer:
        # Clients of their own: both answer from other threads.
        observer = connect(endpoint)
        state = RunStateStore(observer, self._keys)

        def read() -> tuple[RunState, int]:
            return state.read(), int(observer.info("memory")["used_memory"])

        registry = CollectorRegistry()
        register_run_metrics(registry, read)
        address = serve_metrics(registry, self._run.metrics_host)
        RunStateStore(client, self._keys).publish_endpoint(_PROCESS_NAME, address)
        try:
            discovery = DiscoveryServer(
                lambda: target_groups(state.endpoints(), run_id=self._run.run_id, env=self._run.env),
                host=self._run.metrics_host,
                port=self._run.discovery_port,
            )
        except OSError as error:
            raise ConfigError(
                f"discovery_port: cannot listen on {self._run.metrics_host}:{self._run.discovery_port}: "
                f"{error.strerror}"
            ) from error
        discovery.start()
        client.hset(self._keys.run, "discovery", discovery.address)
        return discovery

    def _publish_redis(self, state: RunStateStore) -> None:
        if self._redis is not None:
            state.publish_process(_REDIS_NAME, ProcessIdentity.of(self._redis.process.pid))

    def _revive_redis(self, state: RunStateStore) -> None:
        if self._redis is None or self._redis.process.poll() is None:
            return
        _log.error("Redis ended with code %s; starting it again on its data", self._redis.process.returncode)
        began = time.monotonic()
        self._redis = self._start_redis(self._redis.endpoint, keep_port=True)
        with contextlib.suppress(*TRANSIENT_ERRORS):
            self._publish_redis(state)
        _log.info("Redis is back after %.1f s", time.monotonic() - began)
