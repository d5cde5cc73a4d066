"""Write the dashboards: `python -m deploy.grafana`, from the root of the repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.grafana.boards import fleet, overview

FOLDER = Path(__file__).parent / "dashboards"


def texts() -> dict[str, str]:
    """File name -> contents of each dashboard."""
    return {f"{board.uid}.json": json.dumps(board.to_json(), indent=2) + "\n" for board in (overview(), fleet())}


def main() -> int:
    """Write every dashboard."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
