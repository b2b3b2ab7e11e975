"""The pages of the docs, and the blocks in them that tests run."""

from __future__ import annotations

import re

from places import ROOT

DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r"<!-- test: (?P<kind>[^\n]+) -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)

#: For the servers that the blocks speak to: a curl whose output nobody reads any more ends with the next heartbeat,
#: and its shell waits for that.
SOON = {"plugins": {"datasette-pubsub": {"heartbeat_seconds": 1}}}


HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The headings as GitHub links to them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}
