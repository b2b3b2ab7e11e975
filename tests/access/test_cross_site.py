"""Pages of other origins in a real Chromium, with the victim's cookie: nothing is published, nothing can be read.

Two kinds of origin: another port of the same host, which is same-site and gets the cookie with everything; and
another host, which is cross-site.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import browsers as chromium
import httpx
import pytest
from commands import datasette
from playwright.sync_api import Browser, BrowserContext, Error, Page
from servers import DEADLINE, OPEN, Server, wait_for

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.binary() is None, reason=f"none of {', '.join(chromium.NAMES)} is installed"),
]

#: What only the victim may read, and what the attacker would like to publish.
SECRET, FORGED = "for the victim only", "forged"

#: Only root sees and publishes anything.
PRIVATE = {"databases": {"data": {"allow": {"id": "root"}}}}

#: Every attempt tells how it ended: "refused", "opaque", or the text that could be read.
ATTEMPTS = """async ([target, publish, select, deadline]) => {
    const outcomes = {};
    const base = `${target}/data/-/pubsub/-`;
    const read = async (name, url, options) => {
        const stop = new AbortController();
        const timer = setTimeout(() => stop.abort(), deadline);
        try {
            const response = await fetch(url, { signal: stop.signal, ...options });
            // A stream has no end: what comes first is enough.
            const part = response.body ? await response.body.getReader().read() : {};
            const text = part.value ? new TextDecoder().decode(part.value) : "";
            outcomes[name] = response.type === "opaque" ? `opaque${text}` : `${response.status} ${text}`;
        } catch (error) {
            outcomes[name] = error.name === "AbortError" ? "nothing in time" : "refused";
        }
        clearTimeout(timer);
        stop.abort();
    };
    const limited = (name, begin) => new Promise((resolve) => {
        setTimeout(() => { outcomes[name] ??= "nothing in time"; resolve(); }, deadline);
        begin(resolve);
    });
    const loaded = (name, element, property, url) => limited(name, (resolve) => {
        const done = (how) => () => { outcomes[name] = how; resolve(); };
        element.onload = done("loaded");
        element.onerror = done("refused");
        element[property] = url;
        document.body.append(element);
    });
    const make = (name, properties = {}) => Object.assign(document.createElement(name), properties);
    // What comes of a form is in a frame of the other origin, where nothing can be read: the server's log tells.
    const form = (action, enctype, fields) => {
        const target = `frame${document.forms.length}`;
        document.body.append(make("iframe", { name: target }));
        const shown = make("form", { method: "POST", action, enctype, target });
        for (const [key, value] of Object.entries(fields)) {
            shown.append(make("input", { type: "hidden", name: key, value }));
        }
        document.body.append(shown);
        shown.submit();
    };

    // Publishing.
    const json = JSON.stringify(publish);
    const smuggled = { [json.slice(0, -1) + ',"x":"']: '"}' };
    for (const [edge, url] of [["http", `${base}/publish`], ["rpc", `${target}/db.v1.DbService/PublishBatch`]]) {
        for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
            form(url, enctype, enctype === "text/plain" ? smuggled : publish);
        }
        for (const credentials of ["include", "omit"]) {
            const options = { method: "POST", body: json, credentials };
            await read(`simple ${edge} ${credentials}`, url, { ...options, mode: "no-cors" });
            await read(`simple cors ${edge} ${credentials}`, url, options);
            const headers = { "content-type": "application/json" };
            await read(`json no-cors ${edge} ${credentials}`, url, { ...options, mode: "no-cors", headers });
            await read(`json cors ${edge} ${credentials}`, url, { ...options, headers });
        }
        navigator.sendBeacon(url, new Blob([json], { type: "text/plain" }));
        navigator.sendBeacon(url, new Blob([json], { type: "application/json" }));
    }
    form(`${target}/data/-/execute-write`, "application/x-www-form-urlencoded",
        { sql: "insert into vpubsub (channel, payload) values ('a', 'forged')" });

    // Publishing by reading.
    await loaded("iframe", make("iframe"), "src", select);
    await loaded("image", make("img"), "src", select);
    await loaded("style sheet", make("link", { rel: "stylesheet" }), "href", select);
    await loaded("script", make("script"), "src", select);
    await loaded("no referrer", make("img", { referrerPolicy: "no-referrer" }), "src", select);
    await loaded("unsafe referrer", make("img", { referrerPolicy: "unsafe-url" }), "src", select);
    await read("select", select, { mode: "no-cors", credentials: "include" });
    await read("select cors", select, { credentials: "include" });

    // Reading.
    for (const credentials of ["include", "omit"]) {
        for (const mode of ["cors", "no-cors"]) {
            const options = { mode, credentials };
            for (const name of ["channels.json", "subscriptions.json", "snapshot.json?table=vpubsub"]) {
                await read(`${name} ${mode} ${credentials}`, `${base}/${name}`, options);
            }
            await read(`stream ${mode} ${credentials}`, `${base}/stream?channel=a&start=earliest`, options);
            await read(`page ${mode} ${credentials}`, `${target}/data/-/pubsub`, options);
        }
        const envelope = new TextEncoder().encode("....." + JSON.stringify({ dbName: "data", channel: "a" }));
        envelope.set([0, 0, 0, 0, envelope.length - 5]);
        const headers = { "content-type": "application/connect+json", "connect-protocol-version": "1" };
        await read(`rpc stream ${credentials}`, `${target}/db.v1.DbService/Subscribe`,
            { method: "POST", body: envelope, headers, credentials });
    }
    for (const withCredentials of [true, false]) {
        await limited(`events ${withCredentials}`, (resolve) => {
            const source = new EventSource(`${base}/stream?channel=a&start=earliest`, { withCredentials });
            const end = (how) => { outcomes[`events ${withCredentials}`] = how; source.close(); resolve(); };
            source.onmessage = (event) => end(event.data);
            source.addEventListener("ready", (event) => end(event.data));
            source.onerror = () => end("refused");
        });
    }
    const frame = make("iframe");
    await loaded("framed page", frame, "src", `${target}/data/-/pubsub`);
    outcomes["framed page"] = frame.contentDocument === null ? "refused" : frame.contentDocument.body.innerText;
    return outcomes;
}"""

#: One event of a stream, by EventSource.
EVENTS = """([url, withCredentials]) => new Promise((resolve) => {
    const source = new EventSource(url, { withCredentials });
    source.onmessage = (event) => { source.close(); resolve(event.data); };
    source.onerror = () => { source.close(); resolve("refused"); };
})"""

#: What Connect-Web sends, with its headers; the first part of the answer.
RPC = """async ([url, message, envelope, authorization, credentials]) => {
    const json = new TextEncoder().encode(JSON.stringify(message));
    const body = new Uint8Array(envelope ? [0, 0, 0, json.length >> 8, json.length & 255, ...json] : json);
    const stop = new AbortController();
    const headers = {
        "content-type": envelope ? "application/connect+json" : "application/json",
        "connect-protocol-version": "1",
        "connect-timeout-ms": "60000",
        ...(authorization && { authorization }),
    };
    try {
        const response = await fetch(url, { method: "POST", headers, body, credentials, signal: stop.signal });
        const part = await response.body.getReader().read();
        const text = new TextDecoder().decode(part.value);
        stop.abort();
        return `${response.status} ${text}`;
    } catch (error) { return "refused"; }
}"""


class _Blank(http.server.BaseHTTPRequestHandler):
    """A page with nothing on it, at every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><link rel=icon href=data:,><body>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as found:
        yield found


