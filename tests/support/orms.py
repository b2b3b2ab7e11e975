"""docs/orm.md as programs: the file that its reader has, its examples, and a subscriber beside them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from places import ROOT
from servers import OPEN, Server, Sse, sqlite_shell

from datasette_pubsub.broadcast import definition, tables
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

#: The clients of npm that docs/orm.md has.
NODE_CLIENTS = ["drizzle", "kysely", "knex"]

PAGE = (ROOT / "docs" / "orm.md").read_text()
BLOCK = re.compile(r"<!-- test: orm (?P<client>\w+) (?P<name>\S+) -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)

#: What the README's reader has done, and a broadcast of the table; the ids of messages and users are far apart.
BEFORE = """
CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, status TEXT);
INSERT INTO users (id, email, status) VALUES (40, 'hacker@example.com', 'banned');
INSERT INTO vpubsub (channel, payload, key) VALUES
  ('logs', 'Application started', NULL), ('orders', '{"order": 7}', 'order-7');
"""


def examples(client: str) -> dict[str, str]:
    """The blocks of one client, by name, in their order."""
    return {match["name"]: match["code"] for match in BLOCK.finditer(PAGE) if match["client"] == client}


def clients() -> set[str]:
    return {match["client"] for match in BLOCK.finditer(PAGE)}


def run(command: list[str], folder: Path, **environment: str) -> list[str]:
    """Run a program that must succeed and complain of nothing; the lines that it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def read(payload: str) -> Any:
    """Python and JavaScript put spaces into JSON, or not."""
    return json.loads(payload) if payload.startswith("{") else payload


@dataclass
class Shop:
    """One client's ``data.db``, served, in a folder where its programs run."""

    folder: Path
    server: Server
    #: As Datasette calls it: all these files have one name.
    database: str

    @property
    def path(self) -> Path:
        return self.folder / "data.db"

    def rows(self, sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as conn:
            return conn.execute(sql).fetchall()

    @contextlib.contextmanager
    def subscriber(self, channel: str = "orders") -> Iterator[Subscriber]:
        """A live one: it has caught up before anything is published."""
        (head,) = self.rows("SELECT max(id) FROM vpubsub")[0]
        url = f"{self.server.url}/{self.database}/-/pubsub/-/stream"
        with Sse(url, channel=channel, after=head) as stream:
            stream.until("ready")
            yield Subscriber(self, stream, channel, head)


@dataclass
class Subscriber:
    shop: Shop
    stream: Sse
    channel: str
    #: The newest message when it came.
    head: int

    def received(self) -> list[tuple[int, Any]]:
        """Ids and payloads of all that was published up to now, by whichever program; JSON as what it says."""
        fence = int(
            sqlite_shell(
                self.shop.path,
                f"INSERT INTO vpubsub (channel, payload) VALUES ('{self.channel}', 'fence') RETURNING id;",
            )
        )
        found: list[tuple[int, Any]] = []
        while True:
            (message,) = self.stream.messages(1)
            if int(message["messageId"]) == fence:
                return found
            found.append((int(message["messageId"]), read(message["payload"])))


@contextlib.contextmanager
def shops(folder: Path, names: list[str]) -> Iterator[dict[str, Shop]]:
    """A file for each of these clients, and one server for all."""
    paths = {}
    for name in names:
        paths[name] = folder / name / "data.db"
        paths[name].parent.mkdir()
        with contextlib.closing(sqlite3.connect(paths[name], isolation_level=None)) as conn:
            schema.set_durability(conn, Settings())
            schema.install(conn, Settings())
            conn.executescript(BEFORE)
            tables.create(conn, "users", definition.Broadcast("changes/users"))
    (folder / "server").mkdir()
    server = Server(list(paths.values()), OPEN, folder / "server")
    try:
        server.start()
        served = {
            found["path"]: found["name"] for found in httpx.get(f"{server.url}/-/databases.json").json()["databases"]
        }
        yield {name: Shop(path.parent, server, served[str(path)]) for name, path in paths.items()}
        assert "Traceback" not in server.log
    finally:
        server.kill()


def check(shop: Shop, first: list[str], second: list[str], known: str, again: object, **environment: str) -> None:
    """The examples of one client, with what must be seen beside them.

    ``first`` runs the transaction and the key, ``second`` the key again, and what a test adds: it prints as JSON what
    a message got in a transaction that was rolled back (``rollback``), what updating and deleting said (``update``,
    ``delete``), and what a plain insertion of the key made (``again``). ``known`` is what the example prints for a
    key that is there.
    """
    ((users, head),) = shop.rows("SELECT (SELECT max(id) FROM users), (SELECT max(id) FROM vpubsub)")
    assert (users, head) == (40, 2)
    with shop.subscriber() as subscriber:
        published = run(first, shop.folder, **environment)
        assert published == ["4 5", "6"], "3 is the broadcast's"
        assert subscriber.received() == [(4, {"user": 41}), (5, "welcome"), (6, {"order": 8})]
        *key, report = run(second, shop.folder, **environment)
        assert key == [known]
        found = json.loads(report)
        assert found["rollback"] == 9, "7 was the subscriber's, 8 the broadcast's; 8 and 9 are rolled back"
        assert found["again"] == again
        for change in ("update", "delete"):
            assert "vpubsub is append-only" in found[change]
        assert subscriber.received() == []
    grace = (41, "grace@example.com", "active")
    assert shop.rows("SELECT * FROM users WHERE id > 40") == [grace]
    orders = "SELECT id, payload FROM vpubsub WHERE channel = 'orders' AND payload <> 'fence' ORDER BY id"
    stored = [(number, read(payload)) for number, payload in shop.rows(orders)]
    assert stored == [(2, {"order": 7}), (4, {"user": 41}), (5, "welcome"), (6, {"order": 8})]
