"""The client for Python follows a file without any server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servers import sqlite_shell

from datasette_pubsub import client as package
from datasette_pubsub.client import ClientError, Message

pytestmark = pytest.mark.usefixtures("in_time")


async def taken(messages: AsyncIterator[Message], count: int) -> list[Message]:
    found = [await anext(messages) for _ in range(count)]
    await messages.aclose()  # type: ignore[attr-defined]
    return found


def followed(kind: str, count: int, *values: Any, **options: Any) -> list[Message]:
    """The first messages that either function yields."""
    if kind == "async":
        return asyncio.run(taken(package.follow_async(*values, **options), count))
    messages = package.follow(*values, **options)
    found = [next(messages) for _ in range(count)]
    messages.close()  # type: ignore[attr-defined]
    return found


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_a_file_is_followed(file: Path, kind: str) -> None:
    later = "import sqlite3, sys, time; time.sleep(0.5); c = sqlite3.connect(sys.argv[1]); "
    later += "c.execute(\"INSERT INTO vpubsub (channel, payload) VALUES ('b/2', x'00'), ('a', 1.5)\"); c.commit()"
    sqlite_shell(file, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'one'), ('b/1', 2)")
    with subprocess.Popen([sys.executable, "-c", later, file]):
        found = followed(kind, 4, file, after="earliest")
    assert [(each.id, each.channel, each.payload) for each in found] == [
        (1, "a", "one"), (2, "b/1", 2), (3, "b/2", b"\0"), (4, "a", 1.5),
    ]  # fmt: skip
    assert [each.id for each in followed(kind, 2, file, "a", after="earliest")] == [1, 4]
    assert [each.id for each in followed(kind, 1, file, "x", patterns=["b/*"], after=2)] == [3]
    sqlite_shell(file, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) "
                 "INSERT INTO vpubsub (channel, payload) SELECT 'many', i FROM n")  # fmt: skip
    assert [each.payload for each in followed(kind, 2500, file, "many", after=4)] == list(range(1, 2501))


@KINDS
def test_what_retention_has_taken_is_told(file: Path, kind: str) -> None:
    sqlite_shell(file, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 1), ('b', 2), ('a', 3), ('a', 4)")
    sqlite_shell(
        file, "INSERT INTO _pubsub_released VALUES ('a', 3); DELETE FROM vpubsub WHERE channel = 'a' AND id < 4"
    )
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "a", after=1)] == [(4, -1)]
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "b", after=1)] == [(2, 0)]
    assert [(each.id, each.missed) for each in followed(kind, 2, file, after="earliest")] == [(2, 0), (4, 0)]
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "a", after=3)] == [(4, 0)]


@KINDS
def test_what_cannot_be_followed(tmp_path: Path, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClientError, match="there is no file"):
        followed(kind, 1, tmp_path / "none.db")
    sqlite_shell(tmp_path / "plain.db", "CREATE TABLE t (a)")
    with pytest.raises(ClientError, match="this file has no log"):
        followed(kind, 1, tmp_path / "plain.db")
    # Another file takes the place of this one.
    monkeypatch.setattr("datasette_pubsub.client.file.FILE_SECONDS", 0.05)
    threading.Timer(0.3, lambda: (tmp_path / "plain.db").replace(file)).start()
    with pytest.raises(ClientError, match="another file has taken the place"):
        followed(kind, 1, file)