@pytest.fixture(scope="module", params=["same-site", "cross-site"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """A page of another origin than the server's, which is 127.0.0.1 with a port of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Blank)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host = "127.0.0.1" if request.param == "same-site" else "localhost"
    yield f"http://{host}:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(DEADLINE)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(chromium.DEADLINE_MS)
    yield context
    context.close()


def logged_in(context: BrowserContext, server: Server) -> dict[str, str]:
    """The victim has logged in with this browser, and published a first message."""
    cookie = server.root_cookie()["ds_actor"]
    context.add_cookies([{"name": "ds_actor", "value": cookie, "url": server.url, "sameSite": "Lax"}])
    message = {"channel": "a", "payload": SECRET}
    answer = httpx.post(f"{server.pubsub}/-/publish", json=message, cookies={"ds_actor": cookie})
    assert answer.status_code == 200, answer.text
    return {"ds_actor": cookie}


def select(server: Server, payload: str = FORGED) -> str:
    """A link that publishes when it is opened, if it is allowed to."""
    sql = f"select publish_batch('a', '{payload}')"
    return f"{server.url}/data/-/query.json?sql={quote(sql)}"


#: Requests of one round that write: seven forms, and the beacons and fetches that need no preflight.
POSTS = 7 + 2 + 12


def posts(server: Server) -> list[tuple[str, str]]:
    """The addresses and statuses of the POST requests in the log, but for the victim's own."""
    return re.findall(r'"POST (\S+) HTTP/1.1" (\d+)', server.log)[1:]


def published(server: Server) -> list[str]:
    return [payload for (payload,) in server.rows("SELECT payload FROM vpubsub ORDER BY id")]


def opened(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    return page


@pytest.mark.parametrize("config", [PRIVATE, OPEN], ids=["private", "open"])
def test_another_origin_publishes_and_reads_nothing(
    serve: Callable[..., Server], context: BrowserContext, elsewhere: str, config: dict[str, Any]
) -> None:
    server = serve(config=config, options=["--root"])
    logged_in(context, server)
    items = [{"channel": "a", "payload": FORGED}]
    attempt = [server.url, {"dbName": "data", "items": items}, select(server), 2000]
    plain = [server.url, items[0], select(server), 2000]
    page = opened(context, elsewhere)
    for given in (attempt, plain):
        outcomes = page.evaluate(ATTEMPTS, given)
        readable = {name: how for name, how in outcomes.items() if how not in ("refused", "loaded", "opaque")}
        assert readable == {}
        assert len(outcomes) > 40
    # Forms and beacons leave no trace in the page. All of them came, and all were refused.
    wait_for(lambda: len(posts(server)) >= 2 * POSTS, f"every POST is in the log: {len(posts(server))}")
    assert {status for _, status in posts(server)} <= {"403", "405", "415"}
    assert published(server) == [SECRET]


@pytest.mark.parametrize("rel", ["opener", "noreferrer"])
def test_a_link_from_another_origin_publishes_nothing(
    serve: Callable[..., Server], context: BrowserContext, elsewhere: str, rel: str
) -> None:
    server = serve(config=PRIVATE, options=["--root"])
    logged_in(context, server)
    page = opened(context, elsewhere)
    page.evaluate(
        "([href, rel]) => document.body.append(Object.assign(document.createElement('a'), { href, rel, text: 'win' }))",
        [select(server), rel],
    )
    with page.expect_navigation(url=f"{server.url}/**") as navigation:
        page.get_by_role("link", name="win").click()
    assert navigation.value.request.all_headers()["cookie"], "the victim's rights came with it"
    assert "opening or reloading a page publishes nothing" in page.content()
    assert published(server) == [SECRET]


@pytest.mark.parametrize("rel", ["opener", "noreferrer"])
def test_a_link_from_another_origin_moves_no_cursor(
    serve: Callable[..., Server], context: BrowserContext, elsewhere: str, rel: str
) -> None:
    server = serve(config=PRIVATE, options=["--root"])
    logged_in(context, server)
    page = opened(context, elsewhere)
    stream = f"{server.pubsub}/-/stream?channel=a&subscription=mine&last_event_id=1"
    page.evaluate(
        "([href, rel]) => document.body.append(Object.assign(document.createElement('a'), { href, rel, text: 'win' }))",
        [stream, rel],
    )
    with page.expect_navigation(url=f"{server.url}/**") as navigation:
        page.get_by_role("link", name="win").click()
    assert navigation.value.request.all_headers()["cookie"], "the victim's rights came with it"
    assert "asked for by a page or a link from elsewhere" in page.content()
    assert server.rows("SELECT * FROM pubsub_subscriptions") == []
    # The server's own pages may.
    page = opened(context, server.pubsub)
    assert SECRET in page.evaluate(EVENTS, [f"{server.pubsub}/-/stream?channel=a&subscription=mine", True])
    assert server.rows("SELECT name FROM pubsub_subscriptions") == [("mine",)]


def test_the_same_requests_work_from_the_servers_own_pages(
    serve: Callable[..., Server], context: BrowserContext
) -> None:
    """Else the tests above would show nothing."""
    server = serve(config=PRIVATE, options=["--root"])
    logged_in(context, server)
    page = opened(context, server.pubsub)
    request = """async ([url, body]) => (await fetch(url, body && {
        method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } })).status"""
    item = {"channel": "a", "payload": "1"}
    assert page.evaluate(request, [f"{server.pubsub}/-/publish", item]) == 200
    assert page.evaluate(request, [select(server, "2"), None]) == 200
    rpc = f"{server.url}/db.v1.DbService"
    batch: dict[str, Any] = {"dbName": "data", "items": [{"channel": "a", "payload": "3"}]}
    assert page.evaluate(RPC, [f"{rpc}/PublishBatch", batch, False, "", "include"]).startswith("200")
    assert SECRET in page.evaluate(EVENTS, [f"{server.pubsub}/-/stream?channel=a&start=earliest", True])
    follow = {"dbName": "data", "channel": "a", "start": "START_EARLIEST"}
    assert SECRET in page.evaluate(RPC, [f"{rpc}/Subscribe", follow, True, "", "include"])
    assert published(server) == [SECRET, "1", "2", "3"]


def test_with_cors_another_origin_reads_what_is_public_or_has_a_token(
    serve: Callable[..., Server], context: BrowserContext, elsewhere: str
) -> None:
    config = {"databases": {"data": {"allow": {"id": "root"}}}}
    server = serve(databases=["data", "open"], config=config, options=["--cors", "--root"])
    cookies = logged_in(context, server)
    public = f"{server.url}/open/-/pubsub/-"
    item = {"channel": "a", "payload": "for all"}
    assert httpx.post(f"{public}/publish", json=item, cookies=cookies).status_code == 200
    token = f"Bearer {root_token()}"
    page = opened(context, elsewhere)
    query = "stream?channel=a&start=earliest"

    # Everybody's, without a cookie; a cookie is never taken along.
    assert json.loads(page.evaluate(EVENTS, [f"{public}/{query}", False]))["payload"] == "for all"
    assert page.evaluate(EVENTS, [f"{public}/{query}", True]) == "refused"
    assert page.evaluate(EVENTS, [f"{server.pubsub}/-/{query}", False]) == "refused"
    assert page.evaluate(EVENTS, [f"{server.pubsub}/-/{query}", True]) == "refused"

    # Connect-Web: a preflight for its headers, then the stream. A POST from elsewhere needs a token.
    rpc = f"{server.url}/db.v1.DbService"
    follow = {"dbName": "data", "channel": "a", "start": "START_EARLIEST"}
    assert SECRET in page.evaluate(RPC, [f"{rpc}/Subscribe", follow, True, token, "omit"])
    assert SECRET not in page.evaluate(RPC, [f"{rpc}/Subscribe", follow, True, "", "omit"])
    assert page.evaluate(RPC, [f"{rpc}/Subscribe", follow, True, "", "include"]) == "refused"
    batch: dict[str, Any] = {"dbName": "data", "items": [{"channel": "a", "payload": FORGED}]}
    assert not page.evaluate(RPC, [f"{rpc}/PublishBatch", batch, False, "", "omit"]).startswith("200")
    assert page.evaluate(RPC, [f"{rpc}/PublishBatch", batch, False, "", "include"]) == "refused"
    assert published(server) == [SECRET]
    batch["items"][0]["payload"] = "with a token"
    assert page.evaluate(RPC, [f"{rpc}/PublishBatch", batch, False, token, "omit"]).startswith("200")
    assert published(server) == [SECRET, "with a token"]


def root_token() -> str:
    return datasette("create-token", "root", "--secret", "tests").strip()


#: The module, imported from the server by a page of another origin; what two readers of it were told.
FOLLOW = """async ([url, token]) => {
    const { connect } = await import(`${url}/-/static-plugins/datasette_pubsub/pubsub.js`);
    const told = (name, options) => new Promise((resolve) => connect({
        base: `${url}/${name}/-/pubsub`,
        channels: ["a"],
        start: "earliest",
        share: true,
        ...options,
        onmessage: ({ payload }) => resolve(payload),
        onstatus: (status, { reason }) => status === "reconnecting" && resolve(reason),
    }));
    return { public: await told("open"), private: await told("data"), token: await told("data", { token }) };
}"""


def test_with_cors_another_origin_imports_the_module(
    serve: Callable[..., Server], context: BrowserContext, elsewhere: str
) -> None:
    config = {"databases": {"data": {"allow": {"id": "root"}}}, "settings": {"base_url": "/prefix/"}}
    options = ["--cors", "--root"]
    server = serve(databases=["data", "open"], config=config, options=options)
    token = root_token()
    for name, payload in (("data", SECRET), ("open", "for all")):
        url = f"{server.url}/prefix/{name}/-/pubsub/-/publish"
        answer = httpx.post(
            url, json={"channel": "a", "payload": payload}, headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 200, answer.text
    page = opened(context, elsewhere)
    told = page.evaluate(FOLLOW, [f"{server.url}/prefix", token])
    denied = "permission denied: view-channel on channel 'a' of database data"
    assert told == {"public": "for all", "private": denied, "token": SECRET}
    without = serve(databases=["open"])
    with pytest.raises(Error, match="Failed to fetch dynamically imported module"):
        page.evaluate(FOLLOW, [without.url, token])
