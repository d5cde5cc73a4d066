"""Every Redis key of a run: name, type, writer, reader, lifetime. Nothing else in the project spells a key.

    key                  type     written by               read by              lifetime
    -------------------  -------  -----------------------  -------------------  ---------------------------------
    run                  hash     service, launcher, ...   all                  the run (phase, limiter, versions)
    counters             hash     actors and others (Lua)  all                  the run (steps, episodes, leases)
    evaluation_counters  hash     evaluator                all                  the run
    seed                 stream   service                  learner              the run; see `seeding.py`
    seed_info            hash     service                  service, learner     the run
    online               stream   actors, learner (Lua)    learner              newest `capacity` transitions
    quarantine           stream   learner                  launcher doctor      newest 1,000 messages
    weights              string   learner                  actors               newest version only
    publications         stream   learner                  service, launcher    newest 1,000 versions: when
    evaluation_requests  stream   learner                  evaluator            newest 64 versions
    evaluations          stream   evaluator                service, launcher    the run
    learner_reports      stream   learner                  service, launcher    newest 10,000 reports
    actors               set      actors (register.lua)    service, launcher    the run
    actor:<index>        hash     actors and others (Lua)  service, launcher    the run (ledger, lease, last seen)
    endpoints            hash     every process            service discovery    the run
    processes            hash     every process, service   launcher chaos       the run (host, process id, start)

The launcher writes places, wanted actors and a stop into `run`, the learner versions and phases. Besides the actors,
the learner takes what is damaged out of `online` and the counts, and the service gives lapsed leases back.

All carry the hash tag `{<run_id>}`, so that a run stays in one slot of a Redis Cluster, as its scripts need.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run."""

    run_id: str

    def _key(self, name: str) -> str:
        return f"awac:{{{self.run_id}}}:{name}"

    @property
    def run(self) -> str:
        """Hash of phase, limiter settings and versions; actors and the evaluator may read it, not write it."""
        return self._key("run")

    @property
    def counters(self) -> str:
        """Hash of what actors count: steps, episodes, leases."""
        return self._key("counters")

    @property
    def evaluation_counters(self) -> str:
        """Hash of what the evaluator counts."""
        return self._key("evaluation_counters")

    @property
    def state(self) -> tuple[str, ...]:
        """The hashes that together make up `RunState`; of a field in two of them, the later one counts."""
        return self.run, self.counters, self.evaluation_counters

    @property
    def seed(self) -> str:
        """Stream of the offline dataset's trajectories."""
        return self._key("seed")

    @property
    def seed_info(self) -> str:
        """Hash: fingerprint, steps and whether seeding is complete."""
        return self._key("seed_info")

    @property
    def online(self) -> str:
        """Stream of the actors' trajectories."""
        return self._key("online")

    @property
    def quarantine(self) -> str:
        """Stream of refused messages, each with its reason."""
        return self._key("quarantine")

    @property
    def weights(self) -> str:
        """The newest `PolicyWeights`, encoded."""
        return self._key("weights")

    @property
    def publications(self) -> str:
        """Stream of version numbers; an entry's id says when its version was published."""
        return self._key("publications")

    @property
    def evaluation_requests(self) -> str:
        """Stream of encoded `PolicyWeights` that the evaluator shall judge."""
        return self._key("evaluation_requests")

    @property
    def evaluations(self) -> str:
        """Stream of evaluation results."""
        return self._key("evaluations")

    @property
    def learner_reports(self) -> str:
        """Stream of the learner's metrics."""
        return self._key("learner_reports")

    @property
    def actors(self) -> str:
        """Set of the indices of all actors that ever registered."""
        return self._key("actors")

    @property
    def endpoints(self) -> str:
        """Hash: process name -> host:port of its Prometheus endpoint."""
        return self._key("endpoints")

    @property
    def processes(self) -> str:
        """Hash: process name -> which process plays that role, see `process_identity.py`."""
        return self._key("processes")

    def but_single_actors(self) -> tuple[str, ...]:
        """All keys of the run but the hashes of single actors."""
        return (
            *self.state, self.seed, self.seed_info, self.online, self.quarantine, self.weights, self.publications,
            self.evaluation_requests, self.evaluations, self.learner_reports, self.actors, self.endpoints,
            self.processes,
        )  # fmt: skip

    def actor(self, actor_id: int) -> str:
        """Hash of one actor: epoch, next sequence, ledger, lease, last seen."""
        return self._key(f"actor:{actor_id}")
