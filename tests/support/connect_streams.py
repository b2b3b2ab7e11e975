"""What tests of streams share: a server's options, and Connect streams in JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
from servers import OPEN, Server


def options(**plugin: Any) -> dict[str, Any]:
    return {**OPEN, "plugins": {"datasette-pubsub": plugin}}


def connect_messages(server: Server, count: int, **request: Any) -> list[dict[str, Any]]:
    """The first messages of a Connect stream in JSON."""
    message = json.dumps({"dbName": server.database, **request}).encode()
    body = struct.pack(">BI", 0, len(message)) + message
    headers = {"Content-Type": "application/connect+json"}
    found: list[dict[str, Any]] = []
    data = b""
    with httpx.stream(
        "POST", f"{server.url}/db.v1.DbService/Subscribe", content=body, headers=headers, timeout=30
    ) as response:
        for part in response.iter_bytes():
            data += part
            while len(data) >= 5:
                size = int.from_bytes(data[1:5])
                if len(data) < 5 + size:
                    break
                found.append(json.loads(data[5 : 5 + size]))
                data = data[5 + size :]
                if len(found) == count:
                    return found
    raise AssertionError(found)
