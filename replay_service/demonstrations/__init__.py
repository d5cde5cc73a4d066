"""The demonstrations that ship with the project; README.md beside this file says how they were made."""

from __future__ import annotations

from pathlib import Path


def shipped_path(env: str) -> Path | None:
    """The shipped dataset of a task, or None when there is none for that environment."""
    path = Path(__file__).parent / f"{env}.npz"
    return path if path.exists() else None
