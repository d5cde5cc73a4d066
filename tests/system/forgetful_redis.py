"""A Redis that forgets the end of its append-only file in a crash, as one does whose machine dies."""

from __future__ import annotations

import re
from pathlib import Path

from replay_service.redis_server import find_server


class ForgetfulRedis:
    """A program for --replay.server-path that once, when told so, starts with a shorter append-only file.

    Args:
        folder: where the program and what it is told may lie.
    """

    def __init__(self, folder: Path) -> None:
        self.program = folder / "forgetful-redis"
        self._bytes = folder / "forget"
        self._whole = folder / "whole.aof"
        self.program.write_text(
            f"""#!/bin/sh
for word; do
  if [ "$previous" = --dir ]; then data=$word; fi
  previous=$word
done
if [ -e {self._bytes} ]; then
  file=$(ls -t "$data"/appendonlydir/*.incr.aof | head -n 1)
  cp "$file" {self._whole}
  truncate -s -"$(cat {self._bytes})" "$file"
  mv {self._bytes} {self._bytes}.done
fi
exec {find_server()} "$@"
""",
            encoding="utf-8",
        )
        self.program.chmod(0o700)

    def forget(self, size: int) -> None:
        """Let the next start be one without the last `size` bytes."""
        self._bytes.write_text(str(size), encoding="utf-8")

    @property
    def has_forgotten(self) -> bool:
        """Whether it was started since."""
        return self._whole.exists() and not self._bytes.exists()

    def forgotten_messages(self, stream: str) -> int:
        """Messages of a stream that the shorter file lacks: Redis drops what is not complete."""
        whole = self._whole.read_bytes()
        end = len(whole) - int(self._bytes.with_name("forget.done").read_text(encoding="utf-8"))
        added, found, place = b"XADD\r\n$%d\r\n%s\r\n" % (len(stream), stream.encode()), 0, 0
        while (place := whole.find(added, place)) >= 0:
            place += len(added)
            executed = whole.find(b"\r\nEXEC\r\n", place)  # an append is one transaction
            found += not 0 <= executed <= end
        return found


def messages_sent_again(run_dir: Path) -> int:
    """How many messages the actors of a run have sent again, by what they say, because Redis had forgotten them."""
    logs = "".join(path.read_text(encoding="utf-8") for path in run_dir.glob("logs/actor-*.log"))
    return sum(int(count) for count in re.findall(r"Redis had forgotten (\d+) messages of actor \d+: sent again", logs))
