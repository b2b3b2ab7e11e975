"""What the examples begin with: the README was followed to its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from readers import Reader, after_the_readme
from servers import Server, sqlite_shell
from shell import path_with_datasette


@pytest.fixture(scope="module")
def readme_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with done.db, the file that its reader has, and the token."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "server").mkdir()
    server = Server([folder / "data.db"], {}, folder / "server", options=["--root"])
    try:
        with path_with_datasette() as path:
            reader = after_the_readme(folder, path, server.start)
        (folder / "token").write_text(reader.environment["TOKEN"])
        sqlite_shell(folder / "data.db", f".backup '{folder / 'done.db'}'")
    finally:
        server.kill()
    return folder


@pytest.fixture
def reader(readme_done: Path, serve: Callable[..., Server], tmp_path: Path, shell_path: str) -> Iterator[Reader]:
    """Somebody who has followed the README, with the server as the README starts it."""
    shutil.copy(readme_done / "done.db", tmp_path / "data.db")
    found = Reader(tmp_path, shell_path)
    found.server = serve(config={}, options=["--root"])
    found.environment["TOKEN"] = (readme_done / "token").read_text()
    yield found
    found.end()
