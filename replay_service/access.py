"""Who may do what in the embedded Redis: one user a role, each limited to the run's keys and to its own commands.

    user            reads                                  writes
    --------------  -------------------------------------  -----------------------------------------------------------
    awac-actor      run, weights                           counters, online, actors, actor:*, endpoints, processes
    awac-evaluator  run, weights, evaluation_requests,     evaluations, evaluation_counters, endpoints, processes
                    evaluations, evaluation_counters
    awac-learner    the run's keys                         the same, without seed and seed_info
    awac-replay     the run's keys                         the same
    awac            everything (the launcher, the doctor)  everything

No role but the last may flush, configure, list keys, or shut the server down. Redis checks what a script does against
the rights of its caller, so a script gives nobody more than the user has.

Rights to a single key, and several sets of rights for one user, need Redis 7.0 or newer.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from urllib.parse import urlsplit, urlunsplit

from replay_service.connection import RedisEndpoint
from replay_service.keys import Keys

ADMIN_USER = "awac"

OWN_REDIS_RULES = (
    "resetchannels -@all +ping +info +multi +exec +discard +evalsha +script|load +time +hget +hgetall +hset +hsetnx "
    "+hincrby +hdel +smembers +sadd +get +set +del +xadd +xdel +xrange +xrevrange +xread +xlen ~awac:*"
)
"""What the one user needs who is named with --redis-url, for all roles and runs; `docs/security.md` shows it."""

_CONNECTION = "+ping +multi +exec +discard"
_SCRIPTS = "+evalsha +script|load +time"


class Role(enum.StrEnum):
    """A kind of process with a credential of its own; the value ends its user name."""

    ACTOR = "actor"
    EVALUATOR = "evaluator"
    LEARNER = "learner"
    REPLAY = "replay"


def role_endpoint(admin: RedisEndpoint, role: Role) -> RedisEndpoint:
    """The endpoint of a role, made from the launcher's.

    The password is an HMAC under the launcher's random one. It tells nothing about that one or about another role's,
    needs no further file, and is the same again after a restart, so that processes that wait for Redis find it.
    """
    parts = urlsplit(admin.url)
    location = f"{_user(role)}@{parts.netloc.rpartition('@')[2]}"
    return RedisEndpoint(urlunsplit(parts._replace(netloc=location)), derived_password(admin.password, role.value))


def derived_password(admin_password: str, name: str) -> str:
    """The password of a role, or of another user below the launcher's."""
    return hmac.new(admin_password.encode(), f"awac role {name}".encode(), hashlib.sha256).hexdigest()


def users_file(admin: RedisEndpoint, run_id: str) -> str:
    """The text of the embedded server's user file; it holds hashes of the passwords only.

    Nobody can log in as the default user, but it keeps every permission: Redis replays the append-only file in its
    name, and would drop each transaction of the file, with no more than a line in its log, had it none.

    Args:
        admin: the launcher's endpoint.
        run_id: whose keys the roles may reach; '' makes no user but the launcher's.
    """
    lines = ["user default off resetpass ~* &* +@all", f"user {ADMIN_USER} on {_hash(admin)} ~* &* +@all"]
    for role in Role if run_id else ():
        endpoint = role_endpoint(admin, role)
        lines.append(f"user {_user(role)} on {_hash(endpoint)} resetchannels -@all {rights(role, run_id)}")
    return "\n".join(lines) + "\n"


def rights(role: Role, run_id: str) -> str:
    """A role's rules in the language of Redis's ACLs, for one run."""
    keys = Keys(run_id)
    everything = _everything(run_id)

    def readable(*names: str) -> str:
        return " ".join(f"%R~{_pattern(name)}" for name in names)

    def writable(*names: str) -> str:
        return " ".join(f"~{_pattern(name)}" for name in names)

    actor_hashes = _pattern(keys.actor(0)).removesuffix("0") + "*"
    endpoint = f"(-@all +hset +hdel {writable(keys.endpoints, keys.processes)})"
    match role:
        case Role.ACTOR:
            hashes = f"{writable(keys.counters)} ~{actor_hashes}"
            counted = f"{hashes} {writable(keys.online, keys.actors)}"
            # Each kind of key has its own commands, so that nobody can make one of another kind in its place.
            acts = (
                f"(-@all +hget +hset +hincrby {hashes}) (-@all +xadd +xrange +xdel {writable(keys.online)}) "
                f"(-@all +sadd {writable(keys.actors)})"
            )
            # The first set reads; the second lets scripts be called with these keys, the rest is what they may do.
            return (
                f"+ping {_SCRIPTS} +hget +hgetall +get {readable(keys.run, keys.weights)} "
                f"(-@all +evalsha {writable(keys.run)} {counted}) "
                f"{acts} {endpoint}"
            )
        case Role.EVALUATOR:
            read = readable(
                keys.run, keys.weights, keys.evaluation_requests, keys.evaluations, keys.evaluation_counters
            )
            results = writable(keys.evaluations, keys.evaluation_counters)
            return (
                f"{_CONNECTION} +hget +hgetall +get +xread +xrange +xrevrange +xlen {read} "
                f"(-@all +xadd +hincrby {results}) {endpoint}"
            )
        case Role.LEARNER:
            own = writable(
                keys.run, keys.counters, keys.online, keys.quarantine, keys.weights, keys.evaluation_requests,
                keys.learner_reports, keys.publications, keys.endpoints, keys.processes,
            )  # fmt: skip
            return (
                f"{_CONNECTION} {_SCRIPTS} +hget +hgetall +get +xread +xrange %R~{everything} "
                f"(-@all +evalsha +hset +hincrby +hdel +hget +set +xadd +xdel +xrange +xrevrange {own} ~{actor_hashes})"
            )
        case Role.REPLAY:
            return (
                f"{_CONNECTION} {_SCRIPTS} +info +get +hget +hgetall +hset +hsetnx +hincrby +hdel +smembers +del +xadd "
                f"+xrange +xrevrange +xlen ~{everything}"
            )


def one_user_rights(run_id: str) -> str:
    """`OWN_REDIS_RULES` for the keys of one run: what one user needs who is named for all its roles."""
    return OWN_REDIS_RULES.replace("~awac:*", f"~{_everything(run_id)}")


def _everything(run_id: str) -> str:
    return _pattern(Keys(run_id).run).removesuffix("run") + "*"


def _user(role: Role) -> str:
    return f"{ADMIN_USER}-{role.value}"


def _hash(endpoint: RedisEndpoint) -> str:
    return "#" + hashlib.sha256(endpoint.password.encode()).hexdigest()


def _pattern(key: str) -> str:
    # A run is named after its directory. What a glob reads as a wildcard is escaped; what the user file reads as the
    # end of a word cannot be, and matches any one character.
    return re.sub(r"[\s()\"']", "?", re.sub(r"([*?\[\]\\^])", r"\\\1", key))
