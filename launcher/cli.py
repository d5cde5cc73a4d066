"""The command line: `launcher up | status | down | ...`.

Heavy imports (ray, MuJoCo, h5py) stay inside the commands, so that `launcher --help` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import cyclopts
from cyclopts import App

from launcher.configuration_layers import auto_as_number, set_layers
from launcher.data_commands import add_data_commands
from launcher.dataset_commands import add_dataset_commands
from launcher.mistakes import in_words
from launcher.proof_commands import add_proof_commands
from launcher.run_commands import add_run_commands
from launcher.up_command import add_up_command
from replay_service.errors import FAILURE_EXIT_CODE, USER_ERROR_EXIT_CODE

_INTERRUPT_EXIT_CODE = 130

app = App(
    name="launcher",
    version=lambda: version("awac-online"),
    help="Offline-to-online reinforcement learning with AWAC: one learner, many actors, a Redis replay service.",
    help_on_error=False,
)
add_up_command(app)
add_run_commands(app)
add_proof_commands(app)
add_dataset_commands(app)
add_data_commands(app)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback where a sentence says what is wrong."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows "?", and the command goes on
    arguments = auto_as_number(list(sys.argv[1:] if tokens is None else tokens))
    only_lists_commands = arguments in ([], ["-h"], ["--help"])
    if only_lists_commands:
        app.help_format = "plaintext"  # the reader of Markdown takes a quarter of the whole time to load
    try:
        set_layers(app, arguments)
        result: Any = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return USER_ERROR_EXIT_CODE  # cyclopts has printed it
    except KeyboardInterrupt:
        return _INTERRUPT_EXIT_CODE
    except BrokenPipeError:
        # Who read the output has had enough, as in `launcher replay ls | head`; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE_EXIT_CODE
    except Exception as error:
        told = in_words(error)
        if told is None:
            raise
        print(f"error: {told.text}", file=sys.stderr)
        return told.exit_code
    finally:
        if only_lists_commands:
            app.help_format = None
    return result if isinstance(result, int) else 0


def _open_closed_streams() -> None:
    """Lead a standard stream that was closed to nowhere, here and in the processes below.

    Else Python has None in its place, a file or socket of ours may get its number, and GLFW, which comes with the hand
    tasks, does not load.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode))


if __name__ == "__main__":
    sys.exit(main())
