"""The demo: the checkout as a configuration directory, and four years of weather."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from commands import PUBSUB, call, failure, run
from places import ROOT
from servers import DEADLINE, Server, Sse, free_port, sqlite_shell, wait_for

from datasette_pubsub.core.errors import FailedPrecondition
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.demo import weather
from datasette_pubsub.storage import log, schema, search

Serve = Callable[..., Server]


@pytest.fixture
def serve_folder(tmp_path: Path) -> Iterator[Serve]:
    """Serve a folder with this project's metadata.yml and datasette.yml, as ``datasette .`` in a checkout does."""
    servers: list[Server] = []

    def begin(arguments: tuple[str, ...] = (".",), options: tuple[str, ...] = ()) -> Server:
        folder = tmp_path / "checkout"
        folder.mkdir(exist_ok=True)
        for name in ("metadata.yml", "datasette.yml"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        server = Server([folder / "weather.db"], {}, folder, port=free_port())
        server.run(["datasette", *arguments, "-p", str(server.port), *options])
        servers.append(server)
        wait_for(server._answers, f"the server answers; its log: {server.log}")
        return server

    yield begin
    for server in servers:
        server.kill()


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.install(conn, Settings())
        yield conn


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    return {channel.name: channel.count for channel in log.channels(conn)}


def test_the_triggers_publish_every_observation_and_the_alerts(conn: sqlite3.Connection) -> None:
    weather.prepare(conn)
    first = search.newest(conn, Selector.of(["observations"]), 1).messages[0]
    assert json.loads(str(first.payload)) == {
        "op": "insert",
        "table": "observations",
        "key": {"date": "2012-12-31"},
        "new": {
            "date": "2012-12-31",
            "precipitation": 0.0,
            "temp_max": 3.3,
            "temp_min": -1.1,
            "wind": 2.0,
            "weather": "drizzle",
        },
    }
    assert counts(conn) == {"alerts/frost": 18, "alerts/snow": 21, "alerts/storm": 8, "observations": 366}
    while weather.advance(conn):
        pass
    days = weather.observations()
    assert counts(conn) == {
        "alerts/frost": sum(day.temp_min < 0 for day in days),
        "alerts/snow": sum(day.weather == "snow" for day in days),
        "alerts/storm": sum(day.wind >= weather.STORM_WIND for day in days),
        "observations": len(days),
    }
    assert (len(days), days[-1].date) == (1461, "2015-12-31")


def test_the_record_goes_on_and_begins_again(conn: sqlite3.Connection) -> None:
    weather.prepare(conn)
    weather.prepare(conn)
    assert weather.begin(conn) == weather.FIRST_DAYS
    day = weather.advance(conn)
    assert day is not None
    assert day.date == "2013-01-01"
    assert weather.begin(conn) == weather.FIRST_DAYS + 1
    while weather.advance(conn):
        pass
    assert weather.begin(conn) == 0
    assert conn.execute("SELECT count(*) FROM observations").fetchone() == (0,)
    assert counts(conn)["observations"] == 1461


@pytest.mark.parametrize("sql", ["CREATE TABLE orders (id)", "CREATE TABLE observations (date PRIMARY KEY)"])
def test_a_database_of_the_users_is_left_alone(conn: sqlite3.Connection, sql: str) -> None:
    conn.execute(sql)
    with pytest.raises(FailedPrecondition, match="not a demo database"):
        weather.prepare(conn)


def test_the_command_refuses_a_database_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    sqlite_shell(path, "CREATE TABLE orders (id)")
    before = path.read_bytes()
    assert failure("demo", "--file", path) == "not a demo database: it has orders; name another file for the demo"
    assert path.read_bytes() == before
    assert "cannot be opened" in failure("demo", "--file", tmp_path / "none" / "weather.db")


def test_a_first_start_makes_and_serves_the_demo(serve_folder: Serve) -> None:
    server = serve_folder()
    rows = httpx.get(f"{server.url}/weather/observations.json?_shape=array&_size=max").json()
    assert [rows[0]["date"], rows[-1]["date"], len(rows)] == ["2012-12-31", "2012-01-01", 366]
    assert "Four years of weather in Seattle" in httpx.get(server.url).text
    assert httpx.get(f"{server.pubsub}").status_code == 200
    channels = httpx.get(f"{server.pubsub}/-/channels.json").json()["channels"]
    assert [channel["channel"] for channel in channels] == [
        "alerts/frost",
        "alerts/snow",
        "alerts/storm",
        "observations",
    ]
    head = server.rows("SELECT max(id) FROM vpubsub")

    server.stop()
    again = serve_folder()
    names = [database["name"] for database in httpx.get(f"{again.url}/.json").json()["databases"]]
    assert names == ["weather"]
    assert again.rows("SELECT max(id) FROM vpubsub") == head
    assert "Traceback" not in again.log
    assert "Warning" not in again.log


def test_only_root_publishes(serve_folder: Serve) -> None:
    server = serve_folder(options=("--root",))
    message = {"channel": "notes", "payload": "hello"}
    assert httpx.post(f"{server.pubsub}/-/publish", json=message).status_code == 403
    response = httpx.post(f"{server.pubsub}/-/publish", json=message, cookies=server.root_cookie())
    assert response.status_code == 200, response.text


def test_without_a_configuration_directory_the_demo_is_in_the_working_directory(serve_folder: Serve) -> None:
    for arguments in (("-m", "metadata.yml"), ("-m", "metadata.yml", "weather.db")):
        server = serve_folder(arguments=("serve", *arguments))
        names = [database["name"] for database in httpx.get(f"{server.url}/.json").json()["databases"]]
        assert [name for name in names if name != "_memory"] == ["weather"]
        assert server.path.exists()
        server.stop()


def test_an_empty_file_becomes_the_demo(serve_folder: Serve, tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "weather.db").touch()
    server = serve_folder()
    assert server.rows("SELECT count(*) FROM observations") == [(366,)]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("../weather.db", "must be a file name without a folder"), ("orders.db", "not a demo database: it has orders")],
)
def test_a_wrong_option_stops_the_start(tmp_path: Path, name: str, wrong: str) -> None:
    sqlite_shell(tmp_path / "orders.db", "CREATE TABLE orders (id)")
    (tmp_path / "metadata.json").write_text(json.dumps({"plugins": {"datasette-pubsub": {"demo_database": name}}}))
    command = [sys.executable, "-m", "datasette", str(tmp_path), "--get", "/"]
    environment = {**os.environ, "COLUMNS": "400"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert "option 'demo_database'" in done.stderr
    assert wrong in done.stderr


def test_the_replay_arrives_live(serve_folder: Serve) -> None:
    server = serve_folder()
    with (
        Sse(f"{server.pubsub}/-/stream", channel="observations") as days,
        Sse(f"{server.pubsub}/-/stream", pattern="alerts/*") as alerts,
    ):
        days.until("ready")
        alerts.until("ready")
        done = run("demo", "--file", server.path, "--speed", 500, "--once")
        assert done.stdout.startswith("Replayed 1095 days, last id ")
        found = [json.loads(message["payload"])["key"]["date"] for message in days.messages(1095)]
        assert found == [day.date for day in weather.observations()[weather.FIRST_DAYS :]]
        missing = sum(
            (day.temp_min < 0) + (day.weather == "snow") + (day.wind >= weather.STORM_WIND)
            for day in weather.observations()[weather.FIRST_DAYS :]
        )
        channels = {message["channel"] for message in alerts.messages(missing)}
        assert channels == {"alerts/frost", "alerts/snow", "alerts/storm"}


def test_the_replay_ends_at_ctrl_c_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "weather.db"

    def rows(sql: str) -> int:
        return int(sqlite_shell(path, sql)) if path.exists() else 0

    process = subprocess.Popen(
        [*PUBSUB, "demo", "--file", str(path), "--speed", "100", "--loop"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "/weather/-/pubsub" in process.stderr.readline()
        wait_for(lambda: rows("SELECT count(*) FROM observations") > weather.FIRST_DAYS + 10, "days pass")
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Abort" not in error
    days = rows("SELECT count(*) FROM observations")
    counted = int(output.split()[1])
    # Ctrl+C may come between a day's commit and its count.
    assert days - weather.FIRST_DAYS - 1 <= counted <= days - weather.FIRST_DAYS
    assert run("demo", "--file", path, "--speed", 10_000).stdout.startswith(f"Replayed {1461 - days} days")
    assert call("demo", "--file", path, "--speed", 10_000).stdout.startswith("Replayed 1461 days")
    assert rows("SELECT count(*) FROM vpubsub WHERE channel = 'observations'") == 2 * 1461
