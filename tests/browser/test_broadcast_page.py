"""The page on which a table is broadcast, in a real Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import browsers as chromium
import httpx
import itsdangerous
import pytest
from broadcast_items import ITEMS, broadcast, with_items
from playwright.sync_api import Browser, expect
from servers import Server, sqlite_shell

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.binary() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]


# -- the page that makes it ---------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False])
def test_broadcast_is_made_changed_and_removed_on_its_page(
    serve: Callable[..., Server], browser: Browser, scripts: bool
) -> None:
    server = serve(config={}, options=["--root"])
    sqlite_shell(server.path, ITEMS)
    context = browser.new_context(java_script_enabled=scripts)
    context.add_cookies([{"name": "ds_actor", "value": server.root_cookie()["ds_actor"], "url": server.url}])
    page = context.new_page()
    page.goto(f"{server.url}/data/items")
    page.locator(".page-action-menu summary").click()
    page.get_by_role("menuitem", name="Broadcast this table").click()
    page.get_by_label("Channel").fill("prices")
    page.get_by_label("name", exact=True).uncheck()
    page.get_by_role("checkbox", name="delete").uncheck()
    page.locator("input[name=when_update]").fill("NEW.cost > 1")
    page.get_by_role("button", name="Show the triggers").click()
    expect(page.get_by_role("alert")).to_have_text("the condition for update: no such column: NEW.cost")
    page.locator("input[name=when_update]").fill("NEW.price > 1")
    page.get_by_role("button", name="Show the triggers").click()
    shown = page.locator("pre").first.inner_text()
    assert shown.count("CREATE TRIGGER") == 2
    expect(page.locator(".message-warning")).to_contain_text(
        "Whoever may view the channel prices sees the columns id, price"
    )
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == [(0,)]
    page.get_by_role("button", name="Create these triggers").click()
    expect(page.locator(".message-info")).to_have_text("items is broadcast now")
    made = server.rows("SELECT sql FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*' ORDER BY name")
    assert [f"{sql};" for (sql,) in made] == shown.split("\n\n")
    sqlite_shell(
        server.path, "INSERT INTO items VALUES (4, 'four', 0.5); UPDATE items SET price = price + 1; DELETE FROM items;"
    )
    assert [len(server.rows("SELECT 1 FROM vpubsub WHERE channel = 'prices'"))] == [1 + 4]

    # The table changes: the page says that the triggers no longer fit, and makes them again.
    sqlite_shell(server.path, "ALTER TABLE items RENAME COLUMN price TO cost")
    page.goto(f"{server.url}/data/items/-/broadcast")
    expect(page.locator(".message-warning")).to_contain_text("the table has no column 'price' any more")
    page.get_by_label("cost", exact=True).check()
    page.locator("input[name=when_update]").fill("")
    page.get_by_role("button", name="Show the triggers").click()
    page.get_by_role("button", name="Create these triggers").click()
    expect(page.locator(".message-warning")).to_have_count(0)
    page.get_by_role("button", name="Remove the triggers").click()
    expect(page.locator(".message-info")).to_have_text("items is not broadcast any more")
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == [(0,)]
    context.close()


def test_altering_the_table_in_datasette_keeps_its_broadcast(serve: Callable[..., Server]) -> None:
    """Datasette builds the table anew, which would lose the triggers; removing them on purpose stays possible."""
    server = with_items(serve, config={}, options=["--root"])
    cookies = server.root_cookie()

    def alter(operation: str, **arguments: str) -> None:
        body = {"operations": [{"op": operation, "args": arguments}]}
        response = httpx.post(f"{server.url}/data/items/-/alter", json=body, cookies=cookies)
        assert response.status_code == 200, response.text

    def newest() -> Any:
        sqlite_shell(server.path, "INSERT INTO items DEFAULT VALUES")
        return json.loads(server.rows("SELECT payload FROM vpubsub ORDER BY id DESC")[0][0])["new"]

    alter("rename_column", name="price", to="cost")
    assert set(newest()) == {"id", "name", "cost"}
    alter("drop_column", name="name")
    assert set(newest()) == {"id", "cost"}
    broadcast(server, "items", "--column", "cost", "--channel", "costs")
    alter("rename_column", name="cost", to="price")
    assert server.rows("SELECT name FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == []
    assert "'items' was rebuilt and is not broadcast any more: table items has no column 'cost'" in server.log
    broadcast(server, "items")
    httpx.post(f"{server.url}/data/items/-/broadcast", data={"action": "remove"}, cookies=cookies)
    assert server.rows("SELECT name FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == []


def test_who_may_broadcast(serve: Callable[..., Server]) -> None:
    """The right to change the table, and to publish to the channel; for forms of this site only."""
    permissions = {
        "alter-table": {"id": ["ada", "bob", "eve"]},
        "publish-message": {"id": "carl"},
        "view-table": {"id": ["ada", "bob"]},
    }
    rules = {"channel_permissions": {"ada/*": {"publish": {"id": "ada"}, "view": True}}}
    config = {"databases": {"data": {"permissions": permissions, "plugins": {"datasette-pubsub": rules}}}}
    server = serve(config=config)
    sqlite_shell(server.path, ITEMS)
    form = {"channel": "ada/items", "column": ["id", "name", "price"], "on": ["insert"], "new": "1"}

    def post(actor: str | None, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        token = itsdangerous.URLSafeSerializer("tests", "actor").dumps({"a": {"id": actor}})
        sent = {**({"Cookie": f"ds_actor={token}"} if actor else {}), **(headers or {})}
        return httpx.post(f"{server.url}/data/items/-/broadcast", data={**form, **fields}, headers=sent, timeout=60)

    def shown(response: httpx.Response) -> str:
        (found,) = re.findall(r'name="shown" value="(\w+)"', response.text)
        return str(found)

    preview = post("ada", action="preview")
    assert preview.status_code == 200
    assert "Everybody may view this channel, but not this table" in preview.text
    assert post(None, action="preview").status_code == 403
    # Who may not see the table may not have it told.
    assert "view-table" in post("eve", action="preview").text
    refused = post("bob", action="preview")
    assert (refused.status_code, "publish-message" in refused.text) == (403, True)
    assert post("bob", action="create", shown=shown(preview)).status_code == 403
    assert post("ada", action="create", shown=shown(preview), per_row="id").status_code == 403
    assert post("ada", action="create", shown=shown(preview), channel="elsewhere").status_code == 403
    assert post("ada", action="create", shown=shown(preview), when_insert="1").status_code == 409
    assert (
        post("ada", action="create", shown=shown(preview), headers={"Origin": "http://evil.example"}).status_code == 403
    )
    assert post("ada", action="nix").status_code == 400
    assert post("ada", action="preview", channel="x" * 300_000).status_code == 413
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == [(0,)]
    assert post("ada", action="create", shown=shown(preview)).status_code == 302
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == [(1,)]
    assert post("bob", action="remove").status_code == 302
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'") == [(0,)]
