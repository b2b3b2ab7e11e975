"""The form that publishes, with and without scripts, and the statements that it shows: pasted and run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsers as chromium
import httpx
import pytest
from auth import cookie
from browsers import Watched
from commands import datasette
from node_packages import prepared
from playwright.sync_api import Browser, Page, expect
from servers import OPEN, Server, sqlite_shell

pytestmark = chromium.NEEDED

#: bob publishes under open/ and nowhere else.
SOME: dict[str, Any] = {
    "plugins": {
        "datasette-pubsub": {"channel_permissions": {"open/*": {"publish": {"id": "bob"}}, "*": {"view": True}}}
    }
}


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh profile; afterwards: no script has failed, no dialog was shown."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found = Watched(context)
    yield found
    context.close()
    assert (found.errors, found.dialogs) == ([], [])


def log(server: Server) -> list[tuple[str, str]]:
    return [tuple(row) for row in server.rows("SELECT channel, payload FROM vpubsub ORDER BY id")]


def fill(page: Page, channel: str, payload: str, key: str = "", lines: bool = False) -> None:
    page.get_by_label("Channel").fill(channel)
    page.get_by_label("Payload").fill(payload)
    page.get_by_label("Key").fill(key)
    page.get_by_label("Every line is a message").set_checked(lines)


def typed(page: Page) -> tuple[str, str, str]:
    return tuple(page.get_by_label(name).input_value() for name in ("Channel", "Payload", "Key"))  # type: ignore[return-value]


# -- without scripts ---------------------------------------------------------


def test_without_scripts_a_plain_form_publishes_and_keeps_what_was_wrong(
    serve: Callable[..., Server], browser: Browser
) -> None:
    options = {"plugins": {"datasette-pubsub": {"max_payload_bytes": 20}}}
    server = serve(config={**OPEN, **options})
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.pubsub}/-/publish-form?channel=a%2Fb")
    fill(page, "a/b", "  two\nlines <b> ")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".message-info")).to_have_text("Published message 1 to a/b")
    assert typed(page) == ("a/b", "", "")
    assert log(server) == [("a/b", "  two\nlines <b> ")]
    # A reload is a look at the form, not another message.
    page.reload()
    expect(page.locator(".message-info")).to_have_count(0)

    fill(page, "a/b", "one\n\ntwo\nthree\n", lines=True)
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".message-info")).to_have_text("Published 3 messages, 2 to 4, to a/b")
    page.get_by_role("link", name="The messages of this channel").click()
    expect(page.locator(".pubsub-messages tbody tr")).to_have_count(4)

    page.goto(f"{server.pubsub}/-/publish-form")
    too_long = "payload has 21 bytes; the limit is 20 bytes (max_payload_bytes)"
    for given, wrong, said in [
        (("c" * 256, "x", "", False), "Channel", "channel has 256 bytes; the limit is 255 bytes"),
        (("a", "x" * 21, "", False), "Payload", too_long),
        (("a", "ok\n" + "x" * 21, "", True), "Payload", f"line 2: {too_long}"),
        (("a", "x", "k" * 256, False), "Key", "key has 256 bytes; the limit is 255 bytes"),
        (("a", "x", "k", True), "Key", "key is for one message: leave it empty, or publish the lines one by one"),
    ]:
        fill(page, *given)
        page.get_by_role("button", name="Publish").click()
        expect(page.get_by_role("alert")).to_have_text(said)
        expect(page.get_by_label(wrong)).to_have_attribute("aria-invalid", "true")
        expect(page.locator("[aria-invalid]")).to_have_count(1)
        assert typed(page) == given[:3]
        assert page.get_by_label("Every line is a message").is_checked() == given[3]
    assert len(log(server)) == 4
    context.close()


def test_the_form_is_for_those_who_may_publish(serve: Callable[..., Server]) -> None:
    server = serve(config=SOME)
    form = f"{server.pubsub}/-/publish-form"
    menu = f"{server.url}/{server.database}"
    for headers, status in ((cookie("bob"), 200), (cookie("eve"), 403), ({}, 403)):
        assert httpx.get(form, headers=headers).status_code == status
        for page in (menu, server.pubsub):
            assert ("/-/pubsub/-/publish-form" in httpx.get(page, headers=headers).text) == (status == 200), page
    shown = httpx.get(form, headers=cookie("bob"))
    assert "You may publish to <code>open/*</code>" in shown.text
    assert "script-src 'self'" in shown.headers["content-security-policy"]

    def post(body: dict[str, str], **headers: str) -> httpx.Response:
        return httpx.post(form, data=body, headers={**cookie("bob"), **headers})

    refused = post({"channel": "closed", "payload": "kept <&>"})
    assert refused.status_code == 403
    assert "permission denied: publish-message on channel &#39;closed&#39;" in refused.text
    assert "kept &lt;&amp;&gt;</textarea>" in refused.text
    assert post({"channel": "open/1", "payload": "x"}, Origin="http://elsewhere.example").status_code == 403
    assert httpx.post(form, json={}, headers=cookie("bob")).status_code == 415
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert httpx.post(form, content=b"channel=%ff", headers={**cookie("bob"), **kind}).status_code == 400
    nul = post({"channel": "open/1", "payload": "a\0b"})
    assert (nul.status_code, "payload must not contain NUL" in nul.text) == (400, True)
    assert server.rows("SELECT name FROM sqlite_master WHERE name = 'vpubsub'") in ([], [("vpubsub",)])
    assert post({"channel": "open/1", "payload": "x"}).status_code == 302
    assert log(server) == [("open/1", "x")]
    assert httpx.put(form).status_code == 405


# -- with scripts ------------------------------------------------------------


def test_with_scripts_the_page_stays(serve: Callable[..., Server], watched: Watched) -> None:
    options = {"plugins": {"datasette-pubsub": {"max_payload_bytes": 20}}}
    server = serve(config={**OPEN, **options, "settings": {"base_url": "/prefix/"}})
    page = watched.open(f"{server.url}/prefix/{server.database}/-/pubsub/-/publish-form", status="")
    page.evaluate("window.same = true")
    fill(page, "a/b", "x" * 21, "k")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("payload has 21 bytes; the limit is 20 bytes")
    expect(page.get_by_label("Payload", exact=True)).to_be_focused()
    assert typed(page) == ("a/b", "x" * 21, "k")
    fill(page, "a/b", "two\nlines", "k")
    page.get_by_label("Payload").press("Control+Enter")
    done = page.locator(".pubsub-done")
    expect(done).to_have_text("Published message 1 to a/b")
    expect(page.get_by_role("alert")).to_be_hidden()
    fill(page, "a/b", "one\n\ntwo", lines=True)
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(done).to_have_text("Published 2 messages from 2 to a/b")
    assert log(server) == [("a/b", "two\nlines"), ("a/b", "one"), ("a/b", "two")]
    assert page.evaluate("window.same")
    server.kill()
    fill(page, "a/b", "lost?")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("whether it was published is not known")
    assert typed(page)[1] == "lost?"
    server.start()
    page.get_by_role("button", name="Publish", exact=True).click()
    done.get_by_role("link", name="a/b").click()
    page.wait_for_url("**/prefix/*/-/pubsub/a~2Fb")


#: Everything that quoting could get wrong: in SQL, in a shell, in JSON, in TypeScript, in a terminal.
HARD = [
    "it's \"quoted\" `twice` '' '",
    "$HOME $(id) ${x} !! \\ \\n %s ; -- /* */ | & > <",
    "one\ntwo\n.quit\n;\n\n",
    "tab\tbell\x07escape\x1b[31m delete\x7f",
    "\u202egnp.exe\u2066 \u200bzero \ufeff\u2028\u2029\u0085",
    "żółw 東京 🐢 e\u0301",
    "@file {{x}} [a] ?x #y",
    "",
]


def shown(page: Page, name: str) -> str:
    """Copied with its button."""
    page.get_by_role("button", name=f"Copy {name}").click()
    statement = page.get_by_role("region", name=name).text_content()
    assert page.evaluate("navigator.clipboard.readText()") == statement
    return str(statement)


def test_the_statements_publish_exactly_what_is_typed(
    serve: Callable[..., Server], watched: Watched, tmp_path: Path
) -> None:
    folder = prepared("v2")
    server = serve(config={"permissions": {"publish-message": {"id": "root"}}}, options=["--root"])
    watched.context.add_cookies([{"name": "ds_actor", "value": server.root_cookie()["ds_actor"], "url": server.url}])
    token = datasette("create-token", "root", "--secret", "tests").strip()
    page = watched.open(f"{server.pubsub}/-/publish-form", status="")
    programs: list[str] = []

    def run_all(expected: list[tuple[str, str]]) -> None:
        for name in ("SQL", "curl", "TypeScript"):
            statement = shown(page, name)
            assert statement.isprintable() or set(re.sub(r"[ -~\n]", "", statement)) <= set("żółw東京🐢\u0301")
            before = len(log(server))
            if name == "SQL":
                sqlite_shell(server.path, statement)
            elif name == "curl":
                assert "YOUR_TOKEN" in statement
                command = statement.replace("YOUR_TOKEN", token).replace("curl ", "curl -sS --fail-with-body ", 1)
                for shell in ("bash", "sh"):
                    done = subprocess.run([shell, "-euc", command], capture_output=True, text=True, timeout=60)
                    assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
                    assert len(json.loads(done.stdout)["message_ids"]) == len(expected)
            else:
                programs.append(statement.replace("YOUR_TOKEN", token))
                continue
            assert log(server)[before:] == expected * (2 if name == "curl" else 1)

    # The tables are made by the first publish.
    fill(page, "first", "x")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator(".pubsub-done")).to_have_text("Published message 1 to first")
    expected: list[tuple[str, str]] = []
    for text in HARD:
        channel = text.replace("\n", " ") or "empty"
        fill(page, channel, text)
        run_all([(channel, text)])
        expected.append((channel, text))
    fill(page, "lines", "one\nit's\n\nthree", lines=True)
    several = [("lines", "one"), ("lines", "it's"), ("lines", "three")]
    run_all(several)
    expected += several

    # The TypeScript ones are run together: a start takes seconds.
    for number, program in enumerate(programs):
        (folder / f"statement{number}.ts").write_text(program.replace("connect-web", "connect-node").replace(
            "createConnectTransport({", 'createConnectTransport({ httpVersion: "1.1",'))  # fmt: skip
    try:
        for number in range(len(programs)):
            assert (folder / f"statement{number}.ts").exists()
        main = folder / "statements.ts"
        main.write_text("".join(f'await import("./statement{number}.ts");\n' for number in range(len(programs))))
        before = len(log(server))
        subprocess.run(
            ["node_modules/.bin/tsx", main.name], cwd=folder, check=True, timeout=120, capture_output=True, text=True
        )
    finally:
        for path in folder.glob("statement*.ts"):
            path.unlink()
    assert log(server)[before:] == expected

    # With a key; and what cannot be written is refused.
    fill(page, "a", "x", "it's one")
    assert "VALUES ('a', 'x', 'it''s one');" in shown(page, "SQL")
    for _ in range(2):
        sqlite_shell(server.path, shown(page, "SQL"))
    assert log(server).count(("a", "x")) == 1
    page.get_by_label("Key").fill("")
    page.evaluate("""() => {
        document.querySelector("textarea").value = "a\\0b";
        document.querySelector(".pubsub-form").dispatchEvent(new Event("input"));
    }""")
    assert shown(page, "SQL") == shown(page, "curl") == "(payload must not contain NUL)"
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("payload must not contain NUL")
