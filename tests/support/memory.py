"""What a server takes of the machine."""

from __future__ import annotations

import re
from pathlib import Path

from servers import Server


def peak(server: Server) -> int:
    """The most memory that the server has ever had, in bytes."""
    assert server.process is not None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{server.process.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
