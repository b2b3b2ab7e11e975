"""Many tabs with the same live page: one connection, and one run of the query for each change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import browsers as chromium
import httpx
from browsers import Watched
from playwright.sync_api import Browser, expect
from servers import Server, sqlite_shell, wait_for
from shop import row, shop

pytestmark = chromium.NEEDED

#: Tells how often each live query has run, and for how many subscribers.
RUNS = """
from datasette import hookimpl
from datasette.utils.asgi import Response
from datasette_pubsub.hooks import registry

@hookimpl
def register_routes():
    async def runs(datasette):
        queries = registry(datasette).of("data").queries.live.queries
        return Response.json([[query.runs, len(query.subscribers)] for query in queries])
    return [(r"^/-/runs$", runs)]
"""


def with_runs(serve: Callable[..., Server], tmp_path: Path) -> tuple[Server, Callable[[], list[list[int]]]]:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "runs.py").write_text(RUNS)
    server = shop(serve, options=["--plugins-dir", str(plugins)])
    return server, lambda: list(httpx.get(f"{server.url}/-/runs", timeout=60).json())


def test_twenty_tabs_take_one_connection_and_one_run_for_each_change(
    serve: Callable[..., Server], watched: Watched, tmp_path: Path
) -> None:
    server, runs = with_runs(serve, tmp_path)
    tabs = [watched.open(f"{server.url}/data/totals.live") for _ in range(20)]
    ((before, subscribers),) = runs()
    assert (subscribers, len(watched.streams)) == (1, 1)
    for number in range(1, 6):
        sqlite_shell(server.path, f"UPDATE orders SET total = {number}000 WHERE id = 1")
        for page in tabs:
            expect(row(page, "Ada")).to_contain_text(f"{number}007.25")
    ((after, subscribers),) = runs()
    assert (after - before, subscribers, len(watched.streams)) == (5, 1, 1)
    # The one that has the connection goes: another takes over, and nothing is missed or shown twice.
    tabs.pop(0).close()
    sqlite_shell(server.path, "UPDATE orders SET total = 1 WHERE id = 1")
    for page in tabs:
        expect(row(page, "Ada")).to_contain_text("8.25")
        expect(page.locator("tbody tr")).to_have_count(2)
    assert len(watched.streams) == 2


def test_browsers_that_follow_the_same_share_one_run(
    serve: Callable[..., Server], browser: Browser, tmp_path: Path
) -> None:
    server, runs = with_runs(serve, tmp_path)
    contexts = [browser.new_context() for _ in range(3)]
    pages = [Watched(context).open(f"{server.url}/data/totals.live") for context in contexts]
    ((before, subscribers),) = runs()
    assert subscribers == 3
    sqlite_shell(server.path, "UPDATE orders SET total = 500 WHERE id = 1")
    for page in pages:
        expect(row(page, "Ada")).to_contain_text("507.25")
    assert runs() == [[before + 1, 3]]
    for context in contexts:
        context.close()
    wait_for(lambda: runs() == [], "nobody follows")
