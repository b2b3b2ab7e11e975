"""Writes llms.txt, llms-full.txt and each page as Markdown beside its HTML, for programs that read (llmstxt.org)."""

from __future__ import annotations

import re
from pathlib import Path


def write(folder: Path, description: str, base: str, contents: str, pages: dict[str, str]) -> None:
    """``contents`` is the page that lists the others in their order; ``pages`` have their Markdown, by name.

    ``base`` is the site's address with a slash at its end, or empty: then links are relative.
    """
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)
    lines = [f"# datasette-pubsub\n\n> {description}\n", f"- [README]({base}index.md): install, publish, subscribe\n"]
    order = ["index"]
    for heading, part in re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", contents):
        rows = re.findall(r"(?m)^\| \[(.*?)\]\(([\w-]+)\.md\) \| (.*) \|$", part)
        if rows:
            lines.append(f"## {heading}\n")
            plain = [(title, name, re.sub(r"\[(.*?)\]\(.*?\)", r"\1", meaning)) for title, name, meaning in rows]
            lines.append("\n".join(f"- [{title}]({base}{name}.md): {meaning}" for title, name, meaning in plain) + "\n")
            order += [name for _, name, _ in rows]
    (folder / "llms.txt").write_text("\n".join(lines))
    (folder / "llms-full.txt").write_text("\n\n".join(pages[name].strip() for name in order) + "\n")
