"""Connect to Redis with every time-out set, and turn the driver's errors into ours.

redis-py's defaults resend silently for up to a minute and cut blocking reads short, so nothing here is left to
them: RESP2, one explicit socket time-out, no hidden retries (each role resends what it knows to be safe to resend).
"""

from __future__ import annotations

import json
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote_plus, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from replay_service.errors import RedisUnavailable, RunDirectoryError
from replay_service.redis_client import RedisClient

URL_VARIABLE = "AWAC_REDIS_URL"
PASSWORD_VARIABLE = "AWAC_REDIS_PASSWORD"
PASSWORD_FILE_VARIABLE = "AWAC_REDIS_PASSWORD_FILE"
"""Names a file with the password, as containers get their secrets; a password in the environment goes before it."""

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 30.0
"""Longest wait for any one reply; blocking reads must ask for less."""

TRANSIENT_ERRORS: tuple[type[Exception], ...] = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
)
"""Errors after which waiting and trying again is right, `REFUSALS` excepted."""

REFUSALS: tuple[type[Exception], ...] = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
)
"""A bad password or user; for redis-py they are connection errors, but no waiting mends them."""


FAREWELL_ERRORS: tuple[type[Exception], ...] = (redis.exceptions.RedisError, OSError)
"""Whatever may go wrong as a process says goodbye: it leaves all the same."""

