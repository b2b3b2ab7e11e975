"""The command line, as real processes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from click.testing import CliRunner, Result

from datasette_pubsub.cli.main import pubsub

PUBSUB = [sys.executable, "-W", "error", "-m", "datasette", "pubsub"]


def run(*arguments: Any, text: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, which must be with this exit code."""
    command = [*PUBSUB, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, input=text or "", text=True, capture_output=True, timeout=60, encoding="utf-8")
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
