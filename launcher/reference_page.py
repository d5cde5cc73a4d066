"""`docs/commands.md` from the command line's own help: `python -m launcher.reference_page docs/commands.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from launcher.cli import app

_HEAD = """<!-- Made by `python -m launcher.reference_page docs/commands.md`; a test compares it with the code. -->

"""


def page() -> str:
    """Every command and every setting, as Markdown."""
    layers = app.config
    app.config = ()  # a command line that was parsed before leaves its layers, and they would show in the text
    try:
        text = app.generate_docs()
    finally:
        app.config = layers
    # In usage lines of sub-commands cyclopts repeats how Python itself was started.
    text = re.sub(r"^(launcher .*?) -(?:m [\w.]+|c)\b", r"\1", text, flags=re.MULTILINE)
    return _HEAD + text.replace("```console\n", "```text\n").rstrip() + "\n"


def main() -> int:
    """Write the page to the file that is named, or to the terminal."""
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