_FILES_IN_URL = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True, repr=False)
class RedisEndpoint:
    """Where the run's Redis is, and how to enter."""

    url: str
    """redis://[user@]host:port[/db], rediss://... or unix:///path; without a password."""
    password: str = ""

    def __repr__(self) -> str:
        return f"RedisEndpoint({self.url!r})"  # never the password: this text ends up in logs

    @staticmethod
    def from_url(url: str, password: str = "") -> RedisEndpoint:
        """Split a URL that may carry a password, before its host or as a query field.

        Raises:
            RedisUnavailable: the URL is none that redis-py understands.
        """
        try:
            own_password = parse_url(url).get("password")  # type: ignore[no-untyped-call]
        except ValueError:
            # Without redis-py's text: it may quote a part of the password.
            shown = url.rpartition("@")[2].partition("?")[0]
            raise RedisUnavailable(
                f"redis_url: expected redis://, rediss:// or unix://, with a number as the port, got {shown!r}; "
                "for example redis://localhost:6379"
            ) from None
        parts = urlsplit(url)
        user = f"{parts.username}@" if parts.username else ""
        options = "&".join(
            _with_absolute_path(option) for option in parts.query.split("&") if not option.startswith("password=")
        )
        location = f"{parts.scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"
        return RedisEndpoint(f"{location}?{options}" if options else location, own_password or password)

    @staticmethod
    def from_environment() -> RedisEndpoint:
        """Read the endpoint that the launcher, or an operator, put into the environment.

        Raises:
            RedisUnavailable: AWAC_REDIS_URL is not set.
        """
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise RedisUnavailable(
                f"expected the run's Redis in the environment variable {URL_VARIABLE} "
                f"(and its password in {PASSWORD_VARIABLE}, or in a file that {PASSWORD_FILE_VARIABLE} names); "
                "it is not set"
            )
        return RedisEndpoint.from_url(url, password_from_environment())

    def environment(self) -> dict[str, str]:
        """The environment variables that hand this endpoint to a child process."""
        return {URL_VARIABLE: self.url, PASSWORD_VARIABLE: self.password}

    def save(self, path: Path) -> None:
        """Write the endpoint to a file that only its owner can read."""
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> RedisEndpoint:
        """Read what `save` wrote.

        Raises:
            RunDirectoryError: the file is damaged, or others can read it.
        """
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RunDirectoryError(f"{path} holds a password and others can read it: run `chmod 600 {path}`")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return RedisEndpoint(url=str(values["url"]), password=str(values["password"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path} is damaged: {error}") from error


def password_from_environment() -> str:
    """The password of AWAC_REDIS_PASSWORD, else that in the file of AWAC_REDIS_PASSWORD_FILE, else ''.

    Raises:
        RedisUnavailable: the file cannot be read, or is empty.
    """
    password = os.environ.get(PASSWORD_VARIABLE, "")
    path = os.environ.get(PASSWORD_FILE_VARIABLE, "")
    if password or not path:
        return password
    try:
        found = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise RedisUnavailable(f"{PASSWORD_FILE_VARIABLE}: cannot read {path}: {reason}") from None
    if not found:
        raise RedisUnavailable(f"{PASSWORD_FILE_VARIABLE}: expected a password in {path}, it is empty")
    return found


def _with_absolute_path(option: str) -> str:
    """A URL's option; one that names a file in full, because roles run in other folders than the user's.

    Raises:
        RedisUnavailable: there is no such file, or the option is a secret.
    """
    name, _, value = option.partition("=")
    if name == "ssl_password":
        raise RedisUnavailable(
            "redis_url: ssl_password would be written to config.toml: use a key file without a password (mode 0600)"
        )
    if name not in _FILES_IN_URL:
        return option
    path = Path(unquote_plus(value)).absolute()
    if not path.exists():
        raise RedisUnavailable(f"redis_url: {name}: there is no file {path}")
    return f"{name}={quote(str(path))}"


def connect(endpoint: RedisEndpoint, *, reply_timeout_s: float = REPLY_TIMEOUT_S) -> RedisClient:
    """Make a client; nothing is sent until its first command."""
    # Keep-alive notices a peer whose machine is gone; a Unix socket has none and redis-py refuses the option there.
    only_tcp: dict[str, Any] = {} if endpoint.url.startswith("unix:") else {"socket_keepalive": True}
    client = redis.Redis.from_url(
        endpoint.url,
        password=endpoint.password or None,
        protocol=2,
        socket_timeout=reply_timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        **only_tcp,
    )
    return cast(RedisClient, client)


def certificate_problem(error: BaseException) -> str | None:
    """Why the server's certificate was not accepted, or None when that is not what went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message or str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def user_facing_errors(endpoint: RedisEndpoint) -> Iterator[None]:
    """Turn a refused or failed connection into a message for the user.

    Raises:
        RedisUnavailable: says whether nobody answered, the password was wrong, or the time ran out.
    """
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise RedisUnavailable(
            f"Redis at {endpoint.url} refused the credentials ({error}): "
            f"set {PASSWORD_VARIABLE}, and the user name in the URL (redis://user@host:port) if it has one"
        ) from error
    except redis.exceptions.TimeoutError as error:
        raise RedisUnavailable(f"Redis at {endpoint.url} did not answer in time ({error})") from error
    except (redis.exceptions.ConnectionError, redis.exceptions.InvalidResponse) as error:
        problem = certificate_problem(error)
        if problem is not None:
            raise RedisUnavailable(
                f"the certificate of Redis at {endpoint.url} is not accepted ({problem}): name the file of your "
                "certificate authority as rediss://host:port?ssl_ca_certs=FILE, and the host as the certificate does"
            ) from error
        raise RedisUnavailable(
            f"no Redis answers at {endpoint.url} ({error}): start it, correct --redis-url, "
            "or leave the option out to get an embedded server"
        ) from error


def check(endpoint: RedisEndpoint) -> str:
    """Ping the server and return its version.

    Raises:
        RedisUnavailable: nobody answers, the credentials are refused, or the server is older than 6.2.
    """
    with user_facing_errors(endpoint):
        client = connect(endpoint, reply_timeout_s=CONNECT_TIMEOUT_S)
        try:
            version = str(client.info("server")["redis_version"])
        finally:
            client.close()
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise RedisUnavailable(f"Redis at {endpoint.url} is version {version}; expected 6.2 or newer")
    return version
