"""The README's examples, run in their order against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import running
from doc_pages import SOON, anchors
from node_packages import example_folder, first_lines
from places import ROOT
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import Settings

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- test: (?P<kind>[^\n]+) -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [(match["kind"], match["code"]) for match in BLOCK.finditer(README)]


def test_every_example_is_of_a_kind_that_is_run() -> None:
    kinds = {kind for kind, _ in BLOCKS}
    assert kinds == {
        "shell", "sqlite3", "sqlite3 shell", "token", "query",
        "curl", "stream", "live", "browser", "typescript", "python", "file served.py",
    }  # fmt: skip


@pytest.mark.node
def test_the_examples(serve: Callable[..., Server], tmp_path: Path, shell_path: str) -> None:
    environment = {**os.environ, "PATH": shell_path, "COLUMNS": "100"}
    server: Server | None = None
    root = ""

    def run(code: str) -> str:
        nonlocal server
        if server is not None:
            code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}")
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

    for kind, block in BLOCKS:
        code = block
        if kind == "shell" and "datasette serve" in code:
            lines = code.splitlines()
            assert lines.pop(0) == "datasette install datasette-pubsub"
            assert lines.pop() == "datasette serve data.db --root"
            run("\n".join(lines))
            server = serve(config=SOON, options=["--root"])
            root = run("datasette create-token root --secret tests").strip()
            continue
        assert server is not None
        code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}")
        if kind == "shell":
            output = run(code)
            if "broadcast" in code:
                assert output == "Created 3 triggers: users is broadcast to changes/users\n"
                continue
            assert "from the command line" in output
            assert "dashboard" in output, "the subscription of the TypeScript example"
        elif kind == "sqlite3 shell":
            run(code)
        elif kind == "token":
            # The secret of the servers of tests.
            environment["TOKEN"] = run(f"{code.replace('change-me', 'tests')}\necho $TOKEN").strip()
        elif kind == "sqlite3":
            sqlite_shell(server.path, code)
        elif kind == "query":
            answer = httpx.get(
                f"{server.url}/data/-/query.json",
                params={"sql": code},
                headers={"Authorization": f"Bearer {root}"},
            )
            assert list(answer.json()["rows"][0].values()) == [1]
        elif kind == "curl":
            answer = json.loads(run(f"curl -s {code.removeprefix('curl ')}"))
            assert answer in ({"ok": True, "message_ids": [5]}, {"messageIds": ["6", "7"]})
        elif kind == "stream":
            output = run(f"{code.strip().replace('curl -N', 'curl -sN')} | head -n 4")
            assert re.fullmatch(
                r'retry: \d+\n\nid: 1\ndata: \{"messageId":"1","channel":"logs","payload":"Application started",'
                r'"createdAt":"[-\d]+T[:.\d]+Z"\}\n',
                output,
            )
        elif kind == "live":
            output = run(f"{code.strip().replace('curl -N', 'curl -sN')} | head -n 4")
            assert '"columns":["status","users"]' in output
        elif kind == "python":
            script = tmp_path / "example.py"
            script.write_text(code)
            with subprocess.Popen([sys.executable, "-u", script], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                # It would go on listening.
                process.kill()
                assert line == "1 Application started\n"
        elif kind == "typescript":
            (example_folder(tmp_path) / "example.ts").write_text(code)
            (line,) = first_lines("example.ts", tmp_path, 1)
            assert line.startswith('[2] {"event":"user_banned"')
        elif kind.startswith("file "):
            (tmp_path / kind.removeprefix("file ")).write_text(code)
            assert run(f"{sys.executable} -c 'import served; print(served.app is not None)'") == "True\n"
    # What they published is in the log, once.
    assert server is not None
    channels = dict(server.rows("SELECT channel, count(*) FROM vpubsub GROUP BY channel"))
    assert channels == {"logs": 5, "security_alerts": 1, "orders": 1, "analytics_feed": 1}


@pytest.mark.browser
def test_the_browser_example(serve: Callable[..., Server]) -> None:
    server = serve(config={"permissions": {"publish-message": True}})
    server.publish(channel="security_alerts", payload="one")
    (code,) = [code for kind, code in BLOCKS if kind == "browser"]
    with running() as browser:
        page = browser.new_page()
        printed: list[str] = []
        page.on("console", lambda message: printed.append(message.text))
        page.goto(server.url)
        with page.expect_console_message(lambda message: message.text == "1 one"):
            page.evaluate(f"() => {{ {code} }}")
        with page.expect_console_message(lambda message: message.text == "2 two"):
            server.publish(channel="security_alerts", payload="two")


def test_the_options_table_is_complete() -> None:
    """In docs/configuration.md, and nowhere else."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    for option in fields(Settings):
        default: Any = option.default
        shown: str
        if isinstance(default, bool):
            shown = str(default).lower()
        elif isinstance(default, int):
            shown = f"{default:,}"
        else:
            shown = f"{default:g}" if isinstance(default, float) else default or "none"
        assert rows[option.name] == shown
        assert f"| {option.metadata['doc']} |" in page
        assert f"| `{option.name}` |" not in README


#: PyPI shows the README without the files beside it, so its links are whole.
TEXTS = "https://github.com/datasette-pubsub/datasette-pubsub/blob/main/"
PICTURES = "https://raw.githubusercontent.com/datasette-pubsub/datasette-pubsub/main/"


def test_its_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    ours = [target.removeprefix(TEXTS) for target in targets if target.startswith(TEXTS)]
    assert len(ours) > 15
    for target in ours:
        name, _, anchor = target.partition("#")
        path = ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target
    assert {target[1:] for target in targets if target.startswith("#")} <= anchors(README)


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.+?)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.startswith(PICTURES)
        assert (ROOT / picture.removeprefix(PICTURES)).read_bytes().startswith(b"\x89PNG")
