"""Trims by another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from places import SUPPORT
from servers import Server

TRIMMER = SUPPORT / "trimmer.py"


def trim_elsewhere(server: Server, up_to: int, *channels: str) -> None:
    subprocess.run([sys.executable, str(TRIMMER), str(server.path), str(up_to), *channels], check=True, timeout=60)


def trimmed(server: Server, left: int) -> Callable[[], bool]:
    return lambda: server.rows("SELECT count(*) FROM vpubsub") == [(left,)]
