"""The site of these pages: ``make docs``. They are written for GitHub; this file says what is different on the site.

Sphinx, with MyST for Markdown and Furo for the looks. The contents of README.md make the navigation, so that a page is
listed once. Links that leave this folder lead to GitHub. The top-level README is the first page, in place of index.md.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

import llms  # noqa: E402 - it stands beside this file

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Homepage"]
#: Where files of the repository are shown, and where pictures are.
FILES = f"{REPOSITORY}/blob/main/"
PICTURES = f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/main/"

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
copyright = author
release = version = PROJECT["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# The anchors of headings are GitHub's.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_copy_source = False
html_theme_options = {
    "footer_icons": [{"name": "GitHub", "url": REPOSITORY, "html": "Source", "class": ""}],
}


def page(name: str, text: str) -> str:
    """A page of this folder as it stands on the site; ``index`` is the README."""
    if name == "index":
        text = (ROOT / "README.md").read_text()
        # What a project's page on PyPI and GitHub shows is not for its own site.
        text = re.sub(r"(?m)^\[!\[.*\n", "", text)
        text = text.replace(f"]({FILES}docs/", "](").replace(f"]({PICTURES}docs/", "](")
    else:
        text = text.replace("](../README.md", "](index.md").replace("](../", f"]({FILES}")
    # Notes to the tests and to cog.
    return re.sub(r"(?ms)^<!-- .*?-->\n", "", text)


def navigation() -> str:
    """The contents of README.md as Sphinx's: a heading with a table of pages is a part of the navigation."""
    trees = ["```{toctree}\n:hidden:\n\nREADME\n```\n"]
    for heading, text in re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", (DOCS / "README.md").read_text()):
        pages = re.findall(r"(?m)^\| \[.*?\]\(([\w-]+)\.md\)", text)
        if pages:
            trees.append(f"```{{toctree}}\n:hidden:\n:caption: {heading}\n\n" + "\n".join(pages) + "\n```\n")
    return "\n".join(trees)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = page(name, content[0])
    if name == "index":
        content[0] += f"\n{navigation()}"


def show(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The links to a page's source; the first page's is the README."""
    path = "README.md" if name == "index" else f"docs/{name}.md"
    context["theme_source_view_link"] = f"{FILES}{path}"
    context["theme_source_edit_link"] = f"{REPOSITORY}/edit/main/{path}"


def finished(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name in ("html", "dirhtml"):
        pages = {name: page(name, (DOCS / f"{name}.md").read_text()) for name in app.env.found_docs}
        llms.write(Path(app.outdir), PROJECT["description"], html_baseurl, (DOCS / "README.md").read_text(), pages)


def setup(app: Sphinx) -> None:
    # Languages of our examples that Pygments does not have.
    for language in ("caddy", "prisma"):
        app.add_lexer(language, TextLexer)
    app.connect("source-read", read)
    app.connect("html-page-context", show)
    app.connect("build-finished", finished)
