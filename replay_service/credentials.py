"""Users and passwords for a Redis of your own: `python -m replay_service.credentials --config run.toml --output DIR`.

What `access` gives the embedded server, as files to be mounted into containers:

    users.acl           the users of the run, with hashes only; for `aclfile` of Redis
    admin.password      user awac: everything. Made once; the others follow from it (decision 0006)
    ROLE.password       users awac-actor, awac-evaluator, awac-learner, awac-replay
    run.password        user awac-run: one user for all roles, for `launcher up --redis-url`
    health.password     user awac-health: PING, for health checks

A folder that holds an admin.password keeps it, so that the files for a new run have the same passwords.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path

from replay_service.access import Role, derived_password, one_user_rights, users_file
from replay_service.config_file import load_run_config
from replay_service.connection import RedisEndpoint
from replay_service.errors import USER_ERROR_EXIT_CODE, ConfigError, UserError

ADMIN_FILE = "admin.password"
USERS_FILE = "users.acl"
RUN_USER = "run"
HEALTH_USER = "health"
_LEAST_PASSWORD_CHARACTERS = 16


def write_credentials(folder: Path, run_id: str) -> list[Path]:
    """Write the files of a run, and return their paths.

    Only the owner can enter the folder. The files themselves are readable, because a container's process, which has
    another user id, gets them mounted one by one, and those of its role alone.

    Raises:
        ConfigError: the folder cannot be written, or its admin.password is too short.
    """
    if not run_id:
        raise ConfigError("run_id: expected the name of a run, got an empty text: Redis limits its users to one run")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        admin = _admin_password(folder / ADMIN_FILE)
        texts = {f"{role.value}.password": derived_password(admin, role.value) for role in Role}
        texts |= {f"{name}.password": derived_password(admin, name) for name in (RUN_USER, HEALTH_USER)}
        texts[USERS_FILE] = users_text(admin, run_id)
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        raise ConfigError(f"--output: cannot write {error.filename or folder}: {error.strerror}") from error
    return [folder / name for name in (ADMIN_FILE, *texts)]


def users_text(admin_password: str, run_id: str) -> str:
    """The user file: that of an embedded server, and the two users which only a Redis of one's own needs."""

    def user(name: str, rules: str) -> str:
        digest = hashlib.sha256(derived_password(admin_password, name).encode()).hexdigest()
        return f"user awac-{name} on #{digest} {rules}\n"

    return (
        users_file(RedisEndpoint("redis://awac@localhost", admin_password), run_id)
        + user(RUN_USER, one_user_rights(run_id))
        + user(HEALTH_USER, "resetchannels -@all +ping")
    )


def _admin_password(path: Path) -> str:
    if not path.exists():
        _replace(path, secrets.token_urlsafe(32))
    found = path.read_text(encoding="utf-8").strip()
    if len(found) < _LEAST_PASSWORD_CHARACTERS:
        raise ConfigError(
            f"{path}: expected a password of at least {_LEAST_PASSWORD_CHARACTERS} characters, got {len(found)}: "
            "delete the file to get a random one"
        )
    return found


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w", encoding="utf-8") as file:
        file.write(text)
    partial.chmod(0o444)  # below a folder that its owner alone can enter
    partial.replace(path)


def main() -> int:
    """Write the credentials of the run that a configuration file names."""
    parser = argparse.ArgumentParser(prog="python -m replay_service.credentials")
    parser.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; keep it out of version control")
    arguments = parser.parse_args()
    try:
        written = write_credentials(arguments.output, load_run_config(arguments.config).run_id)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    print(f"{arguments.output}: {', '.join(path.name for path in written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
