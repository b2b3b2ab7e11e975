"""The command line: in a process of its own, or in this one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from click.testing import CliRunner, Result
from servers import DEADLINE
from zygote import Forked, zygote

from datasette_pubsub.cli.main import pubsub

#: How long a command may take, in seconds.
TIMEOUT = 120.0

PUBSUB = [sys.executable, "-W", "error", "-m", "datasette", "pubsub"]


def python_module(
    *arguments: Any, text: str = "", folder: Path | None = None, strict: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with these arguments to its end; ``strict`` makes each warning an error."""
    words = [str(argument) for argument in arguments]
    parent = zygote()
    if parent is None:
        command = [sys.executable, *(["-W", "error"] if strict else []), "-m", *words]
        return subprocess.run(
            command, cwd=folder, input=text, text=True, capture_output=True, timeout=TIMEOUT, encoding="utf-8"
        )
    with tempfile.TemporaryDirectory() as name:
        said, out, err = (Path(name) / file for file in ("in", "out", "err"))
        said.write_text(text, encoding="utf-8")
        process = parent.start(words, folder or Path.cwd(), (said, out, err), strict)
        try:
            code = process.wait(TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, code, out.read_text("utf-8"), err.read_text("utf-8"))


def start_module(*arguments: Any) -> subprocess.Popen[bytes] | Forked:
    """Start ``python -m`` with these arguments, with no input, and with output that nobody reads."""
    words, nothing = [str(argument) for argument in arguments], Path(os.devnull)
    if parent := zygote():
        return parent.start(words, Path.cwd(), (nothing, nothing, nothing))
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def datasette(*arguments: Any, folder: Path | None = None) -> str:
    """What ``datasette`` with these arguments prints; it must succeed."""
    done = python_module("datasette", *arguments, folder=folder)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def run(*arguments: Any, text: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, which must be with this exit code."""
    done = python_module("datasette", "pubsub", *arguments, text=text or "", strict=True)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def call(*arguments: Any, text: str | None = None, code: int = 0) -> Result:
    """As :func:`run`, but in this process: a second faster, for what a process of its own adds nothing to."""
    done = CliRunner().invoke(pubsub, [str(argument) for argument in arguments], input=text or "")
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done


def failure(*arguments: Any, text: str | None = None) -> str:
    """The one line that a command fails with."""
    error = call(*arguments, text=text, code=1).stderr
    assert "Traceback" not in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1, error
    return error.removeprefix("Error: ").rstrip("\n")


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return line_of(process.stdout, "nothing was printed")


def line_of(pipe: IO[str] | IO[bytes], otherwise: str) -> str:
    """The next line that comes through a pipe; empty at its end. Fails with a text if none comes for ``DEADLINE``.

    Byte by byte: what a buffer had read ahead, ``select`` would not know of.
    """
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([pipe], [], [], DEADLINE)[0], f"{otherwise}: {line!r}"
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            break
        line += byte
    return line.decode()


def payloads(*arguments: Any) -> list[str]:
    return [json.loads(line)["payload"] for line in call("tail", "--json", *arguments).stdout.splitlines()]
