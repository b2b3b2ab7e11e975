"""The workflows test what the package promises, hold no secrets, and call what is there."""

from __future__ import annotations

import re
import runpy
import tomllib
from typing import Any

import pytest
import yaml
from places import PACKAGE, ROOT

FOLDER = ROOT / ".github"
TEXTS = {path.stem: path.read_text() for path in sorted((FOLDER / "workflows").glob("*.yml"))}
WORKFLOWS: dict[str, Any] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = [(f"{name}.{job}", found) for name, workflow in WORKFLOWS.items() for job, found in workflow["jobs"].items()]


def commands() -> list[str]:
    return [step["run"] for _, job in JOBS for step in job["steps"] if "run" in step]


def test_every_version_of_python_that_is_promised_is_tested() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert WORKFLOWS["test"]["jobs"]["python"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    # The archives are tried with the oldest and the newest.
    (setup,) = [
        step for step in WORKFLOWS["publish"]["jobs"]["build"]["steps"] if "setup-python" in step.get("uses", "")
    ]
    assert setup["with"]["python-version"].split() == [promised[0], promised[-1]]
    assert f"for python in python{promised[0]} python{promised[-1]}" in TEXTS["publish"]


@pytest.mark.parametrize("name", TEXTS)
def test_there_are_no_secrets(name: str) -> None:
    assert not re.search(r"secrets\.|password|token:", TEXTS[name].replace("id-token: write", ""))
    # Nothing may write to the repository; only the jobs that publish may say who they are.
    given = [WORKFLOWS[name].get("permissions"), *(job.get("permissions") for _, job in JOBS)]
    assert all(each in (None, {}, {"contents": "read"}, {"id-token": "write"}) for each in given)
    assert WORKFLOWS[name]["permissions"] in ({}, {"contents": "read"})


def test_who_publishes_runs_nothing_of_the_repository() -> None:
    for name, job in JOBS:
        if "id-token" in job.get("permissions", {}):
            assert name in ("publish.pypi", "publish.npm")
            assert job["environment"] == name.removeprefix("publish.")
            assert job["needs"] == "build"
            assert not [step for step in job["steps"] if "checkout" in step.get("uses", "")]


def test_what_the_steps_call_is_there() -> None:
    text = "\n".join(commands())
    targets = set(re.findall(r"^([.$(){}\w/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^make ([\w./-]+)", text, re.MULTILINE):
        assert target.replace(".venv", "$(VENV)") in targets, target
    files = re.findall(r"(?:^|\s)((?:\.ci|\.github)/[\w-]+)", text)
    assert len(files) == 3
    assert all((ROOT / file).exists() for file in files)
    scripts = set(re.findall(r"npm (test|run \w+)", text))
    assert scripts <= {"test"}
    assert '"test":' in (PACKAGE / "package.json").read_text()


def test_the_two_packages_have_one_version() -> None:
    check = runpy.run_path(str(FOLDER / "check-version"))
    assert [check["npm_version"](version) for version in ("0.1a0", "1.2.3", "2.0rc1", "1.0")] == [
        "0.1.0-alpha.0",
        "1.2.3",
        "2.0.0-rc.1",
        "1.0.0",
    ]
    with pytest.raises(ValueError, match="is not a version"):
        check["npm_version"]("v1.0")
    # The changelog has its heading when the version is released.
    assert [text for text in check["main"](PROJECT["version"]) if "CHANGELOG" not in text] == []
    assert len(check["main"]("9.9.9")) == 3
