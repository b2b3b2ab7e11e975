"""What a follower's pages and lists say: which stream, how far behind, and where to publish."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import cookie
from followers import PUBLISH_AT, REFUSAL, STREAM, copy, follow, promote
from servers import Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A follower's file with three messages of fifteen."""
    found = tmp_path / "data.db"
    follow(found)
    copy(found, [1, 2, 3], newest=15)
    return found


def text(server: Server, page: str = "", **cookies: str) -> str:
    """What a page says, without its markup."""
    answer = httpx.get(f"{server.pubsub}{page}", headers=cookies)
    assert answer.status_code == 200, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", answer.text)).split())


def heard(path: Path) -> str:
    with closing(sqlite3.connect(path)) as conn:
        return str(conn.execute("SELECT heard_at FROM _pubsub_sources").fetchone()[0])


def test_every_page_says_what_it_follows(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    said = f"Follows the stream {STREAM}, 12 behind; last heard from {heard(path)}. Publish at {PUBLISH_AT}."
    for page in ("", "/a", "/-/subscriptions", "/-/queries", "/-/publish-form"):
        found = text(server, page)
        assert said in found, page
        assert "Other tables are not copied: Litestream restores whole files." in found, page
    copy(path, range(4, 16))
    assert f"Follows the stream {STREAM}, up to date; last heard from" in text(server)


def test_lists_say_it(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    expected = {"stream": STREAM, "behind": 12, "heard_at": heard(path), "publish_at": PUBLISH_AT}
    for name in ("channels", "subscriptions"):
        assert httpx.get(f"{server.pubsub}/-/{name}.json").json()["follows"] == expected
    promote(path)
    for name in ("channels", "subscriptions"):
        assert httpx.get(f"{server.pubsub}/-/{name}.json").json()["follows"] is None
    assert "Follows the stream" not in text(server)


def test_those_who_may_view_nothing_are_told_nothing(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config={"databases": {"data": {"tables": {"vpubsub": {"allow": {"id": "ada"}}}}}})
    assert httpx.get(f"{server.pubsub}/-/channels.json").json() == {
        "ok": True, "database": "data", "follows": None, "channels": [],
    }  # fmt: skip
    assert httpx.get(f"{server.pubsub}/-/channels.json", headers=cookie("ada")).json()["follows"]["behind"] == 12


def test_an_ordinary_log_follows_nothing(serve: Callable[..., Server]) -> None:
    server = serve()
    assert httpx.get(f"{server.pubsub}/-/channels.json").json()["follows"] is None
    server.publish(channel="a", payload="x")
    assert httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["follows"] is None
    assert "Follows the stream" not in text(server)
    assert "<form" in httpx.get(f"{server.pubsub}/-/publish-form").text


def test_the_form_says_where_to_publish_instead(serve: Callable[..., Server], path: Path) -> None:
    server = serve()
    page = httpx.get(f"{server.pubsub}/-/publish-form").text
    assert "pubsub-form" not in page
    assert "publish_form.js" not in page
    assert f'<a href="{PUBLISH_AT}">' in page
    said = f"Nothing can be published here, since this log follows the stream {STREAM}. Publish at {PUBLISH_AT}."
    assert said in text(server, "/-/publish-form")
    answer = httpx.post(
        f"{server.pubsub}/-/publish-form",
        data={"channel": "a", "payload": "x"},
        headers={"Origin": server.url},
    )
    assert answer.status_code == 409
    assert 'role="alert">Nothing can be published here' in answer.text
    assert server.rows("SELECT max(id) FROM vpubsub") == [(3,)]


def test_an_empty_follower_shows_no_statement_that_publishes(serve: Callable[..., Server], tmp_path: Path) -> None:
    follow(tmp_path / "data.db")
    page = text(serve())
    assert "No messages yet" in page
    assert "INSERT INTO vpubsub" not in page


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("javascript:alert(1)", None),
        ('https://x.example/"><script>', "https://x.example/&#34;&gt;&lt;script&gt;"),
        ("ask ops@example.com", None),
        (None, None),
    ],
)
def test_the_address_comes_from_a_stream_and_is_not_trusted(
    serve: Callable[..., Server], tmp_path: Path, address: Any, link: str | None
) -> None:
    follow(tmp_path / "data.db", publish_at=address)
    page = httpx.get(f"{serve().pubsub}").text
    (line,) = re.findall(r'<p class="pubsub-follows">.*?</p>', page, re.DOTALL)
    links = re.findall(r'href="([^"]*)"', line)
    assert links[:-1] == ([link] if link else [])
    assert links[-1].endswith("/docs/beyond-one-machine.md")
    assert ("Publish to the log that it copies." in line) == (address is None)
    assert "<script" not in line
    assert REFUSAL not in line
