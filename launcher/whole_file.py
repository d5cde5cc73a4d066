"""Write a file as a whole or not at all: a reader never sees half of it, and a failure leaves the old one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replay_service.errors import ConfigError


def require_writable(path: Path) -> None:
    """Refuse a path at which no file can be written, before the work that makes it begins; missing folders are made.

    Raises:
        ConfigError: it is a folder, or its own folder cannot be made or written to.
    """
    _refuse_folder(path)
    require_writable_beside(path)


def require_writable_beside(path: Path) -> None:
    """Refuse a path beside which nothing can be written, whatever is to be made there; missing folders are made.

    Raises:
        ConfigError: its folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Its ending is that of `path`, for writers that tell the format by it. Missing folders are made.

    Raises:
        ConfigError: the file cannot be written.
    """
    _refuse_folder(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _refuse_folder(path: Path) -> None:
    if not path.name or path.is_dir():
        raise ConfigError(f"{path}: cannot be written: expected the name of a file, got a folder")
