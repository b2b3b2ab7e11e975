"""A server with a log of which views and an index for search were made, and with rights for those who are logged in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from entrances import CONFIG
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

#: All that Datasette can be allowed to do to tables, for everybody who is logged in.
GENEROUS = {
    action: {"id": ["ada", "bob", "root"]}
    for action in (
        "insert-row", "update-row", "delete-row", "alter-table", "drop-table", "drop-view", "create-table",
        "create-view", "execute-write-sql", "set-column-type", "store-query",
    )
}  # fmt: skip

#: What an owner may have made of the log: views, also of views, and an index for search.
DERIVED = """
CREATE VIEW recent AS SELECT * FROM "vpubsub";
CREATE VIEW [of a view] AS SELECT payload, channel FROM [recent];
CREATE VIRTUAL TABLE found USING fts5(payload, content='vpubsub', content_rowid='id');
INSERT INTO found (found) VALUES ('rebuild');
CREATE VIEW other AS SELECT * FROM existing;
CREATE VIEW shown AS SELECT id, payload FROM vpubsub WHERE channel GLOB 'open/*';
"""


@pytest.fixture
def server(serve: Callable[..., Server], tmp_path: Path) -> Server:
    path = tmp_path / "data.db"
    conn = sqlite3.connect(path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    conn.executescript("CREATE TABLE existing (id INTEGER PRIMARY KEY, text TEXT);" + DERIVED)
    conn.close()
    sqlite_shell(
        path,
        "INSERT INTO vpubsub (channel, payload) VALUES ('open/1', 'for all'), ('secret', 'hidden text');"
        "INSERT INTO found (found) VALUES ('rebuild');"
        "INSERT INTO pubsub_subscriptions (owner, name, reads) VALUES ('ada', 'mine', '{\"channels\": [\"secret\"]}');",
    )
    config = json.loads(json.dumps(CONFIG))
    config["permissions"] |= {**GENEROUS, "permissions-debug": {"id": "bob"}}
    config["databases"]["data"]["tables"] = {"shown": {"allow": True}}
    return serve(config=config, options=["--root"])
