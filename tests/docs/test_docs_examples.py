"""The blocks under ``<!-- test: … -->`` in the docs run, page by page, for a reader who has followed the README."""

from __future__ import annotations

import re

import pytest
from doc_pages import BLOCK, DOCS, blocks
from readers import CHANNELS, Reader, do, same

#: Pages whose blocks run elsewhere: test_orms.py and test_node_orms.py, test_beyond_one_machine.py, and for plugins.md
#: tests/unit/test_api.py.
OWN = ("orm", "beyond-one-machine", "plugins")


@pytest.mark.parametrize(
    "page",
    [page for page, text in DOCS.items() if BLOCK.search(text) and page not in (*OWN, "javascript")],
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


def test_no_page_leaves_out_the_token() -> None:
    """Who publishes by HTTP names who they are: the server of the README refuses others."""
    for page, text in DOCS.items():
        for kind, code in blocks(text):
            for command in re.findall(r"curl (?:[^\n\\]|\\\n)*", code):
                if kind in ("sh", "curl") and re.search(r"-/(?:publish|run)\b|PublishBatch", command):
                    assert "Bearer $TOKEN" in command, (page, command)
