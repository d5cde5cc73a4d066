"""The Lua scripts that run inside Redis, each documented at its head."""

from __future__ import annotations

from importlib.resources import files

_PRELUDE = "admission.lua"


def source(name: str) -> str:
    """The text of a script, after the prelude that all scripts share."""
    folder = files(__package__)
    parts = [folder.joinpath(f).read_text(encoding="utf-8") for f in (_PRELUDE, f"{name}.lua")]
    return "\n".join(parts)
