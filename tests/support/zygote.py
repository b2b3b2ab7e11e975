"""Processes of Python without its start: each is forked from a process that has imported everything.

Most of what a test costs that starts a server or a command is the import of Datasette. So each worker of pytest has one
process, the *zygote*, which imports what servers import and then only forks: a server is a process of its own, with its
own session, files, signals and memory, that runs ``python -m datasette serve …`` from there on.

The zygote reads requests as lines of JSON from a socket and answers each with one line; it has no threads, and opens no
database. ``PUBSUB_TESTS_EXEC=1`` in the environment starts every process in the ordinary way.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

#: What servers import, whatever they serve.
MODULES = (
    "datasette.app",
    "datasette.cli",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.lifespan.on",
    "hypercorn.run",
    "hypercorn.asyncio.run",
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
        self._environment = _environment()

    def knows_environment(self) -> bool:
        """Whether a process that is forked now has the environment of this process."""
        return self._environment == _environment()

    def ask(self, question: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(self._answers.readline())

    def start(
        self,
        arguments: list[str],
        folder: Path,
        files: tuple[Path, Path, Path],
        strict: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Forked:
        """Run ``python -m`` with these arguments in a folder, with these files as input, output and errors.

        ``strict`` makes each warning an error, as ``-W error`` does. Another environment comes too late for what
        Python itself reads in it at its start.
        """
        asked = {
            "run": arguments,
            "folder": str(folder),
            "files": [str(path) for path in files],
            "strict": strict,
            "environment": environment,
        }
        return Forked(self, self.ask(asked), arguments)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()


def _environment() -> dict[str, str]:
    """The environment without the name of the test that runs, which pytest puts there for each test anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


_starting = threading.Lock()


def zygote() -> Zygote | None:
    """The zygote of this process, or ``None`` where a process must be started in the ordinary way.

    That is so after a test has changed the environment.
    """
    if "PUBSUB_TESTS_EXEC" in os.environ:
        return None
    with _starting:
        found = _the_zygote()
    return found if found.knows_environment() else None


@functools.cache
def _the_zygote() -> Zygote:
    found = Zygote()
    atexit.register(found.close)
    return found


def keep_compiled_templates() -> None:
    """Have Jinja keep the templates that it compiles in a folder of this user, for all processes and later runs.

    Else each server compiles each template that it shows: more than a tenth of a second for its first page.
    """
    # The name has Datasette's version: how it makes its environment is not part of what Jinja compares.
    kept = jinja2.FileSystemBytecodeCache(pattern=f"datasette-{version('datasette')}-%s.cache")
    jinja2.Environment.__init__ = functools.partialmethod(  # type: ignore[method-assign, assignment]
        jinja2.Environment.__init__, bytecode_cache=kept
    )


def without_rich() -> None:
    """Have Datasette answer errors as it does for users, who have not installed ``rich`` as our twine has.

    With it Datasette prints the code and the variables of each error that it answers, also of each address that does
    not exist: two seconds of processor time, and 500 instead of 404 where a variable cannot be printed.
    """
    from datasette import handle_exception

    assert hasattr(handle_exception, "rich")
    handle_exception.rich = None


def _serve(number: int) -> dict[str, Any] | None:
    """Answer until nobody asks any more; in a server that was forked, what it is to run."""
    for module in MODULES:
        __import__(module)
    from datasette_pubsub import lazy

    lazy.load()
    keep_compiled_templates()
    without_rich()
    from datasette.app import Datasette

    # Python remembers the regular expressions of all routes. Nothing is opened before something is asked.
    Datasette(internal="never-opened.db").app()
    # Nothing of this is ever freed: a process need not look through it, nor copy its pages by doing so.
    gc.collect()
    gc.freeze()
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
                # The number may have been that of a process that ended long ago.
                codes.pop(pid, None)
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
    for number, path in enumerate(wanted["files"]):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
        # What Python has made of them at its start knows, for example, whether they can seek.
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[number]
        was = getattr(sys, name)
        opened = open(number, mode, buffering=1, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, opened)
    if wanted["environment"] is not None:
        os.environ.clear()
        os.environ.update(wanted["environment"])
    if wanted["strict"]:
        warnings.simplefilter("error")
    # As `python -m` has it: the folder comes first.
    sys.path[0] = wanted["folder"]
    module, *arguments = wanted["run"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
