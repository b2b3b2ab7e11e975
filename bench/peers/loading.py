"""Runs the load generator and the subscribers (load.c, sink.c), and measures the processor time of a server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets import Publish, Target

HERE = Path(__file__).resolve().parent

RUN_SECONDS = 0.25  # one measured run, after calibration
RUN_TIMEOUT = 20.0  # seconds; a run that takes longer counts as failed
READY_TIMEOUT = 8.0  # seconds in which all subscribers must receive something
SLOW_SECONDS = 2.0  # a system that needs longer for the smallest run is slow
SETTLE_SECONDS = 0.2  # pause after the last subscriber has received something


def process_tree(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    tree = {pid}
    while grown := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return tree


def cpu_of_tree(pid: int | None) -> float:
    """CPU seconds of a process, its live descendants, and the children it has reaped."""
    if pid is None:
        return 0.0
    seconds, tick = 0.0, 1 / os.sysconf("SC_CLK_TCK")
    for member in process_tree(pid):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            user, system, reaped_user, reaped_system = (int(value) for value in fields[11:15])
            own, threads = (user + system) * tick, int(fields[17])
            if threads == 1:  # finer than ticks: a thousand backends use less than one each
                with contextlib.suppress(OSError):
                    own = int(Path(f"/proc/{member}/schedstat").read_text().split()[0]) / 1e9
            seconds += own + (reaped_user + reaped_system) * tick
    return seconds


class RunFailed(Exception):
    """A run failed; the message has the reason."""


# These errors end one run, and not the whole bench.
PROBLEMS = (RunFailed, RuntimeError, OSError, subprocess.SubprocessError)


def escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def load(
    target: Target, publish: Publish, connections: int, requests: int, folder: Path, depth: int = 1
) -> dict[str, Any]:
    """Run load.c with ``depth`` requests in flight on each connection; returns its report."""
    request_file, preamble_file = folder / "request", folder / "preamble"
    request_file.write_bytes(publish.request)
    command: list[str] = [str(HERE / "load"), "--port", str(target.port)]
    command += ["--conns", str(connections), "--requests", str(requests)]
    command += ["--request", str(request_file), "--timeout", str(RUN_TIMEOUT)]
    command += ["--depth", str(depth)]
    command += ["--token", escaped(publish.token), "--tokens", str(publish.tokens)]
    if publish.preamble:
        preamble_file.write_bytes(publish.preamble)
        command += ["--preamble", str(preamble_file)]
    for token in publish.abort:
        command += ["--abort", escaped(token)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT + 20)
    if done.returncode:
        raise RunFailed(f"load: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    if not report["complete"]:
        reason = " ".join(done.stderr.split())[:160] or f"{report['closed']} connections closed"
        raise RunFailed(f"only {report['requests']} of {requests} requests succeeded: {reason}")
    return report


class Sink:
    """A running sink.c, whose connections are open."""

    def __init__(self, port: int, subscribers: int, request: bytes, folder: Path) -> None:
        request_file = folder / "subscribe"
        request_file.write_bytes(request)
        self.process = subprocess.Popen(
            [
                str(HERE / "sink"),
                "--port",
                str(port),
                "--conns",
                str(subscribers),
                "--request",
                str(request_file),
                "--ready-timeout",
                str(READY_TIMEOUT),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Sink:
        try:
            ready = self._read()
        except RunFailed:
            self.__exit__()
            raise
        if ready["ready"] < ready["conns"]:
            print(f"  only {ready['ready']} of {ready['conns']} subscribers have received anything yet")
        time.sleep(SETTLE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RunFailed("the subscribers could not connect")
        return json.loads(line)

    def expect(self, messages: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{messages} {RUN_TIMEOUT}\n")
        self.process.stdin.flush()
        self._read()

    def result(self) -> dict[str, Any]:
        return self._read()


def calibrate(run: Callable[[int], float], start: int, most: int) -> int:
    """The number of requests that take about RUN_SECONDS; `run` returns the seconds of that many requests."""
    requests = min(start, most)
    cold = run(requests)  # warms up the system; its time counts only if the system is slow
    if cold > SLOW_SECONDS:
        return max(1, int(requests * SLOW_SECONDS / cold))
    while True:
        seconds = max(run(requests), 1e-4)
        if RUN_SECONDS / 3 <= seconds < SLOW_SECONDS:  # a second run tells a slow system from a disturbance
            seconds = min(seconds, max(run(requests), 1e-4))
        if seconds >= RUN_SECONDS / 3 or requests >= most:
            return max(1, min(most, round(requests * RUN_SECONDS / seconds)))
        requests = min(most, round(requests * min(10, RUN_SECONDS / seconds)) + 1)
