"""`python -m launcher` is the command `launcher`."""

import sys

from launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
