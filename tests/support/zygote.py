"""Server processes without the start of Python: each is forked from a process that has imported everything.

Half of what a test costs that starts a server is the import of Datasette. So each worker of pytest has one process, the
*zygote*, which imports what servers import and then only forks: a server is a process of its own, with its own session,
files, signals and memory, that runs ``python -m datasette serve …`` from there on.

The zygote reads requests as lines of JSON from a socket and answers each with one line; it has no threads, and opens no
database. ``PUBSUB_TESTS_EXEC=1`` in the environment starts every server in the ordinary way.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

#: What servers import, whatever they serve.
MODULES = (
    "datasette.app",
    "datasette.cli",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.lifespan.on",
)

ENVIRONMENT = {"PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1"}


class Forked:
    """A process that the zygote has forked, as far as tests use :class:`subprocess.Popen`."""

    def __init__(self, zygote: Zygote, pid: int, args: list[str]) -> None:
        self._zygote = zygote
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that servers are forked from; started when it is first needed."""

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                pass_fds=[its.fileno()],
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
        self._socket = ours
        self._answers = ours.makefile("r")
        self._lock = threading.Lock()
        self._environment = dict(os.environ)

    def knows(self, environment: dict[str, str]) -> bool:
        """Whether a server would find the environment that it is to have."""
        return environment == {**self._environment, **ENVIRONMENT}

    def ask(self, question: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(self._answers.readline())

    def start(self, module: str, arguments: list[str], folder: Path, log: Path) -> Forked:
        """Run ``python -m module arguments`` in a folder, with its output in a file."""
        asked = {"run": [module, *arguments], "folder": str(folder), "log": str(log)}
        return Forked(self, self.ask(asked), [module, *arguments])

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()


def _serve(number: int) -> dict[str, Any] | None:
    """Answer until nobody asks any more; in a server that was forked, what it is to run."""
    for module in MODULES:
        __import__(module)
    from datasette_pubsub import lazy

    lazy.load()
    codes: dict[int, int] = {}
    with socket.socket(fileno=number) as asked, asked.makefile("r") as questions:
        for line in questions:
            question = json.loads(line)
            answer: int | None
            if "run" in question:
                pid = os.fork()
                if not pid:
                    asked.detach()
                    os.close(number)
                    return dict(question)
                answer = pid
            else:
                with contextlib.suppress(ChildProcessError):
                    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                        codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
                answer = codes.get(question["poll"])
            asked.sendall(json.dumps(answer).encode() + b"\n")
    return None


def main() -> None:
    wanted = _serve(int(sys.argv[1]))
    if wanted is None:
        return
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["folder"])
    log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for each in (1, 2):
        os.dup2(log, each)
    os.close(log)
    # As `python -m` has it: the folder comes first.
    sys.path[0] = wanted["folder"]
    module, *arguments = wanted["run"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
