"""Clients of npm: their packages, installed and generated once for all tests that run side by side."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from places import NODE, PACKAGE, ROOT
from servers import DEADLINE

#: Runs programs in TypeScript; with the package, what its tests need is installed.
TSX = str(PACKAGE / "node_modules" / ".bin" / "tsx")

PROTO = ROOT / "proto" / "db" / "v1" / "db.proto"


def _run(command: list[str], folder: Path, timeout: float = 2 * DEADLINE) -> str:
    """Run a command to its end; what it printed. Fails with all that it said when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def first_lines(program: str, folder: Path, count: int, environment: dict[str, str]) -> list[str]:
    """Run a program in TypeScript that would go on for ever; the first lines that it prints."""
    prepared_package()
    with subprocess.Popen(
        [TSX, program], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            return [process.stdout.readline().rstrip("\n") for _ in range(count)]
        finally:
            # tsx does not hand a signal on to what it runs.
            os.killpg(process.pid, signal.SIGKILL)


def _is_older(path: Path, *sources: Path) -> bool:
    return not path.exists() or any(path.stat().st_mtime < source.stat().st_mtime for source in sources)


def prepared(version: str) -> Path:
    """The folder of these clients, with its packages installed and its code generated."""
    return _prepared(NODE / version)


def prepared_package() -> Path:
    """The folder of the package for TypeScript, with what it needs installed. Its code is generated already."""
    return _prepared(PACKAGE, generates=False)


def example_folder(folder: Path) -> Path:
    """Install the package for TypeScript in a folder, with what it needs, as npm would; once for each folder."""
    if (folder / "node_modules").exists():
        return folder
    package = prepared_package()
    with (package / "package.json").open() as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        built = package / "dist" / "index.js"
        if _is_older(built, package / "package.json", *package.glob("*.json"), *package.glob("src/**/*.ts")):
            _run(["npm", "run", "build"], package)
    modules = folder / "node_modules"
    (modules / "@connectrpc").mkdir(parents=True)
    (modules / "datasette-pubsub").symlink_to(package)
    for name in ("@connectrpc/connect-node", "@types"):
        (modules / name).symlink_to(package / "node_modules" / name)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def _prepared(folder: Path, *, generates: bool = True) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    # Tests run side by side, and one of them does it for all.
    with (folder / "package.json").open() as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        _prepare(folder, generates)
    return folder


def _prepare(folder: Path, generates: bool) -> None:
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if _is_older(installed, lock):
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, timeout=300)
        installed.touch()
    if not generates or not (folder / "buf.gen.yaml").exists():
        return
    if _is_older(folder / "gen" / "db" / "v1" / "db_pb.ts", installed, folder / "buf.gen.yaml", PROTO):
        _run(["npx", "--no", "buf", "generate"], folder, timeout=120)


def compiled(folder: Path, name: str) -> str:
    """A TypeScript client as JavaScript, compiled once: tsx compiles it at each start, which takes a second."""
    source, made = folder / f"{name}.ts", folder / "gen" / f"{name}.mjs"
    with (folder / "package.json").open() as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if _is_older(made, source, folder / "gen" / "db" / "v1" / "db_pb.ts"):
            how = ["--bundle", "--packages=external", "--platform=node", "--format=esm", f"--outfile={made}"]
            _run(["node_modules/.bin/esbuild", str(source), *how], folder)
    return str(made)
