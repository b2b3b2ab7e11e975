"""The demo: four years of weather in Seattle, published by triggers in the file.

It publishes as any other program would: it inserts into an ordinary table, which is broadcast, and whose own triggers
insert alerts into ``vpubsub``. It changes only a database that it has made itself. Inside Datasette's process it uses
Datasette's own connections (docs/architecture.md).
"""

from __future__ import annotations

import csv
import os
import sqlite3
from bisect import bisect_right
from dataclasses import astuple, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..broadcast import tables
from ..broadcast.definition import Broadcast
from ..broker.registry import registry
from ..core.errors import FailedPrecondition, PubsubError
from ..core.settings import PLUGIN, ConfigError
from ..storage import objects, schema

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

TABLE = "observations"

#: The number of days that a new demo database has from the beginning: the year 2012, so that no page is empty and the
#: stored query has a year to compare with.
FIRST_DAYS = 366

#: The wind from which a day counts as a storm, in m/s: 27 days of the 1,461.
STORM_WIND = 7

#: The prefixes of internal tables of SQLite and of the migrations.
_INTERNAL = ("sqlite_", "_sqlite_")

_FIELDS = "date, precipitation, temp_max, temp_min, wind, weather"

_TABLE = f"""
CREATE TABLE {TABLE} (
  date TEXT PRIMARY KEY,
  precipitation REAL,
  temp_max REAL,
  temp_min REAL,
  wind REAL,
  weather TEXT
)"""

#: Every new row is published. A record that begins again deletes all rows at once, which would be a flood of messages.
_BROADCAST = Broadcast("observations", conditions={"insert": ""})

#: The triggers that raise alerts, by name.
_TRIGGERS = {
    f"{TABLE}_storm": f"""
CREATE TRIGGER {TABLE}_storm AFTER INSERT ON {TABLE} WHEN NEW.wind >= {STORM_WIND}
BEGIN
  INSERT INTO vpubsub (channel, payload)
  VALUES ('alerts/storm', json_object('date', NEW.date, 'wind', NEW.wind));
END""",
    f"{TABLE}_frost": f"""
CREATE TRIGGER {TABLE}_frost AFTER INSERT ON {TABLE} WHEN NEW.temp_min < 0
BEGIN
  INSERT INTO vpubsub (channel, payload)
  VALUES ('alerts/frost', json_object('date', NEW.date, 'temp_min', NEW.temp_min));
END""",
    f"{TABLE}_snow": f"""
CREATE TRIGGER {TABLE}_snow AFTER INSERT ON {TABLE} WHEN NEW.weather = 'snow'
BEGIN
  INSERT INTO vpubsub (channel, payload)
  VALUES ('alerts/snow', json_object('date', NEW.date, 'precipitation', NEW.precipitation));
END""",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One day: precipitation in mm, temperatures in °C, wind in m/s."""

    date: str
    precipitation: float
    temp_max: float
    temp_min: float
    wind: float
    weather: str


@lru_cache(maxsize=1)
def observations() -> tuple[Observation, ...]:
    """All days of the record, by date."""
    text = resources.files(__package__).joinpath("data", "seattle-weather.csv").read_text("utf-8")
    return tuple(
        Observation(
            row["date"].replace("/", "-"),
            float(row["precipitation"]),
            float(row["temp_max"]),
            float(row["temp_min"]),
            float(row["wind"]),
            row["weather"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def is_demo(conn: sqlite3.Connection) -> bool:
    """Whether this file is a demo database: its table and alerts are those that :func:`prepare` makes."""
    sql = {row[0]: row[1] for row in conn.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name = ?", [TABLE])}
    return all(sql.get(name) == text.strip() for name, text in {TABLE: _TABLE, **_TRIGGERS}.items())


def check(conn: sqlite3.Connection) -> bool:
    """Whether this file is a demo database already; ``False`` if it can become one.

    Raises :class:`FailedPrecondition` if it has tables that the demo did not make.
    """
    if is_demo(conn):
        return True
    names = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    others = [name for name in names if name not in objects.TABLES and not name.startswith(_INTERNAL)]
    if others:
        raise FailedPrecondition(f"not a demo database: it has {', '.join(others[:3])}; name another file for the demo")
    return False


def prepare(conn: sqlite3.Connection) -> None:
    """Make the table with its triggers, and the first days, inside the caller's transaction, unless they exist.

    Raises :class:`FailedPrecondition` if the file has no log to publish to, or
    has tables that the demo did not make.
    """
    if check(conn):
        return
    if not schema.installed(conn):
        raise FailedPrecondition("the demo's database has no log to publish to")
    for sql in (_TABLE, *_TRIGGERS.values()):
        conn.execute(sql.strip())
    tables.create(conn, TABLE, _BROADCAST)
    for observation in observations()[:FIRST_DAYS]:
        _insert(conn, observation)


def progress(conn: sqlite3.Connection) -> int:
    """How many days of the record are in the table: the index after the newest observation."""
    newest = conn.execute(f"SELECT max(date) FROM {TABLE}").fetchone()[0]
    return bisect_right(observations(), newest or "", key=lambda observation: observation.date)


def advance(conn: sqlite3.Connection) -> Observation | None:
    """Insert the day after the newest one, inside the caller's transaction; ``None`` after the last."""
    done = progress(conn)
    if done == len(observations()):
        return None
    _insert(conn, observations()[done])
    return observations()[done]


def begin(conn: sqlite3.Connection) -> int:
    """The number of days in the table. If it has all days, delete them first, inside the caller's transaction.

    The published messages stay in the log.
    """
    if progress(conn) == len(observations()):
        conn.execute(f"DELETE FROM {TABLE}")
    return progress(conn)


def _insert(conn: sqlite3.Connection, observation: Observation) -> None:
    conn.execute(f"INSERT INTO {TABLE} ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?)", astuple(observation))


async def serve_demo(datasette: Datasette, file_name: str) -> None:
    """Serve the demo database, and create it first if it does not exist.

    ``file_name`` is a name without a folder; the file is in the configuration
    directory or, without one, in the working directory. A file that Datasette
    serves already is not added again. Raises :class:`~.core.settings.ConfigError`
    if the option is not a file name, or if the file is not a demo database or
    cannot be created.
    """
    from datasette.database import Database

    if Path(file_name).name != file_name:
        raise ConfigError(f"{PLUGIN}: option 'demo_database' must be a file name without a folder, like weather.db")
    path = Path(datasette.config_dir or ".") / file_name
    db = _served(datasette, path)
    added = db is None
    if db is None:
        db = datasette.add_database(Database(datasette, path=str(path), is_mutable=True))
    try:
        # A read connection cannot create the file, so it is used only if the file exists.
        if not (path.exists() and await db.execute_fn(is_demo)) and db.is_mutable:
            broker = registry(datasette).find(str(db.name))
            if broker is None:
                raise FailedPrecondition("the demo's database does not take part (enabled)")
            await broker.store.write(prepare)
    except (PubsubError, sqlite3.Error) as error:
        if added:
            datasette.remove_database(db.name)
        raise ConfigError(f"{PLUGIN}: option 'demo_database': {file_name} cannot be made or used: {error}") from None


def _served(datasette: Datasette, path: Path) -> Database | None:
    wanted = os.path.realpath(path)
    for db in datasette.databases.values():
        if db.path is not None and os.path.realpath(db.path) == wanted:
            return db
    return None
