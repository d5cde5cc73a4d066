"""What a learner holds from its start to its end: settings, Redis, files, metrics, and what it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from learner.checkpoint import CheckpointStore
from learner.config import LearnerConfig
from learner.metrics import LearnerMetrics
from learner.publication import Publisher
from learner.update import LearnerState, make_state
from replay_service.config import RunConfig
from replay_service.connection import RedisEndpoint, connect
from replay_service.keys import Keys
from replay_service.patience import Patience
from replay_service.process import StopSignal, WaitNotice
from replay_service.redis_client import RedisClient
from replay_service.reports import Reports
from replay_service.run_state import RunStateStore
from replay_service.trajectory_stream import Quarantine
from replay_service.waits import WaitSeconds
from replay_service.weights_channel import WeightsChannel

PROCESS_NAME = "learner"


@dataclass(frozen=True, slots=True)
class Session:
    """Made once; only what its parts hold changes."""

    run: RunConfig
    config: LearnerConfig
    device: torch.device
    stop: StopSignal
    client: RedisClient
    keys: Keys
    run_state: RunStateStore
    reports: Reports
    quarantine: Quarantine
    patience: Patience
    """Every request to Redis waits in it for a server that is away."""
    notice: WaitNotice
    waits: WaitSeconds
    registry: CollectorRegistry
    metrics: LearnerMetrics
    checkpoints: CheckpointStore
    state: LearnerState
    publisher: Publisher

    @staticmethod
    def open(
        run: RunConfig,
        config: LearnerConfig,
        endpoint: RedisEndpoint,
        *,
        checkpoint_dir: Path,
        device: torch.device,
        stop: StopSignal,
    ) -> Session:
        """Make everything anew; Redis is not asked yet.

        Args:
            run: the run's settings.
            config: the learner's settings.
            endpoint: of the run's Redis.
            checkpoint_dir: where checkpoints are kept; is made if missing.
            device: where the networks and the replay mirror live.
            stop: asks for an orderly end.
        """
        keys, registry = Keys(run.run_id), CollectorRegistry()
        client = connect(endpoint)
        metrics, waits = LearnerMetrics.register(registry), WaitSeconds.register(registry, PROCESS_NAME)
        state = make_state(config, run.spec, seed=run.seed, device=device)
        channel = WeightsChannel(client, keys)
        return Session(
            run=run,
            config=config,
            device=device,
            stop=stop,
            client=client,
            keys=keys,
            run_state=RunStateStore(client, keys),
            reports=Reports(client, keys),
            quarantine=Quarantine(client, keys),
            patience=Patience(PROCESS_NAME, stop, waits=waits),
            notice=WaitNotice(PROCESS_NAME),
            waits=waits,
            registry=registry,
            metrics=metrics,
            checkpoints=CheckpointStore(checkpoint_dir, spec=run.spec, config=config, run_id=run.run_id),
            state=state,
            publisher=Publisher(run, config, state, channel=channel, metrics=metrics),
        )
