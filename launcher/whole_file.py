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
        ConfigError: it is a folder, a device or a pipe, or its own folder cannot be made or written to.
    """
    require_writable_beside(file_to_write(path))


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
    """Give a name beside a file to write to; it takes the place of the file when the block ends without an error.

    Its ending is that of `path`, for writers that tell the format by it. Missing folders are made.

    Raises:
        ConfigError: the file cannot be written.
    """
    file = file_to_write(path)
    partial = file.with_name(f".{file.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        os.replace(partial, file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def file_to_write(path: Path) -> Path:
    """The file that a path means, there or not: a new file takes the place of the old one, and never that of a link.

    Raises:
        ConfigError: it is a folder, or something that is there and no file, whose place no file may take.
    """
    if not path.name or path.is_dir():
        raise ConfigError(f"{path}: cannot be written: expected the name of a file, got a folder")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: cannot be written: expected the name of a file, got a device, a pipe or a socket")
    if not path.is_symlink():
        return path
    try:
        path.stat()
    except FileNotFoundError:
        pass  # the link's file is to be made
    except OSError as error:  # as of a link that leads to itself, which `resolve` takes for a name from Python 3.13 on
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return path.resolve()
