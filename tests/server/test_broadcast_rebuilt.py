"""A table that is rebuilt loses its triggers: that is noticed, told, and put right by one button."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from servers import Server, wait_for

from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.cli import main
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import objects, schema

#: What Django does to alter a column: a new table, copy, drop, rename.
DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
    INSTALLED_APPS=[], DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
django.setup()
from django.db import connection, migrations, models
from django.db.migrations.state import ProjectState
state = ProjectState()
create = migrations.CreateModel("Order", [("id", models.BigAutoField(primary_key=True)), ("what", models.TextField())],
                                options={"db_table": "orders"})
alter = migrations.AlterField("Order", "what", models.CharField(max_length=10, default="x"))
migration = migrations.Migration("0002", "shop")
for operation in (create, alter):
    after = state.clone()
    operation.state_forwards("shop", after)
    if operation is not create:
        with connection.schema_editor() as editor:
            operation.database_forwards("shop", editor, state, after)
    state = after
"""

ALEMBIC = """
import sys
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
engine = sa.create_engine("sqlite:///" + sys.argv[1])
with engine.begin() as conn:
    with Operations(MigrationContext.configure(conn)).batch_alter_table("orders") as batch:
        batch.alter_column("what", type_=sa.String(10), nullable=True)
engine.dispose()
"""

TOOLS = {
    "django": [sys.executable, "-c", DJANGO],
    "alembic": [sys.executable, "-c", ALEMBIC],
    "sqlite-utils": [sys.executable, "-m", "sqlite_utils", "transform", "{path}", "orders", "--type", "what", "blob"],
}


def rebuild(tool: str, path: Path) -> None:
    command = [part.format(path=path) if part == "{path}" else part for part in TOOLS[tool]]
    if tool != "sqlite-utils":
        command.append(str(path))
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def make(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT NOT NULL)")
        conn.execute("CREATE TABLE other (id INTEGER PRIMARY KEY)")
        conn.execute("INSERT INTO orders (what) VALUES ('a')")


def pubsub(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.pubsub, ["broadcast", *arguments])
    return done.exit_code, done.output


def triggers(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        return int(
            conn.execute(
                "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'orders'"
            ).fetchone()[0]
        )


@pytest.mark.parametrize("tool", TOOLS)
def test_a_migration_that_ends_a_broadcast_is_named(tmp_path: Path, tool: str) -> None:
    """The check exits with 1 and names the table; the broadcast is made again as it was."""
    path = tmp_path / "data.db"
    make(path)
    assert pubsub(str(path), "--check") == (0, "0 tables broadcast, as made\n")
    for table in ("orders", "other"):
        assert pubsub(str(path), table, "--channel", "of/", "--channel-suffix", "id", "--on", "insert")[0] == 0
    assert pubsub(str(path), "--check") == (0, "2 tables broadcast, as made\n")
    rebuild(tool, path)
    assert triggers(path) == 0
    code, said = pubsub(str(path), "--check")
    assert code == 1
    assert said == (
        "orders: it was rebuilt, or its triggers were dropped, and its changes are not published any more\n"
    )
    code, said = pubsub(str(path), "orders", "--show")
    assert (code, "rebuilt" in said) == (1, True)
    assert pubsub(str(path), "orders", "--again") == (0, "Created 1 trigger: orders is broadcast to of/…\n")
    assert pubsub(str(path), "--check")[0] == 0
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("INSERT INTO orders (what) VALUES ('b')")
        assert conn.execute("SELECT channel FROM vpubsub").fetchall() == [("of/2",)]
    code, said = pubsub(str(path), "orders", "--again")
    assert (code, said) == (1, "Error: orders has lost no broadcast that could be made again\n")


def test_what_is_lost_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for table in ("orders", "other"):
            tables.create(conn, table, Broadcast(table))
        # Renamed with its triggers, and another table of its name: nothing is lost.
        conn.execute("ALTER TABLE orders RENAME TO bills")
        assert tables.lost(conn) == {}
        conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, u UNIQUE)")
        assert tables.lost(conn) == {}
        tables.create(conn, "orders", Broadcast("new"))
        assert tables.lost(conn) == {}
        assert pubsub(str(path), "--check")[0] == 0
        # One trigger of several.
        name = tables.find(conn, "bills").triggers[1].name
        conn.execute(f'DROP TRIGGER "{name}"')
        assert tables.lost(conn)["bills"].reason == f"triggers of its broadcast are missing: {name}"
        # The table is dropped; removing what is gone ends the report.
        conn.execute("DROP TABLE other")
        assert pubsub(str(path), "--check") == (
            1, f"bills: triggers of its broadcast are missing: {name}\nother: there is no such table any more\n"
        )  # fmt: skip
        assert pubsub(str(path), "other", "--remove") == (0, "Removed 0 triggers; other is not broadcast\n")
        assert pubsub(str(path), "bills", "--remove") == (0, "Removed 2 triggers; bills is not broadcast\n")
        assert pubsub(str(path), "orders", "--remove")[0] == 0
        assert pubsub(str(path), "--check") == (0, "0 tables broadcast, as made\n")
    assert pubsub(str(path), "orders", "--check")[0] == 2
    assert pubsub(str(path))[0] == 2
    assert pubsub(str(path), "orders", "--again", "--channel", "a")[0] == 2


