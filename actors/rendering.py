"""Prove that MuJoCo can draw with the renderer that MUJOCO_GL names: exit code 0 when it can.

A process of its own: MuJoCo picks its renderer as it is loaded, and a broken driver may end the process.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Draw a few pixels off the screen."""
    try:
        import mujoco

        context = mujoco.GLContext(16, 16)
        context.make_current()
        context.free()
    except Exception as error:  # a missing library shows as ImportError, AttributeError, RuntimeError, ...
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
