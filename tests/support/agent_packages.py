"""The plugins for agents, beside the test environment: installed in it, they would be part of every other server."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

from places import ROOT

#: What is installed; the folder is made anew when this changes.
WANTED = ("datasette-mcp>=0.3,<0.4", "datasette-agent==0.4a0")

FOLDER = ROOT / "build" / "agents"


def installed() -> Path:
    """The folder with these plugins and with what of their requirements the environment lacks, for ``PYTHONPATH``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Tests run side by side, and one of them does it for all.
    with (FOLDER / "wanted").open("a+") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        one_at_a_time.seek(0)
        if one_at_a_time.read() != "\n".join(WANTED):
            _install()
            one_at_a_time.truncate(0)
            one_at_a_time.write("\n".join(WANTED))
    return FOLDER


def _install() -> None:
    report = json.loads(_pip("--dry-run", "--report", "-", *WANTED))
    lacking = [f"{found['metadata']['name']}=={found['metadata']['version']}" for found in report["install"]]
    _pip("--no-deps", "--upgrade", "--target", str(FOLDER), *lacking)


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