def test_broadcasts_of_an_earlier_version_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        tables.create(conn, "orders", Broadcast("a", conditions={"insert": ""}))
        conn.execute(f"DROP TABLE {objects.RECORDS}")
        conn.execute(f"DROP TABLE {objects.REPLACED}")
        assert tables.lost(conn) == {}
        tables.record_standing(conn)
        tables.record_standing(conn)
        conn.execute("DROP TRIGGER pubsub_broadcast_insert_orders")
        (found,) = tables.lost(conn).values()
        assert (found.table, found.gone) == ("orders", False)
        assert found.broadcast == Broadcast("a", conditions={"insert": ""})


def test_the_server_tells_and_its_pages_put_it_right(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Within seconds, once, in the log; on the table's page for those who may alter it; and a button."""
    make(tmp_path / "data.db")
    permissions = {"publish-message": True, "alter-table": {"id": "root"}, "update-row": {"id": "root"}}
    server = serve(config={"permissions": permissions}, options=["--root"])
    assert pubsub(str(server.path), "orders", "--channel", "of/", "--channel-suffix", "id")[0] == 0
    page, table = f"{server.url}/data/orders/-/broadcast", f"{server.url}/data/orders"
    cookies = server.root_cookie()
    assert "any more" not in httpx.get(page, cookies=cookies).text
    rebuild("sqlite-utils", server.path)
    wait_for(lambda: "table 'orders' was broadcast: it was rebuilt" in server.log, "the log names the table")
    found = httpx.get(page, cookies=cookies).text
    assert "Not broadcast any more" in found
    assert "Broadcast it again" in found
    assert "it was rebuilt" in httpx.get(table, cookies=cookies).text
    assert "it was rebuilt" not in httpx.get(table).text
    menu = httpx.get(table, cookies=cookies).text
    assert "Its changes are not published any more" in menu
    answer = httpx.post(page, data={"action": "again"}, cookies=cookies)
    assert answer.status_code == 302
    assert "Not broadcast any more" not in httpx.get(page, cookies=cookies).text
    server.rows("SELECT 1")
    with contextlib.closing(sqlite3.connect(server.path)) as conn:
        conn.execute("UPDATE orders SET what = 'new'")
        conn.commit()
        (payload,) = conn.execute("SELECT payload FROM vpubsub").fetchone()
    assert json.loads(payload)["op"] == "update"
    # Said so, and not again while it stays as it is; again for the next time.
    assert server.log.count("table 'orders' was broadcast") == 1
    rebuild("sqlite-utils", server.path)
    wait_for(lambda: server.log.count("table 'orders' was broadcast") == 2, "the log names the table again")
    assert httpx.post(page, data={"action": "remove"}, cookies=cookies).status_code == 302
    assert "Not broadcast any more" not in httpx.get(page, cookies=cookies).text
    answer = httpx.post(page, data={"action": "again"}, cookies=cookies)
    assert answer.status_code == 400
    server.restart()
    assert server.log.count("table 'orders' was broadcast") == 2
