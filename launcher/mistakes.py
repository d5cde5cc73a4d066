"""What the command line says of an error, where a sentence does and a traceback would only frighten."""

from __future__ import annotations

from typing import NamedTuple

from replay_service.errors import FAILURE_EXIT_CODE, USER_ERROR_EXIT_CODE, AwacError, UserError


class Told(NamedTuple):
    """A message and the exit code of the command."""

    text: str
    exit_code: int


def in_words(error: Exception) -> Told | None:
    """A message for an error that is not the program's own; None for one that is, which keeps its traceback.

    Returns:
        Exit code 2 for what the user can mend, 1 for what broke while running.
    """
    if isinstance(error, UserError):
        return Told(str(error), USER_ERROR_EXIT_CODE)
    if isinstance(error, AwacError):
        return Told(str(error), FAILURE_EXIT_CODE)
    if isinstance(error, OSError) and error.filename is not None:
        return Told(f"{error.filename}: {error.strerror}", USER_ERROR_EXIT_CODE)
    from replay_service.connection import REFUSALS, TRANSIENT_ERRORS  # loads redis, which most commands never need

    if isinstance(error, REFUSALS):  # for redis-py they are connection errors too, but no waiting mends them
        return Told(f"the run's Redis refused the credentials ({error})", USER_ERROR_EXIT_CODE)
    if isinstance(error, TRANSIENT_ERRORS):
        return Told(f"the run's Redis does not answer ({error}); try again in a moment", FAILURE_EXIT_CODE)
    return None
