"""The pages for those who work on the code name what there is, and pre-commit checks what CI checks."""

from __future__ import annotations

import re

import pytest
import yaml
from places import ROOT

PAGES = {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "SECURITY.md")}
MAKEFILE = (ROOT / "Makefile").read_text()


def test_pre_commit_checks_what_the_makefile_does() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    recipes = [re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE) for target in ("lint", "types")]
    assert hooks == [
        line.strip().replace("$(BIN)", ".venv/bin") for (recipe,) in recipes for line in recipe.splitlines()
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_are_there(page: str) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])]
    files = re.findall(r"`((?:[\w.]+/)+[\w.]*|[\w.]+\.(?:md|py))`", PAGES[page])
    places = (ROOT, ROOT / "datasette_pubsub", ROOT / "tests")
    missing = [name for name in [*targets, *files] if not any((place / name).exists() for place in places)]
    assert missing == []


def test_the_tests_that_will_complain_exist() -> None:
    named = re.findall(r"`(tests/\w+/test_\w+\.py)::(test_\w+)", PAGES["CONTRIBUTING.md"])
    assert len(named) > 5
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


def test_the_targets_exist() -> None:
    text = PAGES["CONTRIBUTING.md"]
    named = {name for line in re.findall(r"(?:`|^)make ([\w -]+)", text, re.MULTILINE) for name in line.split()}
    targets = set(re.findall(r"^(\w[\w-]*):", MAKEFILE, re.MULTILINE))
    assert {"test", "check", "generated", "proto", "pictures"} <= named <= targets
