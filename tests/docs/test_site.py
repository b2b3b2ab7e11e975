"""The site of the docs: built once, as ``make docs`` builds it, and looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from doc_pages import DOCS, HEADING
from places import ROOT

FILES = "https://github.com/datasette-pubsub/datasette-pubsub/blob/main/"


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", str(source), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class Page(HTMLParser):
    """The links of a page, the places in it that links lead to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script", "link"):
            self.loaded += [found[name] for name in ("src", "href") if name in found]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.name: Page(path.read_text()) for path in site.glob("*.html")}


def test_every_page_is_on_it_and_in_the_navigation(pages: dict[str, Page]) -> None:
    assert {f"{name}.html" for name in DOCS} <= set(pages)
    for name in set(DOCS) - {"index"}:
        assert f"{name}.html" in pages["index.html"].links


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    within = 0
    for name, page in pages.items():
        for link in page.links:
            if link.startswith(FILES):
                # To a file of the repository, and not to one that is a page here.
                target = link.removeprefix(FILES).partition("#")[0]
                assert (ROOT / target).exists(), (name, link)
            elif not re.match("https?:|mailto:", link):
                path, _, anchor = link.partition("#")
                assert path in ("", "#") or (site / path).exists(), (name, link)
                # The page of the search makes its links by a script.
                assert not anchor or anchor in pages[path or name].ids, (name, link)
                within += bool(anchor)
    assert within > 500


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for address in page.loaded:
            assert not address.startswith(("http:", "https:", "//")), (name, address)
            assert address == "#" or (site / address.partition("?")[0]).exists(), (name, address)


def test_the_readme_is_the_first_page_with_links_within_the_site(site: Path, pages: dict[str, Page]) -> None:
    text = (site / "index.html").read_text()
    for heading in HEADING.findall((ROOT / "README.md").read_text()):
        assert re.sub(r"[^\w]", "", heading).lower() in re.sub(r"[^\w]", "", text).lower(), heading
    assert [link for link in pages["index.html"].links if link.startswith(f"{FILES}docs/")] == []
    assert f"{FILES}README.md" in pages["index.html"].links, "to view its source"
    assert "delivery.html" in pages["index.html"].links


def test_the_search_finds_an_option(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    assert "retention_day" in index


def test_notes_to_the_tests_are_not_on_it(site: Path) -> None:
    for path in [*site.glob("*.html"), *site.glob("*.md"), site / "llms-full.txt"]:
        assert not re.search(r"<!-- (?:test|server)|\[\[\[", path.read_text()), path.name


def test_the_texts_for_programs_that_read(site: Path) -> None:
    contents = (site / "llms.txt").read_text()
    assert contents.startswith("# datasette-pubsub\n\n> ")
    listed = re.findall(r"^- \[.+?\]\(([\w-]+)\.md\): .", contents, re.MULTILINE)
    assert sorted(listed) == sorted(set(DOCS) - {"README"})
    whole = (site / "llms-full.txt").read_text()
    titles = [(site / f"{name}.md").read_text().splitlines()[0] for name in listed]
    assert re.findall(r"(?m)^# .*", re.sub(r"(?ms)^```.*?^```", "", whole)) == titles


def test_a_link_to_nowhere_fails(tmp_path: Path) -> None:
    """``-n -W`` sees a wrong page and a wrong heading."""
    (tmp_path / "docs").mkdir()
    for name in ("pyproject.toml", "README.md", "docs/conf.py", "docs/llms.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "docs" / "_static").mkdir()
    (tmp_path / "docs" / "README.md").write_text("# Contents\n\n[a](none.md) [b](#nowhere)\n")
    (tmp_path / "docs" / "index.md").write_text("# The README\n")
    (tmp_path / "README.md").write_text("# The README\n")
    done = build(tmp_path / "docs", tmp_path / "site")
    assert done.returncode == 1
    assert "none.md" in done.stderr
    assert "nowhere" in done.stderr


def test_read_the_docs_builds_it_the_same_way() -> None:
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert config["sphinx"] == {"configuration": "docs/conf.py", "fail_on_warning": True}
    assert config["python"]["install"] == [{"method": "pip", "path": ".", "extra_requirements": ["docs"]}]
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert "-m sphinx -W --keep-going -n -q docs " in recipe[1]
