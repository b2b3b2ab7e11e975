"""Channels and keys that are not UTF-8: refused by the log, and survived in files that hold them already."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from commands import datasette
from servers import ENDS_SECONDS, Server, Sse, wait_for

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import activity, log, retention, schema, search
from datasette_pubsub.storage.catchup import CatchUp
from datasette_pubsub.storage.names import shown

#: Every byte that begins or goes on a character, where it cannot stand: words in Latin-1.
BROKEN = [b"k" + bytes([byte]) + b"se" for byte in range(0x80, 0x100)]
GOOD = ["Oslo", "k", "käse", "zoo", "\U0001f4e6"]


def make(path: Path) -> None:
    """A file whose log took channels that are not UTF-8, from before the log refused them; each channel twice."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        schema.install(conn, Settings())
        conn.execute("DROP TRIGGER vpubsub_guard")
        for text in ("first", "second"):
            conn.executemany(
                "INSERT INTO vpubsub (channel, payload) VALUES (CAST(? AS TEXT), ?)",
                [(name, text) for name in (*BROKEN, *(name.encode() for name in GOOD))],
            )
        schema.install(conn, Settings())


@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE"])
@pytest.mark.parametrize("field", ["channel", "key"])
def test_the_log_refuses_them_with_the_field_named(tmp_path: Path, verb: str, field: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as conn:
        schema.install(conn, Settings())
        columns = {"channel": "'c'", "key": "'k'", field: "CAST(? AS TEXT)"}
        statement = f"{verb} INTO vpubsub (channel, key, payload) VALUES ({columns['channel']}, {columns['key']}, 'x')"
        for name in (*BROKEN, b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"end\xc3"):
            with pytest.raises(sqlite3.IntegrityError, match=f"{field} is not valid UTF-8"):
                conn.execute(statement, [name])
        for good in GOOD:
            conn.execute(statement, [good.encode()])
        assert [row[0] for row in conn.execute(f"SELECT {field} FROM vpubsub ORDER BY id")] == GOOD


def test_nothing_loops_and_nothing_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make(path)
    everything = len(BROKEN) + len(GOOD)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        # As Datasette's own connections read.
        conn.text_factory = lambda data: data.decode(errors="replace")
        assert len(log.channel_names(conn)) == everything
        assert [channel.count for channel in log.channels(conn)] == [2] * everything
        assert len(activity.recent(conn, lambda _: True, everything).channels) == everything
        for selector, wanted in (
            (Selector.of((), ["k*"]), len(BROKEN) + 2),
            (Selector.of((), ["*"]), everything),
            (Selector.of(["k\ufffdse"]), len(BROKEN)),
            (Selector.of(["Oslo"], ["k?se"]), len(BROKEN) + 2),
        ):
            page = CatchUp(selector, 1 << 20).page(conn, 0)
            assert len(page.messages) == 2 * wanted
            assert log.count_after(conn, selector, 0) == 2 * wanted
            assert len(search.newest(conn, selector, 1000).messages) == 2 * wanted
            assert log.earliest(conn, selector) <= len(BROKEN) + 1
        left = retention.goals(conn, Settings(retention_messages=everything))
        assert len(left) == everything
        removed = sum(retention.trim(conn, left).values())
        while left:
            removed += sum(retention.trim(conn, left).values())
        assert removed == everything
        page = CatchUp(Selector.of((), ["k*"]), 1 << 20).page(conn, 0)
        assert (page.missed, {message.payload for message in page.messages}) == (len(BROKEN) + 2, {"second"})
        assert sorted(map(shown, retention.released(conn, Selector.of((), ["k*"]), 0))) == sorted(
            [*(shown(name) for name in BROKEN), "k", "käse"]
        )


def test_every_page_and_stream_of_a_server(serve: Callable[..., Server], tmp_path: Path) -> None:
    make(tmp_path / "data.db")
    server = serve()
    # More visits than Datasette has SQL threads: none is left behind in a loop.
    for _ in range(4):
        for address in (
            "/data",
            "/data/-/pubsub",
            "/data/-/pubsub/-/activity.json",
            "/-/jump.json?q=k",
            "/data/vpubsub",
        ):
            assert httpx.get(server.url + address, timeout=20).status_code == 200, address
    listed = httpx.get(f"{server.pubsub}/-/channels.json").json()["channels"]
    assert len(listed) == len(BROKEN) + len(GOOD)
    page = httpx.get(f"{server.pubsub}/{quote('k~EF~BF~BDse')}")
    assert page.status_code == 200
    assert "second" in page.text
    messages = httpx.get(f"{server.pubsub}/-/messages.json", params={"channel": "k\ufffdse", "limit": 1000}).json()
    assert len(messages["messages"]) == 2 * len(BROKEN)
    assert "k\ufffdse" in httpx.get(f"{server.pubsub}/-/messages.csv").text

    for number, pattern in enumerate(("k*", "*")):
        wanted = 2 * (len(BROKEN) + (2 if pattern == "k*" else len(GOOD)))
        with Sse(f"{server.pubsub}/-/stream", pattern=pattern, subscription=f"s{number}") as reader:
            found = reader.messages(wanted)
            assert {message["channel"] for message in found} >= {"k\ufffdse", "käse"}
            # One that arrives while the subscriber is connected, from a program that knows no guard.
            with contextlib.closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
                guard = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'vpubsub_guard'").fetchone()[0]
                conn.execute("BEGIN IMMEDIATE")
                conn.execute("DROP TRIGGER vpubsub_guard")
                name = b"k\xf6" + str(number).encode()
                conn.execute("INSERT INTO vpubsub (channel, payload) VALUES (CAST(? AS TEXT), 'live')", [name])
                conn.execute(guard)
                conn.execute("COMMIT")
            extra = 0 if number == 0 else 1
            live = reader.messages(1 + extra)[-1]
            assert (live["channel"], live["payload"]) == (f"k\ufffd{number}", "live")
            last = int(live["messageId"])

        def cursor(name: str = f"s{number}", last: int = last) -> bool:
            rows = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
            return [(row["cursor"], row["lag"]) for row in rows if row["subscription"] == name] == [(last, 0)]

        wait_for(cursor, "the cursor is at the last message, and nothing is behind it")
    assert server.stop() < ENDS_SECONDS


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make(path)

    def run(*arguments: str) -> str:
        return datasette("pubsub", *arguments)

    assert len(run("channels", str(path)).splitlines()) == 1 + len(BROKEN) + len(GOOD)
    lines = run("tail", str(path), "--pattern", "k*", "--start", "earliest", "--json").splitlines()
    assert [json.loads(line)["channel"] for line in lines].count("k\ufffdse") == 2 * len(BROKEN)
    half = len(BROKEN) + len(GOOD)
    assert f"Trimmed {half} messages" in run("trim", str(path), "--messages", str(half))
