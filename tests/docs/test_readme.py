"""The README's examples, run in their order against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from browsers import running
from doc_pages import README, anchors, blocks
from node_packages import TSX, example_folder
from places import ROOT
from readers import CHANNELS, Reader, do
from servers import Server

from datasette_pubsub.core.settings import Settings

BLOCKS = list(blocks(README))


@pytest.mark.node
def test_the_examples(serve: Callable[..., Server], tmp_path: Path, shell_path: str) -> None:
    reader = Reader(tmp_path, shell_path)
    try:
        for kind, code in BLOCKS:
            run(reader, serve, kind, code)
    finally:
        reader.end()
    # What they published is in the log, once.
    assert reader.server is not None
    channels = dict(reader.server.rows("SELECT channel, count(*) FROM vpubsub GROUP BY channel"))
    assert channels == CHANNELS


def run(reader: Reader, serve: Callable[..., Server], kind: str, code: str) -> None:
    """Run one block of the README, and look at what it says."""
    if kind == "shell" and "datasette serve" in code:
        lines = code.splitlines()
        assert lines.pop() == "datasette serve data.db --root"
        reader.run("\n".join(lines))
        reader.server = serve(config={}, options=["--root"])
        return
    if "pip install" in code:
        # It is installed already; test_package.py installs it anew.
        assert code.splitlines()[-1] == "pip install datasette-pubsub"
        return
    assert reader.server is not None
    if kind == "python":
        (reader.folder / "example.py").write_text(code.replace("127.0.0.1:8001", f"127.0.0.1:{reader.server.port}"))
        goes_on([sys.executable, "-u", "example.py"], reader.folder, "1 Application started\n")
    elif kind == "typescript":
        code = code.replace("127.0.0.1:8001", f"127.0.0.1:{reader.server.port}")
        (example_folder(reader.folder) / "example.ts").write_text(code)
        goes_on([TSX, "example.ts"], reader.folder, '[2] {"event":"user_banned"')
    elif kind == "file served.py":
        do(reader, kind, code)
        assert reader.run(f"{sys.executable} -c 'import served; print(served.app is not None)'") == "True\n"
    elif kind != "browser":
        do(reader, kind, code)
        if kind == "shell":
            created = "Created 3 triggers: users is broadcast to changes/users\n"
            assert (reader.printed == created) == ("broadcast" in code)
            assert ("from the command line" in reader.printed) == ("tail" in code)
            # The subscription of the TypeScript example.
            assert ("dashboard" in reader.printed) == ("subscriptions" in code)
        elif kind == "query":
            assert reader.printed == "1\n"
        elif kind == "curl":
            assert json.loads(reader.printed) in ({"ok": True, "message_ids": [5]}, {"messageIds": ["6", "7"]})
        elif kind == "live":
            assert '"columns":["status","users"]' in reader.printed


def goes_on(command: list[str], folder: Path, printed: str) -> None:
    """A program that would go on listening; its first line begins so."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        # tsx does not hand a signal on to what it runs.
        os.killpg(process.pid, signal.SIGKILL)
        assert line.startswith(printed)


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

OURS = "https://github.com/datasette-pubsub/datasette-pubsub"
#: What each badge shows, and where it leads.
BADGES = {
    "https://img.shields.io/pypi/v/datasette-pubsub.svg": "https://pypi.org/project/datasette-pubsub/",
    "https://img.shields.io/pypi/pyversions/datasette-pubsub.svg": "https://pypi.org/project/datasette-pubsub/",
    f"{OURS}/actions/workflows/test.yml/badge.svg": f"{OURS}/actions/workflows/test.yml",
    "https://img.shields.io/badge/license-Apache%202.0-blue.svg": f"{TEXTS}LICENSE",
}


def test_the_badges_are_whole_addresses() -> None:
    assert dict(re.findall(r"^\[!\[.+?\]\((.+?)\)\]\((.+?)\)$", README, re.MULTILINE)) == BADGES


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
    pictures = [each for each in re.findall(r"!\[.*?\]\((.+?)\)", README) if each not in BADGES]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.startswith(PICTURES)
        assert (ROOT / picture.removeprefix(PICTURES)).read_bytes().startswith(b"\x89PNG")
