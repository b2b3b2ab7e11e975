"""A shell in which ``datasette`` runs in a process that is forked: see zygote.py."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from commands import TIMEOUT
from zygote import Zygote, zygote

#: What stands in the place of the command: it hands over what it was called with, and ends as the forked process does.
CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "pid": os.getpid(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect({address!r})
    sock.sendall(json.dumps(asked).encode() + b"\\n")
    code = sock.makefile().readline()
sys.exit(int(code or 1))
"""


def _answer(parent: Zygote, listening: socket.socket) -> None:
    """Run one command after the other, until the socket is closed."""
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        with sock, sock.makefile("r") as lines:
            asked = json.loads(lines.readline())
            # The files of the one that waits: pipes of the shell, or what it has redirected to.
            files = [Path(f"/proc/{asked['pid']}/fd/{number}") for number in range(3)]
            folder, environment = Path(asked["folder"]), asked["environment"]
            arguments = ["datasette", *asked["arguments"]]
            process = parent.start(arguments, folder, (files[0], files[1], files[2]), environment=environment)
            try:
                sock.sendall(b"%d\n" % process.wait(TIMEOUT))
            finally:
                process.kill()


@contextlib.contextmanager
def path_with_datasette() -> Iterator[str]:
    """A ``PATH`` for a shell in which ``datasette`` and the programs of this environment are found."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    parent = zygote()
    if parent is None or sys.platform != "linux":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address, command = f"{folder}/socket", Path(folder) / "datasette"
        listening.bind(address)
        listening.listen()
        command.write_text(CLIENT.format(python=sys.executable, address=address))
        command.chmod(0o755)
        thread = threading.Thread(target=_answer, args=(parent, listening))
        thread.start()
        try:
            yield f"{folder}{os.pathsep}{path}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
