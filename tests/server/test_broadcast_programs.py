"""Tables that need a program's own functions and collations: given to the command as to Datasette."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from commands import python_module

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

#: As in the libraries of e-book managers, flash-card programs and map files.
BOOKS = """
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL, sort TEXT);
CREATE TRIGGER books_sort AFTER INSERT ON books
BEGIN UPDATE books SET sort = title_sort(NEW.title) WHERE id = NEW.id; END;
"""
FIELDS = """
CREATE TABLE fields (ntid INTEGER, ord INTEGER, name TEXT COLLATE unicase, PRIMARY KEY (ntid, ord)) WITHOUT ROWID;
CREATE UNIQUE INDEX fields_name ON fields (name, ntid);
"""

PLUGIN = """
from datasette import hookimpl

@hookimpl
def prepare_connection(conn):
    conn.create_function("title_sort", 1, lambda title: title.removeprefix("The "))
    conn.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
"""

EXTENSION = r"""
#include <string.h>
#include <strings.h>
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1
static void title_sort(sqlite3_context *context, int count, sqlite3_value **values) {
  const char *title = (const char *)sqlite3_value_text(values[0]);
  if (title && !strncmp(title, "The ", 4)) title += 4;
  sqlite3_result_text(context, title, -1, SQLITE_TRANSIENT);
}
static int unicase(void *unused, int n, const void *a, int m, const void *b) {
  int found = strncasecmp(a, b, n < m ? n : m);
  return found ? found : n - m;
}
int sqlite3_program_init(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  SQLITE_EXTENSION_INIT2(api);
  sqlite3_create_collation(db, "unicase", SQLITE_UTF8, 0, unicase);
  return sqlite3_create_function(db, "title_sort", 1, SQLITE_UTF8, 0, title_sort, 0, 0);
}
"""


def program(conn: sqlite3.Connection) -> None:
    """The functions of the program whose file it is."""
    conn.create_function("title_sort", 1, lambda title: title.removeprefix("The "))
    conn.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        program(conn)
        schema.install(conn, Settings())
        conn.executescript(BOOKS + FIELDS)
    return path


def broadcast(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python_module("datasette", "pubsub", "broadcast", path, *arguments)


def check(path: Path, *options: str) -> None:
    """Both tables are broadcast, and the program's writes are published."""
    for table in ("books", "fields"):
        made = broadcast(path, table, *options)
        assert made.returncode == 0, made.stderr
        assert f"{table} is broadcast to changes/{table}" in made.stdout
        assert made.stderr == ""
        shown = broadcast(path, table, "--show", *options)
        assert (shown.returncode, shown.stderr) == (0, "")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        program(conn)
        conn.executescript("DELETE FROM books; DELETE FROM fields")
        conn.execute("INSERT INTO books (title) VALUES ('The Tempest')")
        conn.execute("INSERT INTO fields VALUES (1, 0, 'Front')")
        conn.execute("INSERT OR REPLACE INTO fields VALUES (1, 1, 'FRONT')")
        found = conn.execute(
            "SELECT channel, payload ->> 'op', payload ->> '$.new.sort', payload ->> '$.key.ord' "
            "FROM vpubsub ORDER BY id"
        ).fetchall()
    assert found[-3:] == [
        ("changes/fields", "insert", None, 0),
        ("changes/fields", "delete", None, 0),
        ("changes/fields", "insert", None, 1),
    ]
    assert ("changes/books", "insert", "Tempest", None) in found or (
        "changes/books",
        "update",
        "Tempest",
        None,
    ) in found
    for table in ("books", "fields"):
        assert broadcast(path, table, "--remove", *options).returncode == 0


def test_a_folder_of_plugins(library: Path, tmp_path: Path) -> None:
    for table, missing in (("books", "title_sort"), ("fields", "unicase")):
        refused = broadcast(library, table)
        assert refused.returncode == 1
        assert missing in refused.stderr
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "program.py").write_text(PLUGIN)
    check(library, "--plugins-dir", str(plugins))
    assert broadcast(library, "books", "--plugins-dir", str(tmp_path / "nowhere")).returncode == 2


def test_an_extension(library: Path, tmp_path: Path) -> None:
    """By its path, and with its entrypoint; a Python that cannot load extensions says so."""
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        refused = broadcast(library, "books", "--load-extension", "program.so")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "this Python cannot load SQLite extensions" in refused.stderr
        pytest.skip("this Python cannot load SQLite extensions")
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/sqlite3ext.h").exists():
        pytest.skip("needs gcc and SQLite's headers")
    source, extension = tmp_path / "program.c", tmp_path / "program.so"
    source.write_text(EXTENSION)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(extension), str(source)], check=True, timeout=120)
    check(library, "--load-extension", str(extension))
    check(library, "--load-extension", f"{extension}:sqlite3_program_init")
    refused = broadcast(library, "books", "--load-extension", f"{extension}:nothing")
    assert refused.returncode == 1
    assert "cannot be loaded" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
