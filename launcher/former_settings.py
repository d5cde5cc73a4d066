"""What a run was told before it was resumed with other settings: `config.toml` has the newest ones, the log the others.

Every resume that changes a setting writes a line to the launcher's log, with the value before and the value after.
"""

from __future__ import annotations

import re
from pathlib import Path

RESUMED = "resumed with other settings than before: "
"""What such a line begins with; behind it stands what `run_settings.changed_settings` says."""


def former_numbers(log: Path, name: str) -> list[int]:
    """Values that a setting had before a resume changed it, oldest first; none where there is no log.

    Args:
        log: of the run's launcher.
        name: a setting whose values are whole numbers.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pattern = re.compile(rf"(?<![\w.]){re.escape(name)} \((\d+) and \d+\)")
    changes = [text for _before, mark, text in (line.partition(RESUMED) for line in lines) if mark]
    return [int(found[1]) for text in changes if (found := pattern.search(text))]
