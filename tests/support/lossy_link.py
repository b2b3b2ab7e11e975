"""A link between two machines that is slow, loses packets and can be cut, made of two TAP devices.

Run as a program, it carries the frames: descriptors, delay in seconds, loss, bytes a second. It reads "down" and "up"
from its standard input. (``tc netem`` would do it in the kernel, and not every kernel has it.)
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: From linux/if_tun.h.
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000

_numbers = itertools.count()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_run() -> bool:
    """Whether this machine has namespaces and TAP devices."""
    if sys.platform != "linux" or os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        return False
    try:
        with machine(), contextlib.closing(_Tap()):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def machine() -> Iterator[str]:
    """A namespace, by its name, for as long as the block lasts."""
    name = f"pl{os.getpid() % 1_000_000}m{next(_numbers)}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class _Tap:
    """A TAP device, of this process until it is moved."""

    def __init__(self) -> None:
        self.name = f"pl{os.getpid() % 100_000}t{next(_numbers)}"
        self.descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.descriptor, _TUNSETIFF, struct.pack("16sH", self.name.encode(), _IFF_TAP | _IFF_NO_PI))

    def move(self, machine: str, address: str) -> None:
        ip("link", "set", self.name, "netns", machine)
        ip("-n", machine, "addr", "add", f"{address}/24", "dev", self.name)
        ip("-n", machine, "link", "set", self.name, "up")

    def close(self) -> None:
        os.close(self.descriptor)


class Link:
    """A link; each end is a machine and its address."""

    def __init__(
        self, one: tuple[str, str], two: tuple[str, str], *, delay: float, loss: float, bytes_per_second: float
    ) -> None:
        self._taps = [_Tap(), _Tap()]
        for tap, (name, address) in zip(self._taps, (one, two), strict=True):
            tap.move(name, address)
        descriptors = [tap.descriptor for tap in self._taps]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *map(str, (*descriptors, delay, loss, bytes_per_second))],
            stdin=subprocess.PIPE,
            pass_fds=descriptors,
        )

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._tell("down")

    def mend(self) -> None:
        self._tell("up")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        for tap in self._taps:
            tap.close()


def carry(one: int, two: int, delay: float, loss: float, rate: float) -> None:
    """Carry frames from each descriptor to the other, for ever."""
    for descriptor in (one, two):
        os.set_blocking(descriptor, False)
    waiting: list[tuple[float, int, int, bytes]] = []
    free = {one: 0.0, two: 0.0}
    count = itertools.count()
    up = True
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([one, two, sys.stdin.fileno()], [], [], timeout)
        now = time.monotonic()
        for descriptor in ready:
            if descriptor == sys.stdin.fileno():
                up = os.read(descriptor, 100).decode().split()[-1] == "up"
                continue
            with contextlib.suppress(BlockingIOError):
                while frame := os.read(descriptor, 65536):
                    if not up or random.random() < loss:
                        continue
                    free[descriptor] = max(free[descriptor], now) + len(frame) / rate
                    other = two if descriptor == one else one
                    heapq.heappush(waiting, (free[descriptor] + delay, next(count), other, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, descriptor, frame = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError):
                os.write(descriptor, frame)


if __name__ == "__main__":
    carry(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:]))
