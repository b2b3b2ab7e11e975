"""The pages of the docs, and the blocks in them that tests run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from places import ROOT

README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r"<!-- test: (?P<kind>[^\n]+) -->\n```\w*\n(?P<code>.*?)```", re.DOTALL)

#: Every block of code, with the note above it if it has one.
FENCE = re.compile(
    r"^(?:<!-- (?P<by>\w+): (?P<kind>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    kind: str
    code: str


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a page that tests run, in their order."""
    for match in BLOCK.finditer(text):
        yield Block(match["kind"], match["code"])


def anchors(text: str) -> set[str]:
    """The headings as GitHub links to them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}
