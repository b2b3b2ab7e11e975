"""The blocks under ``<!-- test: … -->`` in the docs run, page by page, for a reader who has followed the README."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doc_pages import BLOCK, DOCS, blocks
from readers import CHANNELS, Reader, after_the_readme, do, same
from servers import Server, sqlite_shell, wait_for
from shell import path_with_datasette

#: Pages whose blocks run elsewhere: test_orms.py and test_node_orms.py, test_beyond_one_machine.py, and for plugins.md
#: tests/unit/test_api.py.
OWN = ("orm", "beyond-one-machine", "plugins")


@pytest.fixture(scope="module")
def readme_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with done.db, the file that its reader has, and the token."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "server").mkdir()
    server = Server([folder / "data.db"], {}, folder / "server", options=["--root"])
    try:
        with path_with_datasette() as path:
            reader = after_the_readme(folder, path, server.start)
        (folder / "token").write_text(reader.environment["TOKEN"])
        sqlite_shell(folder / "data.db", f".backup '{folder / 'done.db'}'")
    finally:
        server.kill()
    return folder


@pytest.fixture
def reader(readme_done: Path, serve: Callable[..., Server], tmp_path: Path, shell_path: str) -> Iterator[Reader]:
    """Somebody who has followed the README, with the server as the README starts it."""
    shutil.copy(readme_done / "done.db", tmp_path / "data.db")
    found = Reader(tmp_path, shell_path)
    found.server = serve(config={}, options=["--root"])
    found.environment["TOKEN"] = (readme_done / "token").read_text()
    yield found
    found.end()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.node] if "```ts" in text else [])
        for page, text in DOCS.items()
        if BLOCK.search(text) and page not in (*OWN, "javascript")
    ],
)
def test_examples(reader: Reader, page: str) -> None:
    server = reader.server
    assert server is not None
    assert dict(server.rows("SELECT channel, count(*) FROM vpubsub GROUP BY channel")) == CHANNELS
    for kind, code in blocks(DOCS[page]):
        if kind == "uninstall":
            server.stop()
            reader.sql(code + "UPDATE users SET status = 'active';")
            assert server.rows("SELECT name FROM sqlite_master WHERE sql LIKE '%pubsub%'") == []
            server.start()
            reader.run("datasette pubsub publish data.db a 'installed again'", fails=True)
            reader.run("datasette pubsub install data.db")
        else:
            do(reader, kind, code)


@pytest.mark.parametrize("shown", ["id: 4\ndata: {}", "id: 3\ndata: {", '{"ok": true}'])
def test_what_a_page_shows_must_be_what_is_printed(shown: str) -> None:
    assert not same(shown, 'id: 3\ndata: {"a":1}')
    assert same('id: 3\ndata: {"a": "…"}', 'id: 3\ndata: {"a":"b"}\n')


def test_the_plugins_of_the_page(reader: Reader, serve: Callable[..., Server], tmp_path: Path) -> None:
    found = [block.code for block in blocks(DOCS["plugins"]) if block.kind == "plugin file"]
    (tmp_path / "plugins").mkdir()
    for number, code in enumerate(found):
        (tmp_path / "plugins" / f"mine{number}.py").write_text(code)
    server = serve(config={}, options=["--plugins-dir", str(tmp_path / "plugins")])
    sql = "SELECT count(*) FROM pubsub_subscriptions WHERE name IN ('my-plugin', 'archive')"
    wait_for(lambda: server.rows(sql) == [(2,)], "the plugins subscribe")
    reader.run("datasette pubsub publish data.db orders one")
    for said in ("got orders\n", "stored orders\n", "data has 1 more, up to 9\n"):
        wait_for(lambda said=said: said in server.log, f"the plugins get the message: {server.log}")


@pytest.mark.browser
def test_the_javascript_examples(reader: Reader) -> None:
    from browsers import running

    assert reader.server is not None
    found = [block for block in blocks(DOCS["javascript"]) if block.kind == "browser"]
    assert len(found) == 2
    with running() as browser:
        for (_, code), said in zip(found, ('orders {"order": 7}', "logs 5"), strict=True):
            script = code.strip().removeprefix('<script type="module">').removesuffix("</script>")
            page = browser.new_page()
            page.goto(reader.server.url)
            with page.expect_console_message(lambda message, said=said: message.text == said):
                page.add_script_tag(content=script, type="module")
            page.wait_for_function("document.title === 'live'")
            page.close()


@pytest.mark.browser
def test_the_javascript_example_on_another_site(reader: Reader, serve: Callable[..., Server]) -> None:
    from browsers import running

    assert reader.server is not None
    data = serve(config={}, options=["--root", "--cors"])
    (code,) = [block.code for block in blocks(DOCS["javascript"]) if block.kind == "browser elsewhere"]
    # localhost is another site than 127.0.0.1; the page is that of another server.
    script = code.replace("https://data.example.com", f"http://localhost:{data.port}")
    script = script.replace("dstok_…", reader.environment["TOKEN"])
    with running() as browser:
        page = browser.new_page()
        page.goto(reader.server.url)
        opened = f"http://localhost:{data.port}/data/-/pubsub/-/stream"
        with page.expect_response(lambda answer: answer.url.startswith(opened) and answer.request.method == "GET"):
            page.add_script_tag(
                content=script.strip().removeprefix('<script type="module">').removesuffix("</script>"), type="module"
            )
        with page.expect_console_message(lambda message: message.text == "from elsewhere"):
            reader.run("datasette pubsub publish data.db orders 'from elsewhere'")


def test_no_page_leaves_out_the_token() -> None:
    """Who publishes by HTTP names who they are: the server of the README refuses others."""
    for page, text in DOCS.items():
        for kind, code in blocks(text):
            for command in re.findall(r"curl (?:[^\n\\]|\\\n)*", code):
                if kind in ("sh", "curl") and re.search(r"-/(?:publish|run)\b|PublishBatch", command):
                    assert "Bearer $TOKEN" in command, (page, command)
