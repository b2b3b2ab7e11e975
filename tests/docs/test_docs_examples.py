"""The blocks under ``<!-- test: … -->`` in the docs run, page by page, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from commands import datasette
from doc_pages import BLOCK, DOCS, SOON
from node_packages import example_folder, first_lines, prepared
from places import PACKAGE
from servers import OPEN, Server, sqlite_shell

# -- examples ----------------------------------------------------------------


IN_TYPESCRIPT = ("typescript", "connect")

#: Runs the examples in TypeScript; with the package, its tests have it installed.
TSX = PACKAGE / "node_modules" / ".bin" / "tsx"

SETUP = """
CREATE TABLE totals (account TEXT PRIMARY KEY, amount INTEGER NOT NULL);
INSERT INTO totals VALUES ('ada', 0), ('bob', 0);
INSERT INTO vpubsub (channel, payload) VALUES ('orders', 'one'), ('orders', 'two');
INSERT INTO pubsub_subscriptions (owner, name, reads) VALUES ('', 'billing', '{"channels": ["orders"]}');
"""


def test_blocks_are_of_a_kind_that_is_run() -> None:
    # tests/unit/test_api.py runs the plugins' page.
    # test_orms.py and test_node_orms.py run a page of their own, and so does test_beyond_one_machine.py.
    own = ("orm", "beyond-one-machine")
    kinds = {match["kind"] for page, text in DOCS.items() for match in BLOCK.finditer(text) if page not in own}
    assert kinds == {
        "sh",
        "stream",
        "live",
        "sqlite3",
        "query",
        "python",
        "client",
        "typescript",
        "generated",
        # tests/clients/test_reflection.py runs it: it needs HTTP/2.
        "reflection",
        "plugin",
        "file grpc_client.py",
        "browser",
        "uninstall",
    }


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.node] if page in IN_TYPESCRIPT else [])
        for page, text in DOCS.items()
        if BLOCK.search(text) and page not in ("javascript", "orm", "beyond-one-machine", "plugins")
    ],
)
def test_examples(serve: Callable[..., Server], tmp_path: Path, shell_path: str, page: str) -> None:
    server = serve(config={**OPEN, **SOON})
    datasette("pubsub", "install", server.path)
    sqlite_shell(server.path, SETUP)
    environment = {**os.environ, "PATH": shell_path}
    if page in IN_TYPESCRIPT:
        example_folder(tmp_path)

    def run(code: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (code, done.stdout, done.stderr)
        return done.stdout

    for match in BLOCK.finditer(DOCS[page]):
        kind, code = match["kind"], match["code"].replace("127.0.0.1:8001", f"127.0.0.1:{server.port}")
        if kind == "sh":
            # Refused requests are failures.
            run(code.replace("curl ", "curl -sS --fail-with-body "))
        elif kind == "stream":
            assert run(f"{code.strip().replace('curl -N', 'curl -sN')} | grep -m 1 '^id'") == "id: 1\n"
        elif kind == "live":
            found = run(f"{code.strip().replace('curl -N', 'curl -sN')} | grep -m 1 '^event'")
            assert found == "event: snapshot\n"
        elif kind == "sqlite3":
            sqlite_shell(server.path, code)
        elif kind == "query":
            answer = httpx.get(f"{server.url}/data/-/query.json", params={"sql": code})
            assert list(answer.json()["rows"][0].values()) == [2]
        elif kind == "python" or kind.startswith("file "):
            (tmp_path / "example.py").write_text(code)
            assert run(f"{sys.executable} example.py") == ("[4, 5]\n1 one\n" if kind == "python" else "")
        elif kind == "client":
            (server.path.parent / "example.py").write_text(code)
            assert run(f"cd {server.path.parent}; {sys.executable} example.py") == "orders 9\n"
        elif kind == "generated":
            script = prepared("v2") / f"connect_{server.port}.ts"
            script.write_text(code)
            try:
                # The first was acknowledged above.
                assert first_lines(script.name, script.parent, 2) == ["2n two", "3n one"]
            finally:
                script.unlink()
        elif kind == "typescript":
            (tmp_path / "example.ts").write_text(code)
            assert run(f"cd {tmp_path}; {TSX} example.ts") == "orders 9\n"
        elif kind == "uninstall":
            server.stop()
            sqlite_shell(server.path, code + "UPDATE totals SET amount = 6;")
            assert server.rows("SELECT name FROM sqlite_master WHERE sql LIKE '%pubsub%'") == []
            server.start()
            assert server.publish(channel="a", payload="installed again") == [1]


@pytest.mark.browser
def test_the_javascript_examples(serve: Callable[..., Server]) -> None:
    from browsers import running

    server = serve(config=OPEN)
    server.publish(channel="orders", payload="one")
    blocks = BLOCK.findall(DOCS["javascript"])
    assert [kind for kind, _ in blocks] == ["browser"] * 2
    with running() as browser:
        for (_, code), said in zip(blocks, ("orders one", "orders 1"), strict=True):
            script = code.strip().removeprefix('<script type="module">').removesuffix("</script>")
            page = browser.new_page()
            page.goto(server.url)
            with page.expect_console_message(lambda message, said=said: message.text == said):
                page.add_script_tag(content=script, type="module")
            page.wait_for_function("document.title === 'live'")
            page.close()
