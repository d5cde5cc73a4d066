"""A link that delays and loses packets: TUN devices, so that real TCP meets it, on kernels without netem too."""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from types import TracebackType

_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000  # IFF_TUN, IFF_NO_PI
_LARGEST_PACKET = 65_536


def open_tun(name: str) -> int:
    """A new TUN device in this namespace; it lives as long as its descriptor, also when it is moved elsewhere.

    Raises:
        OSError: no permission, or no /dev/net/tun.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class LossyLink:
    """Carries every IP packet from one TUN device to the other, late, and some never.

    Attributes:
        carried: packets that were handed on so far.
        lost: packets that were dropped so far.
    """

    def __init__(self, names: tuple[str, str], *, delay_s: float, loss: float, seed: int = 0) -> None:
        self.names = names
        self.carried = self.lost = 0
        self._ends = (open_tun(names[0]), open_tun(names[1]))
        self._delay_s, self._loss, self._random = delay_s, loss, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="lossy-link", daemon=True)

    def __enter__(self) -> LossyLink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)  # and with them the devices, and the routes that lead there

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # (when due, order, descriptor, packet)
        while not self._stop.is_set():
            due_in = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.05
            ready, _, _ = select.select(self._ends, (), (), min(due_in, 0.05))
            for end in ready:
                packet = os.read(end, _LARGEST_PACKET)
                if self._random.random() < self._loss:
                    self.lost += 1
                    continue
                other = self._ends[1] if end == self._ends[0] else self._ends[0]
                heapq.heappush(under_way, (time.monotonic() + self._delay_s, self.carried, other, packet))
                self.carried += 1
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(under_way)
                try:
                    os.write(other, packet)
                except OSError:  # the device at the other end is down: the packet is lost, as on any link
                    self.lost += 1
