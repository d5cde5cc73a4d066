"""The start of a run: what it changes on the disk, and how that is taken back when the run does not begin.

A run has begun once its learner has accepted its settings. What it overwrites is deleted then, and not before.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from launcher.overwritten_run import delete_from_redis
from launcher.run_directory import forget_latest, linked_run, remember_latest
from launcher.run_preparation import Prepared
from replay_service.errors import UserError


class RunStart:
    """One start of a run.

    Args:
        prepared: its directory, which this process holds for as long as it uses this object.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._config_before: str | None = None
        self._latest: Path | None = None
        self._has_begun = False

    def write(self, config: str) -> None:
        """Put the resolved configuration into the directory, and let `runs/latest` name it."""
        run = self._prepared.run
        if self._prepared.resumes:
            self._config_before = run.config.read_text(encoding="utf-8")
        run.write_config(config)
        self._latest = linked_run()
        remember_latest(run.path)

    def begun(self) -> None:
        """The run has begun: the one that it overwrites is not needed any more."""
        self._has_begun = True
        if self._prepared.deletes and self._prepared.aside is not None:
            delete_from_redis(self._prepared.aside)
        self._prepared.begun()

    def stopped(self) -> bool:
        """The run was stopped in order; returns whether it is taken back, because nothing of it was in Redis yet."""
        if self._has_begun or self._prepared.resumes:
            return False
        taken_back = self._take_back()
        if taken_back:
            self._restore_latest()
        return taken_back

    def failed(self, error: BaseException, *, roles_may_live: bool) -> bool:
        """The run has ended by an error; returns whether it is taken back, because nothing of it was in Redis yet.

        Of a run that is resumed, only the settings of this start are. A run that stays is the latest one, unless it was
        refused: then whoever names no run means the one before.

        Args:
            error: what ended it; a log that it names is to be read, and stays.
            roles_may_live: its roles were not stopped in order, and may still write into the directory.
        """
        if self._has_begun:
            return False
        taken_back = False
        if self._prepared.resumes:
            self._restore_config()
        elif roles_may_live or str(self._prepared.run.logs) in str(error):
            self.name_kept()
        else:
            taken_back = self._take_back()
        if taken_back or (isinstance(error, UserError) and not roles_may_live):
            self._restore_latest()
        return taken_back

    def _take_back(self) -> bool:
        run, aside = self._prepared.run, self._prepared.aside
        if run.opening.exists():
            self.name_kept()
            return False
        try:
            for path in (run.config, run.lock, run.path / "learner-node"):
                path.unlink(missing_ok=True)
            for folder in (run.connection.parent, run.logs):
                if folder.exists():
                    shutil.rmtree(folder)
            if self._prepared.made:
                run.path.rmdir()  # what somebody else put there meanwhile stays
            if aside is not None:
                aside.rename(run.path)
        except OSError as error:
            _warn(f"cannot clear {run.path}: {error.strerror}")
            self.name_kept()
        return True

    def name_kept(self) -> None:
        """Say where the run lies that was in this one's place, if there was one."""
        if self._prepared.aside is not None:
            print(
                f"the run that was in {self._prepared.run.path} before is kept, whole, as {self._prepared.aside}",
                file=sys.stderr,
            )

    def _restore_config(self) -> None:
        if self._config_before is None:
            return
        try:
            self._prepared.run.write_config(self._config_before)
        except OSError as error:
            _warn(f"{self._prepared.run.config} keeps the settings that were asked for now: {error.strerror}")

    def _restore_latest(self) -> None:
        if linked_run() not in (None, self._prepared.run.path.resolve()):
            return  # another run was started meanwhile
        try:
            forget_latest(self._latest)
        except OSError as error:
            _warn(f"runs/latest cannot be put back: {error.strerror}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
