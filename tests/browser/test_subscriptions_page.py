"""The page of subscriptions, with and without scripts; who sees and deletes which."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import browsers as chromium
import httpx
from auth import cookie
from browsers import Watched
from playwright.sync_api import Browser, Page, expect
from servers import OPEN, Server, Sse

pytestmark = chromium.NEEDED

HOSTILE = '"><img src=x onerror=alert(1)>\u202e'


def names(server: Server, actor: str | None, query: str = "") -> Any:
    answer = httpx.get(f"{server.pubsub}/-/subscriptions.json{query}", headers=cookie(actor))
    if answer.status_code != 200:
        return answer.status_code
    return [(row["owner"], row["subscription"]) for row in answer.json()["subscriptions"]]


def subscribe(server: Server, actor: str | None, name: str, **params: Any) -> None:
    with Sse(f"{server.pubsub}/-/stream", headers=cookie(actor), subscription=name, **params) as reader:
        reader.until("ready")


def rows(page: Page) -> list[list[str]]:
    found = page.locator(".pubsub-subscriptions tbody tr")
    return [row.locator("td").all_inner_texts() for row in found.all()]


def log_in(context: Any, server: Server, actor: str) -> None:
    value = cookie(actor)["Cookie"].removeprefix("ds_actor=")
    context.add_cookies([{"name": "ds_actor", "value": value, "url": server.url}])


def test_without_scripts_own_subscriptions_are_listed_and_deleted(
    serve: Callable[..., Server], browser: Browser
) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(1200)])
    subscribe(server, "ada", HOSTILE, channel="a", start="latest")
    subscribe(server, "ada", "second", channel=["a", "b"], pattern="c/*", after="5", ack="explicit")
    subscribe(server, "bob", "second", channel="a")
    context = browser.new_context(java_script_enabled=False)
    log_in(context, server, "ada")
    page = context.new_page()
    page.goto(server.pubsub)
    page.get_by_role("link", name="Subscriptions").click()
    found = rows(page)
    assert [row[1:5] for row in found] == [["a", "1200", "0", "no"], ["a, b, c/*", "5", "1,195", "no"]]
    assert found[0][0] == HOSTILE.replace("\u202e", "⟨U+202E⟩")

    page.get_by_role("link", name='Delete ">').click()
    expect(page.locator(".pubsub-form")).to_contain_text("Its cursor, 1200, is forgotten")
    assert names(server, "ada") == [("ada", HOSTILE), ("ada", "second")]
    page.get_by_role("button", name="Delete this subscription").click()
    expect(page.locator(".message-info")).to_contain_text("Deleted subscription")
    assert [row[0] for row in rows(page)] == ["second"]
    page.get_by_role("link", name="Delete second").click()
    page.get_by_role("button", name="Delete this subscription").click()
    expect(page.locator(".zero-results")).to_be_visible()
    assert (names(server, "ada"), names(server, "bob")) == ([], [("bob", "second")])
    assert page.goto(f"{server.pubsub}/-/subscriptions?delete=second").status == 404  # type: ignore[union-attr]
    context.close()


def test_who_may_delete_rows_of_the_table_sees_and_deletes_those_of_all(serve: Callable[..., Server]) -> None:
    """ops may see the table and delete its rows; eve may, but must not see the channel `secret`, and so not the table.

    sue may delete the rows of all tables, which is not enough: this table must be named.
    """
    server = serve(
        config={
            "permissions": {"publish-message": True},
            "databases": {
                "data": {
                    "permissions": {"delete-row": {"id": ["ops", "eve", "sue"]}},
                    "tables": {
                        "pubsub_subscriptions": {
                            "allow": {"id": ["ops", "eve"]},
                            "permissions": {"delete-row": {"id": ["ops", "eve"]}},
                        }
                    },
                }
            },
            "plugins": {
                "datasette-pubsub": {"channel_permissions": {"secret": {"view": {"id": ["ops", "ada", "sue"]}}}}
            },
        }
    )
    server.publish(channel="secret", payload="x")
    subscribe(server, "ada", "s", channel="secret")
    subscribe(server, None, "s", channel="a")
    every = [("", "s"), ("ada", "s")]
    page = f"{server.pubsub}/-/subscriptions"
    for actor, own, everyones in (
        ("ops", [], every),
        ("ada", [("ada", "s")], 403),
        ("eve", [], 403),
        ("sue", [], 403),
        (None, [("", "s")], 403),
    ):
        assert names(server, actor) == own
        assert names(server, actor, "?owner=*") == everyones
        text = httpx.get(page, headers=cookie(actor)).text
        assert ("secret" in text) == (actor in ("ops", "ada"))
        if actor in ("eve", "sue", None):
            refused = {"subscription": "s", "owner": "ada"}
            assert httpx.post(page, data=refused, headers=cookie(actor)).status_code == 403
            assert httpx.post(f"{page}/delete", json=refused, headers=cookie(actor)).status_code == 403
            assert httpx.get(page, params={"delete": "s", "owner": "ada"}, headers=cookie(actor)).status_code == 403
    assert names(server, None, "?owner=ada") == 400
    from_elsewhere = {**cookie("ops"), "Origin": "http://elsewhere.example"}
    assert httpx.post(page, data={"subscription": "s", "owner": "ada"}, headers=from_elsewhere).status_code == 403
    assert names(server, "ops", "?owner=*") == every
    assert httpx.post(page, data={"subscription": "s", "owner": "ada"}, headers=cookie("ops")).status_code == 302
    gone = httpx.post(f"{page}/delete", json={"subscription": "s", "owner": ""}, headers=cookie("ops"))
    assert (gone.status_code, names(server, "ops", "?owner=*")) == (200, [])
    assert httpx.post(page, data={"subscription": "s", "owner": "ada"}, headers=cookie("ops")).status_code == 404


def test_the_list_follows_what_happens(serve: Callable[..., Server], browser: Browser) -> None:
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_interval_seconds": 0.05}}})
    server.publish(channel="a", payload="1")
    context = browser.new_context()
    watched = Watched(context)
    page = watched.open(f"{server.pubsub}/-/subscriptions", status="")
    expect(page.locator(".zero-results")).to_be_visible()
    with Sse(f"{server.pubsub}/-/stream", subscription="mine", channel="a") as reader:
        reader.until("ready")
        row = page.locator(".pubsub-subscriptions tbody tr")
        expect(row).to_have_text([re.compile("^minea10yes")])
        remove = page.get_by_role("link", name="Delete mine")
        remove.focus()
        server.publish(channel="a", payload="2")
        expect(row).to_have_text([re.compile("^minea20yes")])
        expect(remove).to_be_focused()
    server.publish(channel="a", payload="3")
    expect(row).to_have_text([re.compile("^minea21no")])
    server.stop()
    state = page.get_by_role("status")
    expect(state).to_have_text("Not up to date: no answer from the server")
    server.start()
    expect(state).to_have_text("Your subscriptions")
    httpx.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "mine"}).raise_for_status()
    expect(page.locator(".zero-results")).to_be_visible()
    context.close()
    assert (watched.errors, watched.dialogs) == ([], [])
