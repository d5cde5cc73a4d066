"""`launcher up` with its roles as plain children, where it runs them on Ray: `python -m tests.launcher.without_ray up`.

All else is real. What happens between two roles can be seen without the time that Ray takes to start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import ModuleType
from typing import Any

from launcher import cli
from launcher.capacity import Node
from launcher.program import RoleProgram
from replay_service.process import PARENT_VARIABLE

_HOME = "127.0.0.1"
_LOADING_S = 2.0


class RolePlacement:
    """The protocol of `launcher.placement.RolePlacement`, on this machine."""

    def __init__(self, **_wishes: Any) -> None:
        self.home = _HOME
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def nodes() -> list[Node]:
        return [Node(_HOME, 64.0, 0.0)]

    def free(self) -> str:
        return "all is free"

    def reserve(self, *_programs: object, **_wishes: object) -> None:
        pass

    def start(self, program: RoleProgram, environment: dict[str, str]) -> int:
        program.log_path.parent.mkdir(exist_ok=True)
        with program.log_path.open("ab") as log:
            self._processes[program.name] = process = subprocess.Popen(
                [sys.executable, *program.arguments],
                env={**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return process.pid

    def poll(self, name: str) -> int | None:
        return self._processes[name].poll()

    def stop(self, name: str, grace_s: float) -> int | None:
        self._processes[name].terminate()
        return self._processes[name].wait(grace_s)

    def shutdown(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


class RunFiles:
    """What other machines would need."""

    @staticmethod
    def of(_run: object) -> None:
        return None


class Placement(ModuleType):
    """Stands for `launcher.placement`, which takes its time to load, as ray does."""

    def __getattr__(self, name: str) -> Any:
        if name == "RunFiles":
            return RunFiles
        if name != "RolePlacement":
            raise AttributeError(name)
        print("loading Ray ...", flush=True)
        time.sleep(_LOADING_S)
        return RolePlacement


if __name__ == "__main__":
    sys.modules["launcher.placement"] = Placement("launcher.placement")
    sys.exit(cli.main())
