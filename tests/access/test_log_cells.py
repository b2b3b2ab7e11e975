"""Who gets a link to a channel's live page on Datasette's page of the log, and a folded payload."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import httpx
from auth import cookie
from commands import call
from datasette.app import Datasette
from datasette.utils.asgi import Request
from markupsafe import Markup
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import PLUGIN
from datasette_pubsub.pages import log_cells


def test_only_the_log_has_such_cells_and_only_for_those_who_may_look(serve: Callable[..., Server]) -> None:
    """Nothing in other tables with the same columns, and nothing without the right to the live page."""
    ada = {"view": {"id": "ada"}}
    config = {
        "data": {"plugins": {PLUGIN: {"channel_permissions": {"open/*": {"view": True}, "*": ada}}}},
        "shut": {"plugins": {PLUGIN: {"channel_permissions": {"*": ada}}}},
        "off": {"plugins": {PLUGIN: {"enabled": False}}},
    }
    server = serve(config={"databases": config})
    server.stop()
    messages = "('open/1', '{\"a\": 1}'), ('closed', '{\"a\": 2}')"
    for name in ("data", "shut", "off"):
        path = server.folder / f"{name}.db"
        sqlite_shell(path, "CREATE TABLE IF NOT EXISTS something (a)")
        call("install", path)
        sqlite_shell(path, f"INSERT INTO vpubsub (channel, payload) VALUES {messages}")
        sqlite_shell(path, "CREATE TABLE copy AS SELECT id, channel, payload FROM vpubsub")
        sqlite_shell(path, "CREATE VIEW seen AS SELECT channel, payload FROM copy")
    # A table of somebody else, who has had the name before.
    sqlite_shell(
        server.folder / "other.db", "CREATE TABLE vpubsub (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT)"
    )
    sqlite_shell(server.folder / "other.db", f"INSERT INTO vpubsub (channel, payload) VALUES {messages}")
    server.databases[:] = [server.folder / f"{name}.db" for name in ("data", "shut", "off", "other")]
    server.start()

    def cells(path: str, actor: str | None) -> tuple[list[str], int]:
        answer = httpx.get(f"{server.url}/{path}", headers=cookie(actor))
        assert (answer.status_code, "closed" in answer.text) == (200, True), answer.text
        links = re.findall(r'<td class="col-channel[^"]*">\s*<a href="([^"]*)">', answer.text)
        return links, answer.text.count('<details class="pubsub-folded"')

    both = ["{}/-/pubsub/open~2F1", "{}/-/pubsub/closed"]
    assert cells("data/vpubsub", "ada") == ([link.format("/data") for link in both], 2)
    assert cells("shut/vpubsub", "ada") == ([link.format("/shut") for link in both], 2)
    for address in ("copy", "seen", "-/query?sql=select+channel,+payload+from+vpubsub"):
        assert cells(f"data/{address}", "ada") == ([], 0), address
    assert cells("off/vpubsub", "ada") == ([], 0)
    assert cells("other/vpubsub", "ada") == ([], 0)
    # Who may not view every channel may not view the table; and would get no cell of ours there, nor a link.
    assert httpx.get(f"{server.url}/shut/vpubsub").status_code == 403

    async def rendered() -> list[list[Markup | None]]:
        datasette = Datasette([server.folder / f"{name}.db" for name in ("data", "shut")], config={"databases": config})
        await datasette.invoke_startup()
        found = []
        for database in ("data", "shut"):
            request = Request.fake(f"/{database}/vpubsub", url_vars={"database": database, "table": "vpubsub"})
            values = [("channel", "open/1"), ("channel", "closed"), ("payload", "{}")]
            of = [log_cells.cell(datasette, request, database, "vpubsub", column, value) for column, value in values]
            found.append([await cell for cell in of if cell is not None])
        datasette.close()
        return found

    link = '<a href="/data/-/pubsub/open~2F1">open/1</a>'
    folded = '<details class="pubsub-folded"><summary><bdi>{}</bdi></summary><pre dir="auto">\n{}</pre></details>'
    assert asyncio.run(rendered()) == [[link, None, folded], [None, None, None]]
