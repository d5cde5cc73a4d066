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
    from redis.exceptions import NoPermissionError  # most commands never need it, nor what is below

    from replay_service.connection import REFUSALS, certificate_problem
    from replay_service.outage import outage_of

    if isinstance(error, (*REFUSALS, NoPermissionError)):  # some are connection errors too, but no waiting mends them
        return Told(f"the run's Redis refused the credentials ({error})", USER_ERROR_EXIT_CODE)
    if (problem := certificate_problem(error)) is not None:
        return Told(f"the certificate of the run's Redis is not accepted: {problem}", USER_ERROR_EXIT_CODE)
    if outage_of(error) is not None:
        return Told(f"the run's Redis does not answer ({error}); try again in a moment", FAILURE_EXIT_CODE)
    return None
