"""docs/architecture.md, for the tests that keep it true."""

from __future__ import annotations

import re

from places import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def part(heading: str) -> str:
    """What stands under a heading of the page, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", PAGE, re.MULTILINE)
    assert match, f"docs/architecture.md has no heading: {heading}"
    return re.split(rf"^#{{1,{len(match[1])}}} ", PAGE[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def functions(text: str) -> list[str]:
    """The functions and methods that a text names, with their class and without the parentheses."""
    return re.findall(r"`([A-Za-z_][\w.]*)\(\)`", text)


WALKS = re.findall(r"^### (.*)$", part("Three walks"), re.MULTILINE)
