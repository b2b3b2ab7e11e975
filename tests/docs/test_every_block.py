"""Every block of code in the README and the docs is run by a test, or says here why not.

A block is run if a note above it names its kind, as ``<!-- test: sh -->``: the tests of its page know what to do with
each kind, and refuse others. What an example prints is of the kind ``output``, and compared. Only ``text`` needs no
note: pictures, synopses and formulas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from doc_pages import DOCS, FENCE
from places import ROOT

PAGES = {
    **{f"docs/{name}.md": text for name, text in DOCS.items()},
    **{name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "bench/README.md")},
}

#: Why a block is not run, by its page and first line.
EXEMPT = {
    ("README.md", "make demo"): "tests/server/test_cli.py runs the script of the target",
    ("README.md", "make test"): "it runs this",
    ("README.md", "npm i datasette-pubsub"): "tests/support/node_packages.py puts the package where npm would",
    ("docs/typescript.md", "npm i datasette-pubsub"): "as above",
    ("docs/connect.md", "npm i @connectrpc/connect @connectrpc/connect-node @bufbuild/protobuf"): (
        "tests/support/node_packages.py installs the same packages, and generates the code for the next example"
    ),
    ("docs/connect.md", "version: v2"): "as above: tests/node/v2/buf.gen.yaml",
    (
        "CONTRIBUTING.md",
        "make .venv/test-installed   # a virtual environment in .venv, with the plugin in place and all",
    ): ("targets of the Makefile, which tests/docs/test_contributing.py looks for"),
    ("bench/README.md", "pip install -e ."): "an hour of measurements; tests/docs/test_bench.py looks at the report",
    ("docs/connect.md", "async function* requests() {"): "a part of a program; tests/node/v2/publish.ts calls it",
    ("docs/connect.md", "for await (const response of client.liveQuery({ dbName: "): (
        "a part of a program; tests/clients/test_live_query_connect.py makes the call in Python"
    ),
    (
        "docs/connect.md",
        'import { createPromiseClient } from "@connectrpc/connect";',
    ): "tests/node/v1/client.ts does it",
    ("docs/deploy.md", "uv python install 3.14t"): "downloads a Python; the page says what was tried",
    ("docs/deploy.md", 'python -c "import sys, datasette.app, datasette_pubsub.rpc.service; print('): (
        "needs Python 3.13, and without the lock to print what the page says"
    ),
    ("docs/agents.md", "datasette install datasette-mcp"): "tests/support/agent_packages.py installs it",
    ("docs/agents.md", "datasette install datasette-agent"): "as above",
    (
        "docs/monitoring.md",
        "pip install --pre datasette-otel-prometheus",
    ): "a pre-release; the page says what was tried",
    ("docs/monitoring.md", "datasette install opentelemetry-sdk"): "the tests have both packages installed",
    ("docs/orm.md", "model Message {"): "Prisma downloads a program that is in no registry; the page says so",
    ("docs/orm.md", "const [first, second] = await prisma.$transaction(async (tx) => {"): "as above",
}


def unmarked() -> Iterator[tuple[str, str]]:
    """The blocks that no test runs, by page and first line."""
    for page, text in PAGES.items():
        for block in FENCE.finditer(text):
            language = block["language"]
            if block["by"] or language == "text":
                continue
            # tests/docs/test_docs.py starts Datasette with each of them.
            if language == "yaml" and page.startswith(("docs/", "README")):
                continue
            # Docstrings, whose examples tests/docs/test_docstrings.py and tests/clients/test_python_client.py run.
            if page == "docs/api.md":
                continue
            yield page, block["code"].splitlines()[0]


def reason(page: str, line: str) -> str | None:
    return next((why for (where, begins), why in EXEMPT.items() if page == where and line.startswith(begins)), None)


@pytest.mark.parametrize(("page", "line"), list(unmarked()))
def test_a_block_that_is_not_run_says_why(page: str, line: str) -> None:
    assert reason(page, line), f"{page}: a test runs this block, or EXEMPT says why not: {line}"


def test_every_reason_is_of_a_block() -> None:
    there = list(unmarked())
    for where, begins in EXEMPT:
        assert any(page == where and line.startswith(begins) for page, line in there), (where, begins)


def test_every_fence_is_seen() -> None:
    """Also one that is indented, or without an end."""
    for page, text in PAGES.items():
        assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), page


def test_the_notes_are_known() -> None:
    notes = {block["by"] for text in PAGES.values() for block in FENCE.finditer(text)} - {None}
    # `server` is tests/server/test_servers.py, `monitoring` tests/server/test_monitoring.py, and `shown`
    # tests/docs/test_docs.py: what triggers publish.
    assert notes == {"test", "server", "monitoring", "shown"}
    assert {page for page, text in PAGES.items() if "<!-- monitoring:" in text} == {"docs/monitoring.md"}
    assert {page for page, text in PAGES.items() if "<!-- server:" in text} == {"docs/deploy.md"}
    assert {page for page, text in PAGES.items() if "<!-- shown:" in text} == {"docs/tables.md"}
