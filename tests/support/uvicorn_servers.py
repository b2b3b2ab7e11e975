"""The same server with another event loop or HTTP parser."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server

#: The same server with another event loop or HTTP parser: what ``datasette serve`` does, told to uvicorn.
SERVED = """
import json, sys, uvicorn
from datasette.app import Datasette
app = Datasette({paths!r}, config=json.loads({config!r})).app()
uvicorn.run(app, host={host!r}, port={port}, loop={loop!r}, http={http!r}, log_level="warning")
"""

SERVERS = ["datasette", "asyncio-h11", "asyncio-httptools", "uvloop-httptools"]


class Uvicorn(Server):
    """A server with the loop and the parser that are named."""

    loop = http = ""
    host = "127.0.0.1"

    def command(self) -> list[str]:
        names = [str(path) for path in self.databases]
        text = SERVED.format(
            paths=names, config=json.dumps(self.config), host=self.host, port=self.port, loop=self.loop, http=self.http
        )
        (self.folder / "served.py").write_text(text)
        return ["served"]


@pytest.fixture
def serve_as(serve: Callable[..., Server], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server as one of SERVERS: ``serve_as(kind, config=…)``."""
    servers: list[Server] = []

    def begin(kind: str, config: dict[str, Any], host: str = "127.0.0.1") -> Server:
        if kind == "datasette":
            return serve(config=config, options=["-h", host])
        folder = tmp_path / f"uvicorn{len(servers)}"
        folder.mkdir()
        server = Uvicorn([tmp_path / "data.db"], config, folder)
        server.loop, server.http = kind.split("-")
        server.host = host
        with contextlib.closing(sqlite3.connect(server.path)) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS existing (id INTEGER PRIMARY KEY)")
        servers.append(server)
        return server.start()

    yield begin
    for server in servers:
        server.kill()
