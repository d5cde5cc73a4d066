"""Read a run's `summary.json`, which a full disk or a power cut may have damaged."""

from __future__ import annotations

import json
from typing import Any

from launcher.run_directory import RunDirectory


def read_summary(directory: RunDirectory) -> tuple[dict[str, Any], str]:
    """What the summary says, and why it says nothing.

    Returns:
        Its values, empty when it is missing or damaged; in words what is wrong with it, or ''.
    """
    name = directory.summary.name
    try:
        values = json.loads(directory.summary.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"{name} cannot be read: {error}"
    return (values, "") if isinstance(values, dict) else ({}, f"{name} is no JSON object")
