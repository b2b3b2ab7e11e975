"""``datasette pubsub live``: lines of JSON in a pipe, and a table that redraws on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import PUBSUB, call, failure
from servers import DEADLINE, sqlite_shell

from datasette_pubsub.cli import screen
from datasette_pubsub.core.result import Result

SQL = "SELECT id, name FROM items ORDER BY id"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that never had a log: a live query needs none."""
    found = tmp_path / "data.db"
    with closing(sqlite3.connect(found, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.executescript(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, name); INSERT INTO items VALUES (1, 'one'), (2, 'two')"
        )
    return found


# -- in a pipe ------------------------------------------------------------------


def test_each_line_is_a_snapshot_or_a_change(path: Path) -> None:
    command = [*PUBSUB, "live", str(path), SQL, "--key", "id", "--interval", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:

        def line() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(process.stdout.readline())
            return found

        snapshot = {"event": "snapshot", "head": "0", "columns": ["id", "name"], "key": ["id"]}
        assert line() == {**snapshot, "rows": [[1, "one"], [2, "two"]]}
        sqlite_shell(path, "UPDATE items SET name = 'zwei — ' || char(8232) WHERE id = 2;")
        change = {"event": "change", "head": "0", "removed": [], "inserted": []}
        assert line() == {**change, "changed": [{"at": 1, "row": [2, "zwei — \u2028"], "was": [2, "two"]}]}
        sqlite_shell(path, "DELETE FROM items WHERE id = 1; CREATE TABLE other (id); INSERT INTO other VALUES (1);")
        assert line() == {**change, "removed": [{"at": 0, "row": [1, "one"]}], "changed": []}
        # What cannot be run is told once, and a whole result follows when it can be again.
        sqlite_shell(path, "ALTER TABLE items RENAME TO away;")
        assert process.stderr.readline() == "Error: sql: no such table: items\n"
        sqlite_shell(path, "INSERT INTO other VALUES (2);")
        sqlite_shell(path, "ALTER TABLE away RENAME TO items;")
        assert line() == {**snapshot, "rows": [[2, "zwei — \u2028"]]}
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=DEADLINE) == ("", "")
        assert process.returncode == 0


def test_a_closed_pipe_ends_it(path: Path) -> None:
    with subprocess.Popen([*PUBSUB, "live", str(path), SQL], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == b""


def test_once_parameters_and_errors(path: Path) -> None:
    query = ("live", path, "SELECT name FROM items WHERE id = :id", "--once")
    assert json.loads(call(*query, "--param", "id", "2").stdout)["rows"] == [["two"]]
    assert failure(*query) == "the query needs a value for its parameter id"
    assert failure("live", path, "SELECT * FROM nothing_there") == "sql: no such table: nothing_there"
    assert failure("live", path, "DROP TABLE items") == "sql: a live query is a SELECT, and only reads"
    assert failure("live", path, SQL, "--key", "other") == "key: the result has no column other"
    assert failure("live", path, SQL, "--max-rows", "1") == "the result has more than 1 rows (--max-rows): use LIMIT"
    assert "there is no such file" in failure("live", path.with_name("nothing.db"), SQL)
    assert "Missing argument 'SQL'" in call("live", path, code=2).stderr
    assert "--interval" in call("live", path, SQL, "--interval", "0", code=2).stderr
    path.with_name("text.db").write_text("this is no database, but it is long enough to be taken for one" * 20)
    assert failure("live", path.with_name("text.db"), SQL).endswith("is not an SQLite database")


# -- on a terminal --------------------------------------------------------------


class Terminal:
    """A command on a terminal, and what its screen shows: as much of ECMA-48 as the command uses."""

    def __init__(self, command: list[str], width: int, height: int, **environment: str) -> None:
        self._ours, self._its = pty.openpty()
        self.resize(width, height)
        self.raw = ""
        self.process = subprocess.Popen(
            command,
            stdin=self._its,
            stdout=self._its,
            stderr=self._its,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=self._take,
        )

    def _take(self) -> None:
        """Make it the terminal that Ctrl+C comes from."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._its, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._its)[3] & termios.ECHO)

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    @property
    def lines(self) -> list[str]:
        """The lines of the last drawing, without styles."""
        drawn = self.raw.rpartition("\x1b[H")[2]
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in drawn.split("\r\r\n")]

    def until(self, *wanted: str) -> list[str]:
        """Read until the screen shows these texts; its lines."""
        end = time.monotonic() + DEADLINE
        while not all(any(text in line for line in self.lines) for text in wanted):
            assert time.monotonic() < end, (wanted, self.raw)
            if select.select([self._ours], [], [], 0.1)[0]:
                self.raw += os.read(self._ours, 65536).decode()
        return self.lines

    def rest(self) -> str:
        """Everything that the command has written, when it has ended."""
        while select.select([self._ours], [], [], 0)[0]:
            self.raw += os.read(self._ours, 65536).decode()
        return self.raw

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        os.close(self._ours)
        os.close(self._its)


@contextmanager
def terminal(path: Path, *options: str, width: int = 60, height: int = 10, **environment: str) -> Iterator[Terminal]:
    found = Terminal([*PUBSUB, "live", str(path), *options, "--interval", "0.02"], width, height, **environment)
    try:
        yield found
    finally:
        found.close()


def test_a_table_that_redraws(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with terminal(Path("data.db"), SQL, "--key", "id") as shown:
        assert shown.until("two")[1:] == ["  id  name", "   1  one", "   2  two"]
        assert shown.raw.startswith("\x1b[?1049h\x1b[?25l"), "the alternate screen, without a cursor"
        assert not shown.echoes
        sqlite_shell(path, "INSERT INTO items VALUES (3, 'three'); ")
        lines = shown.until("three")
        assert lines[0].startswith("data.db  3 rows  ")
        assert lines[0].endswith("+1")
        assert lines[1:] == ["  id  name", "   1  one", "   2  two", "+  3  three"]
        sqlite_shell(path, "UPDATE items SET name = 'TWO' WHERE id = 2;")
        assert shown.until("TWO")[1:] == ["  id  name", "   1  one", "~  2  TWO", "   3  three"]
        # A smaller terminal shows less, also before anything changes.
        shown.resize(12, 4)
        lines = shown.until("2 more")
        assert len(lines) == 4
        assert lines[1:] == ["  id  name", "   1  one", "  … 2 more …"]
        sqlite_shell(path, "ALTER TABLE items RENAME TO away;")
        assert shown.until("Error: sql:")[0] == "Error: sql:…"
        shown.type(b"\x03")
        assert shown.process.wait(DEADLINE) == 0
        assert shown.rest().endswith("\x1b[?25h\x1b[?1049l"), "the screen as it was"
        assert shown.echoes


def test_nothing_of_a_value_controls_the_terminal(path: Path) -> None:
    sqlite_shell(path, "UPDATE items SET name = char(27) || '[31mred' || char(10) || char(8238) || 'x' WHERE id = 2;")
    with terminal(path, SQL, NO_COLOR="1") as shown:
        assert "   2  \\x1b[31mred\\n\\u202ex" in shown.until("red")
        assert "\x1b[31m" not in shown.raw
        assert "m" not in "".join(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", shown.raw)), "NO_COLOR"


def test_an_error_leaves_the_terminal_as_it_was(path: Path) -> None:
    with terminal(path, "SELECT nothing_there") as shown:
        shown.until("Error: sql: no such column: nothing_there")
        assert shown.process.wait(DEADLINE) == 1
        assert "\x1b[?1049l" in shown.raw
        assert shown.echoes


def table(result: Result, width: int, height: int, marks: dict[int, str] | None = None) -> list[str]:
    return screen.lines(result, marks or {}, width, height, colours=False)


def test_a_table_fits_into_any_terminal() -> None:
    rows = [json.dumps([number, "日本語の長い文" * 5, "e\u0301" * 30, None, 1.5]).encode() for number in range(50)]
    result = Result(("number", "wide", "combining", "nothing", "real"), rows, 0)
    for width in range(1, 120):
        for height in (1, 2, 3, 10, 60):
            found = table(result, width, height)
            assert len(found) <= height
            if width > 12:
                assert all(screen.width_of(line) <= width for line in found), (width, found)
    assert table(result, 200, 60)[1].startswith("       0  日本語")
    assert len(table(result, 80, 60)) == 51
    assert table(result, 80, 10)[-1] == "  … 42 more rows"
    assert table(Result(("a",), [], 0), 80, 10) == ["  a"]
    bytes_ = [b'[{"$base64":true,"encoded":"AP8="},"x"]']
    assert table(Result(("a", "b"), bytes_, 0), 80, 10) == ["  a          b", "  (2 bytes)  x"]
