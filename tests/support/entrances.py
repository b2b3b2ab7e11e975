"""The actors of the tests of rights, and what each may do."""

from __future__ import annotations

from typing import Any

import httpx
from auth import headers
from servers import Server

#: ada sees and publishes everything, bob only what is under open/, eve and visitors see open/ and publish nothing.
CONFIG: dict[str, Any] = {
    "plugins": {
        "datasette-pubsub": {
            "channel_permissions": {
                "open/*": {"view": True, "publish": {"id": ["ada", "bob", "root"]}},
                "*": {"view": {"id": ["ada", "root"]}, "publish": {"id": ["ada", "root"]}},
            },
            "permission_recheck_seconds": 0.2,
        }
    },
    "permissions": {
        "publish-message": {"id": ["ada", "root"]},
        "insert-row": {"id": ["ada", "bob", "eve", "root"]},
        "update-row": {"id": ["ada", "bob", "root"]},
        "delete-row": {"id": ["ada", "bob", "root"]},
        "execute-write-sql": {"id": ["ada", "bob", "eve", "root"]},
        "execute-sql": {"id": ["ada", "root"]},
        "alter-table": {"id": ["ada", "bob", "root"]},
    },
    "databases": {"data": {"tables": {"pubsub_subscriptions": {"allow": {"id": "ada"}}}}},
}


def view_sse(server: Server, actor: str | None, channel: str) -> bool:
    url, params = f"{server.pubsub}/-/stream", {"channel": channel, "start": "earliest"}
    with httpx.stream("GET", url, params=params, headers=headers(actor)) as response:
        return response.status_code == 200
