"""Parts of the docs, and what they have to name: shared by the tests of tests/docs."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

from doc_pages import DOCS
from places import ROOT

from datasette_pubsub.core import errors
from datasette_pubsub.http import api, live, messages, request, sse
from datasette_pubsub.pages import panel, publish_form, standing, subscriptions, viewer

#: The README has tests of its own (test_readme.py); what it names must be there, too.
ALL = {**DOCS, "../README": (ROOT / "README.md").read_text()}

#: The modules that read requests.
WEB = (api, live, request, messages, panel, sse, viewer, publish_form, standing, subscriptions)


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", DOCS[page], re.MULTILINE)
    assert match, f"docs/{page}.md has no heading: {heading}"
    rest = DOCS[page][match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> list[str]:
    """The names in the first cells of tables; a cell may hold several."""
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table with this head, as cells."""
    rows = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows, head
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[1].splitlines()]


def asked_for(module: Any, holder: str) -> set[str]:
    """The names that a module takes out of ``args`` or ``data``."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "getlist"):
            of = node.func.value
            if (getattr(of, "attr", None) or getattr(of, "id", None)) == holder and isinstance(
                node.args[0], ast.Constant
            ):
                names.add(str(node.args[0].value))
    return names


def error_classes(base: type[errors.PubsubError] = errors.PubsubError) -> Iterator[type[errors.PubsubError]]:
    yield base
    for derived in base.__subclasses__():
        yield from error_classes(derived)
