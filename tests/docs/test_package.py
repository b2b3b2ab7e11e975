"""Wheel and sdist carry everything, and an installed wheel serves it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from places import ROOT

#: What npm, buf and Python make.
NOT_SHIPPED = re.compile(
    r"(^|/)(node_modules|__pycache__)/|^clients/typescript/dist/|^tests/node/\w+/gen/|^bench/peers/(ceiling|load|sink)$"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Of a copy: setuptools adds what the list of an earlier build has, which hides what MANIFEST.in has forgotten.
    clean = tmp_path_factory.mktemp("clean") / "datasette-pubsub"
    made = shutil.ignore_patterns(".venv*", "node_modules", "*.egg-info", "build", "dist", "__pycache__", ".git")
    shutil.copytree(ROOT, clean, symlinks=True, ignore=made)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(clean)], check=True, capture_output=True
    )
    return folder


def served() -> set[str]:
    """The files that pages need."""
    names = {f"datasette_pubsub/templates/{path.name}" for path in (ROOT / "templates").iterdir()}
    return names | {f"datasette_pubsub/{path.relative_to(ROOT)}" for path in (ROOT / "static").rglob("*.*")}


def test_the_archives_hold_what_the_plugin_serves(dist: Path) -> None:
    wheel = zipfile.ZipFile(next(dist.glob("*.whl")))
    names = set(wheel.namelist())
    assert served() <= names
    assert {"datasette_pubsub/gen/db_pb2.py", "datasette_pubsub/py.typed"} <= names
    package = ROOT / "datasette_pubsub"
    assert {f"datasette_pubsub/{path.relative_to(package)}" for path in package.rglob("*.py")} <= names
    assert any(name.endswith("seattle-weather.csv") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "static/", "templates/"))]
    with tarfile.open(next(dist.glob("*.tar.gz"))) as source:
        inside = {member.name.partition("/")[2] for member in source if member.isfile()}
    assert {"static/pubsub.js", "templates/pubsub_viewer.html", "proto/db/v1/db.proto", "LICENSE"} <= inside
    # What its own tests read, and what an editable install of it serves.
    for folder in ("tests", "docs", "bench", "proto", "examples", "demo", "static", "templates", "clients"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert not {name for name in here - inside if not NOT_SHIPPED.search(name)}
    assert not {name for name in inside if NOT_SHIPPED.search(name)}
    assert {f"datasette_pubsub/{name}" for name in inside if name.startswith(("static/", "templates/"))} <= inside
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())], check=True)


def test_an_installed_wheel_serves_pages_and_files(dist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies of this environment, without its editable install of the plugin.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    here = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    script = """
import asyncio, sys, datasette_pubsub
from datasette.app import Datasette
assert "venv" in datasette_pubsub.__file__, datasette_pubsub.__file__
async def main():
    datasette = Datasette(["data.db"])
    await datasette.invoke_startup()
    page = await datasette.client.get("/data/-/pubsub")
    assert page.status_code == 200, page.text
    for name in sys.argv[1:]:
        answer = await datasette.client.get("/-/static-plugins/datasette_pubsub/" + name)
        assert answer.status_code == 200, name
    print("served")
asyncio.run(main())
"""
    subprocess.run(["sqlite3", "data.db", "CREATE TABLE t (id)"], cwd=tmp_path, check=True)
    files = [str(path.relative_to(ROOT / "static")) for path in (ROOT / "static").rglob("*.*")]
    run = subprocess.run(
        [str(python), "-c", script, *files],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stdout == "served\n", run.stderr


def test_the_links_at_the_top_level() -> None:
    """An editable install finds templates and static files by them; the source archive has copies instead."""
    for name in ("templates", "static"):
        inside = ROOT / "datasette_pubsub" / name
        if inside.is_symlink():
            assert inside.readlink() == Path(f"../{name}")
        else:
            assert {path.relative_to(inside) for path in inside.rglob("*")} == {
                path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*")
            }


def test_dependencies_have_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(">=" in dependency for dependency in project["dependencies"])
    assert not any("connect-python" in dependency for dependency in project["dependencies"])
    assert project["entry-points"]["datasette"] == {"pubsub": "datasette_pubsub"}


@pytest.mark.parametrize(
    "first", ["datasette.app", "datasette_pubsub", "datasette_pubsub.core.settings", "datasette.plugins"]
)
def test_whatever_is_imported_first(first: str) -> None:
    script = (
        f"import {first}, datasette_pubsub\nfrom datasette.app import Datasette\nfrom datasette.plugins import pm\n"
        "print(sorted({caller.name for caller in pm.get_hookcallers(datasette_pubsub)}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "'register_routes'" in run.stdout, run.stderr
    assert "'prepare_connection'" in run.stdout
