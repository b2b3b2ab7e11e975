"""What Datasette's permissions and analyses, and asyncio, are asked beyond their documented interfaces.

A test that fails here after an upgrade says that something undocumented has changed: see ``compat/``.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.permissions import SkipPermissions
from datasette.plugins import pm
from datasette.utils.asgi import Response

from datasette_pubsub import compat


@pytest.mark.asyncio
async def test_a_waiting_task_can_be_stood_in_for() -> None:
    assert compat.CAN_ENTER_TASKS
    loop = asyncio.get_running_loop()
    task = loop.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    found: list[Any] = []

    def outside() -> None:
        compat.enter_task(loop, task)
        try:
            found.append(asyncio.current_task())
        finally:
            compat.leave_task(loop, task)
        found.append(asyncio.current_task())

    loop.call_soon(outside)
    await asyncio.sleep(0.01)
    assert found == [task, None]
    task.cancel()


@pytest.mark.asyncio
async def test_that_nothing_is_checked_can_be_seen() -> None:
    datasette = Datasette(memory=True)
    await datasette.invoke_startup()
    assert not compat.checks_are_off()
    assert await compat.permission_rules(datasette, None, "view-instance")
    with SkipPermissions():
        assert compat.checks_are_off()
        assert await compat.permission_rules(datasette, None, "view-instance") is None
    assert not compat.checks_are_off()


@pytest.mark.asyncio
async def test_answers_of_a_request_can_be_seen_and_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counts:
        """A plugin that notes each question."""

        def permission_resources_sql(self, action: str) -> None:
            asked.append(action)

    Counts.permission_resources_sql = hookimpl(Counts.permission_resources_sql)  # type: ignore[method-assign]
    counts = Counts()
    pm.register(counts)
    seen: list[Any] = []

    async def view(datasette: Any) -> Any:
        async def ask() -> int:
            before = asked.count("view-instance")
            await datasette.allowed(action="view-instance", actor=None)
            return asked.count("view-instance") - before

        cache = compat.permission_cache()
        first, again = await ask(), await ask()
        with compat.without_permission_cache():
            anew = await ask()
            other = compat.permission_cache()
        seen.extend([first, again, anew, cache is not None, other is not cache, compat.permission_cache() is cache])
        return Response.text("")

    class Route:
        """A plugin with the view."""

        @hookimpl
        def register_routes(self) -> list[Any]:
            return [(r"^/-/ask$", view)]

    route = Route()
    pm.register(route)
    try:
        datasette = Datasette(memory=True)
        await datasette.client.get("/-/ask")
    finally:
        pm.unregister(counts)
        pm.unregister(route)
    first, again, anew, *rest = seen
    assert (again, rest) == (0, [True, True, True]), "the second is answered by what the first was answered"
    assert first >= 0
    assert anew == 1
    # Where Datasette has no such variable, nothing is kept, and nothing is left aside.
    monkeypatch.setattr(compat, "_answers", None)
    with compat.without_permission_cache():
        assert compat.permission_cache() is None
    monkeypatch.setattr(compat, "_skip_checks", None)
    assert not compat.checks_are_off()


@pytest.mark.asyncio
async def test_connections_that_analyse_sql_are_prepared_once(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    sqlite3.connect(path).close()
    # Without a broker, which prepares them itself.
    config = {"plugins": {"datasette-pubsub": {"enabled": False}}}
    datasette = Datasette([str(path)], config=config)
    await datasette.invoke_startup()
    db = datasette.get_database("data")
    assert not compat.write_thread_lives(db)
    prepared: list[sqlite3.Connection] = []
    for _ in range(2):
        compat.prepare_isolated(db, prepared.append)
    assert await db.execute_isolated_fn(lambda conn: conn.execute("SELECT 1").fetchone()[0]) == 1
    assert len(prepared) == 1
    assert compat.write_thread_lives(db)
    datasette.close()
