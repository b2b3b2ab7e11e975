"""A publish imports nothing, and does not ask for the running loop, when another has gone before it."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_pubsub import lazy
from datasette_pubsub.core import glob

BODY = b'{"channel": "news", "payload": "hello"}'


async def publish(app: Any, token: str) -> int:
    """Publish one message to a database named ``data``; returns the status."""
    path = "/data/-/pubsub/-/publish"
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "query_string": b""}
    scope |= {"path": path, "raw_path": path.encode(), "headers": [*headers, (b"content-length", b"%d" % len(BODY))]}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.asyncio
async def test_a_publish_asks_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite3.connect(tmp_path / "data.db").close()
    datasette = Datasette([str(tmp_path / "data.db")], config={"permissions": {"publish-message": True}})
    app = datasette.app()
    await datasette.invoke_startup()
    token = await datasette.create_token("alice")
    asked: list[str] = []

    def counted(what: str, function: Any) -> Any:
        def called(*args: Any, **named: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("datasette_pubsub"):
                asked.append(f"{what} {args[:1]} in {caller}")
            return function(*args, **named)

        return called

    try:
        assert await publish(app, token) == 200
        monkeypatch.setattr(asyncio, "get_running_loop", counted("get_running_loop", asyncio.get_running_loop))
        monkeypatch.setattr(builtins, "__import__", counted("import", builtins.__import__))
        monkeypatch.setattr(lazy, "import_module", counted("import_module", importlib.import_module))
        assert await publish(app, token) == 200
        monkeypatch.undo()
    finally:
        await datasette.invoke_shutdown()
    assert asked == []


def test_a_stand_in_loads_its_module_on_first_use_and_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = importlib.import_module

    def noted(name: str) -> Any:
        loaded.append(name)
        return load(name)

    monkeypatch.setattr(lazy, "import_module", noted)
    stand_in = lazy.LazyModule("core.glob")
    assert loaded == []
    assert stand_in.glob_regex is stand_in.glob_regex is glob.glob_regex
    assert loaded == ["datasette_pubsub.core.glob"]
