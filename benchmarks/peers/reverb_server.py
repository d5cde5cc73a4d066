"""A Reverb server with one table; answers every line with its port."""

from __future__ import annotations

import json
import sys

from serving import unavailable

try:
    import reverb
except ImportError as error:
    unavailable(f"reverb: {error}")


def main() -> None:
    table = reverb.Table(
        "chunks",
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=5_000,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server([table], port=None)
    print(json.dumps({"version": ""}), flush=True)
    for _line in sys.stdin:
        print(json.dumps({"port": server.port}), flush=True)


if __name__ == "__main__":
    main()
