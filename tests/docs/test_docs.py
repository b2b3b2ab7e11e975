"""Undocumented means red: whatever a user can name stands in the docs, and the docs name nothing else."""

from __future__ import annotations

import inspect
import json
import re
import sqlite3
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from datasette.app import Datasette
from doc_pages import DOCS, HEADING
from doc_parts import ALL, WEB, asked_for, error_classes, first_cells, section, table
from places import ROOT

from datasette_pubsub import hooks
from datasette_pubsub.access import rules
from datasette_pubsub.broadcast import definition, tables
from datasette_pubsub.cli.main import pubsub
from datasette_pubsub.core import events, values
from datasette_pubsub.core.configuration import read_settings
from datasette_pubsub.core.settings import PLUGIN, Settings
from datasette_pubsub.core.standing import FIELDS, StandingQuery
from datasette_pubsub.gen import db_pb2
from datasette_pubsub.http import api, request
from datasette_pubsub.pages import broadcast as pages_broadcast
from datasette_pubsub.protocol import frames, items
from datasette_pubsub.publish_batch import aggregate
from datasette_pubsub.storage import log, objects, schema
from datasette_pubsub.storage import standing as stored
from datasette_pubsub.storage.query import Limits

# -- options -----------------------------------------------------------------


def shown_default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value or "none"


def test_every_option_with_its_default_unit_and_bounds() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table(DOCS["configuration"], "option")}
    assert list(rows) == [option.name for option in fields(Settings)]
    for option in fields(Settings):
        default, unit, bounds, meaning, why = rows[option.name]
        assert default == shown_default(option.default)
        assert unit == option.metadata["unit"]
        assert meaning == option.metadata["doc"]
        assert why, f"{option.name} needs a reason"
        if type(option.default) in (int, float):
            low, high = option.metadata["low"], option.metadata["high"]
            end = "or more" if high == float("inf") else f"to {high:,.15g}"
            assert bounds == f"{low:,.15g} {end}", option.name


def configurations() -> list[dict[str, Any]]:
    """Every block of ``yaml``."""
    texts = [code for text in ALL.values() for code in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    return [yaml.safe_load(text) for text in texts]


def test_configurations_in_the_docs_are_valid() -> None:
    assert len(configurations()) >= 5
    for config in configurations():
        assert set(config) <= {"plugins", "databases", "permissions"}
        instance = config.get("plugins", {}).get(PLUGIN)
        read_settings(instance)
        for database in config.get("databases", {}).values():
            read_settings(instance, database["plugins"][PLUGIN])
        assert set(config.get("permissions", {})) <= {action.name for action in rules.ACTIONS}


@pytest.mark.asyncio
@pytest.mark.parametrize("config", configurations())
async def test_datasette_starts_with_every_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    for name in ("data", "private"):
        (tmp_path / f"{name}.db").touch()
    datasette = Datasette([str(tmp_path / "data.db"), str(tmp_path / "private.db")], config=config)
    await datasette.invoke_startup()
    try:
        answer = await datasette.client.get("/data/-/pubsub")
        assert answer.status_code in (200, 403)
        assert "Traceback" not in answer.text
    finally:
        await datasette.invoke_shutdown()


def test_every_action() -> None:
    assert [row[0].strip("`") for row in table(DOCS["configuration"], "action")] == [
        action.name for action in rules.ACTIONS
    ]


# -- HTTP --------------------------------------------------------------------


def addresses() -> list[str]:
    """The routes, as the docs write them."""
    found = []
    for pattern, _ in hooks.ROUTES:
        path = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", pattern)
        found.append(path.removeprefix("^").removesuffix("$").removesuffix("/?").replace("\\", ""))
    return found


def test_every_route() -> None:
    headings = re.findall(r"^## `(?:GET|POST) (.*)`$", DOCS["http"], re.MULTILINE)
    assert sorted(headings) == sorted(addresses())


def test_no_address_that_does_not_exist() -> None:
    for page, text in ALL.items():
        for found in re.findall(
            r"(?:<database>|data|weather)(/-/pubsub[^\s\"'`?)|,>]*)|(/db\.v1\.DbService/\S+?)[\s`]", text
        ):
            path = f"/data{found[0]}" if found[0] else found[1]
            assert any(re.match(pattern, path) for pattern, _ in hooks.ROUTES), (page, path)


def test_every_parameter_and_field_of_requests() -> None:
    parameters = set(request.LAST_EVENT_ID).union(*(asked_for(module, "args") for module in WEB))
    assert {"channel", "since", "table", "before"} <= parameters
    documented = {row[0].strip("`") for part in DOCS["http"].split("\n## ") if "| parameter |" in part
                  for row in table(part, "parameter")}  # fmt: skip
    assert documented == parameters
    body = asked_for(api, "data") | items._ITEM_FIELDS | {"items"}
    assert {"subscription", "message_id"} <= body
    posts = [part for part in DOCS["http"].split("\n## ") if part.startswith("`POST") and "| field |" in part]
    assert {row[0].strip("`") for part in posts for row in table(part, "field")} == body


def test_every_field_of_the_form_that_broadcasts() -> None:
    fields_of = section("http", "`GET /<database>/<table>/-/broadcast`")
    rows = table(fields_of, "form field")
    names = asked_for(pages_broadcast, "form") | {f"when_{operation}" for operation in definition.OPERATIONS}
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == names


def test_every_field_of_a_broadcast() -> None:
    """The messages in the docs are those that the triggers make."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    schema.install(conn, Settings(max_payload_bytes=2000))
    conn.execute("CREATE TABLE totals (account TEXT PRIMARY KEY, amount INTEGER)")
    tables.create(conn, "totals", definition.Broadcast("changes"))
    conn.execute("INSERT INTO totals VALUES ('eve', 1)")
    conn.execute("UPDATE totals SET amount = 2")
    conn.execute("DELETE FROM totals")
    conn.execute("INSERT INTO totals VALUES (?, 1)", ["x" * 1000])
    made = [json.loads(row[0]) for row in conn.execute("SELECT payload FROM vpubsub")]
    conn.close()
    text = section("tables", "The messages")
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert [json.loads(line) for line in shown.splitlines()] == made[:3]
    assert {row[0].strip("`") for row in table(text, "field")} == {name for message in made for name in message}


def test_every_field_of_a_standing_query_and_its_messages() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    schema.install(conn, Settings(max_payload_bytes=200))
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name)")
    query = StandingQuery.checked("t", "SELECT * FROM t", "t", key=["id"])
    for sql in ("", "INSERT INTO t VALUES (1, 'a'), (2, hex(zeroblob(200)))", "UPDATE t SET name = 'b' WHERE id = 1"):
        conn.execute(sql)
        conn.execute("BEGIN IMMEDIATE")
        stored.run(conn, query, Limits(seconds=10, rows=10, bytes=10_000))
        conn.execute("COMMIT")
    made = [json.loads(row[0]) for row in conn.execute("SELECT payload FROM vpubsub")]
    conn.close()
    definition_of, messages_of = section("queries", "Standing queries").split("Messages have the fields")
    assert {row[0].strip("`") for row in table(definition_of, "field")} == set(FIELDS)
    documented = {name for row in table(messages_of, "field") for name in re.findall(r"`(\w+)`", row[0])}
    assert documented == {name for message in made for name in message}


def test_every_field_of_answers() -> None:
    messages = [values.Message(1, "a", payload, "") for payload in ("x", b"x")]
    names = {name for message in messages for name in frames.message_fields(message, 1)}
    stream = section("http", "`GET /<database>/-/pubsub/-/stream`")
    assert {row[0].strip("`") for row in table(stream, "field")} == names
    for name in log.Channel("a", 1, 1, "").as_json():
        assert f"`{name}`" in section("http", "`GET /<database>/-/pubsub/-/channels.json`")


def test_every_event() -> None:
    found: dict[str, set[str]] = {}
    for kind in get_args(events.Event):
        for number in (1, events.AHEAD):
            text = frames.SseEncoder().event(kind(*[number] * len(fields(kind)))).decode()
            name, data = re.fullmatch(r"(?:retry: \d+\n)?event: (\w+)\ndata: (.*)\n\n", text).groups()
            found[name] = found.get(name, set()) | set(re.findall(r'"(\w+)":', data))
    rows = table(section("http", "`GET /<database>/-/pubsub/-/stream`"), "event")
    assert {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows} == found


def test_every_error_with_its_status_and_code() -> None:
    rows = [(int(row[0]), row[1].strip("`")) for row in table(section("http", "Errors"), "status")]
    assert len(rows) == len(set(rows))
    # Those of sqlite3 (sql.PublishFailed) are shown by Datasette.
    assert set(rows) == {(error.status, error.code) for error in error_classes()}
    for error in error_classes():
        if error.retry_after is not None:
            (row,) = [row for row in table(section("http", "Errors"), "status") if row[0] == str(error.status)]
            assert "Retry-After" in row[2]


# -- Connect -----------------------------------------------------------------


def test_every_rpc_field_and_enum() -> None:
    (service,) = db_pb2.DESCRIPTOR.services_by_name.values()
    assert re.findall(r"^## `(\w+)`$", DOCS["connect"], re.MULTILINE) == [method.name for method in service.methods]
    messages = db_pb2.DESCRIPTOR.message_types_by_name
    assert sorted(re.findall(r"^### (\w+)$", DOCS["connect"], re.MULTILINE)) == sorted(messages)
    for name, message in messages.items():
        rows = [row[0].strip("`") for row in table(section("connect", name), "field")]
        assert sorted(rows) == sorted(field.name for field in message.fields), name
    values = {value for enum in db_pb2.DESCRIPTOR.enum_types_by_name.values() for value in enum.values_by_name}
    named = set(re.findall(r"\b(?:START|ACK_MODE|KIND)_[A-Z]+\b", " ".join(ALL.values())))
    assert named == values


# -- SQL ---------------------------------------------------------------------


def test_every_table_column_trigger_and_function() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    schema.install(conn, Settings())
    names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE name GLOB '*pubsub*' AND sql <> ''")}
    assert set(objects.TABLES) < names
    assert {name for name in names if name[0] != "_"} <= set(re.findall(r"`(v?pubsub\w*)`", DOCS["sql"])) <= names
    assert set(re.findall(r"`(_pubsub\w+)`", DOCS["sql"])) - {"_pubsub_", "_pubsub_run"} <= names
    for name in (objects.LOG, objects.SUBSCRIPTIONS, objects.RELEASED, objects.TRIMS):
        (heading,) = [text for text in HEADING.findall(DOCS["sql"]) if f"`{name}`" in text]
        text = section("sql", heading)
        for column in conn.execute(f"PRAGMA table_info({name})").fetchall():
            assert f"`{column[1]}`" in text, (name, column[1])
    conn.close()
    functions = set(re.findall(r'create_(?:aggregate|function)\(\s*"(\w+)"', inspect.getsource(aggregate)))
    assert functions == {"publish_batch"}
    assert section("sql", "`publish_batch`")


# -- command line ------------------------------------------------------------


def test_every_command_and_option() -> None:
    assert re.findall(r"^## `(\w+)`$", DOCS["cli"], re.MULTILINE) == [
        "install", "publish", "tail", "channels", "subscriptions", "trim", "broadcast", "live", "watch",
        "relay", "follow", "import", "promote", "demo",
    ]  # fmt: skip
    assert sorted(pubsub.commands) == sorted(re.findall(r"^## `(\w+)`$", DOCS["cli"], re.MULTILINE))
    for name, command in pubsub.commands.items():
        options = [param for param in command.params if isinstance(param, click.Option)]
        flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
        text = section("cli", f"`{name}`")
        assert set(first_cells(text)) == flags, name


def test_the_tables_of_options_are_written_from_the_code() -> None:
    """By cog, whose check `make lint` runs."""
    for page in ("cli", "configuration"):
        written = re.findall(r"\[\[\[cog\n.*?\[\[\[end\]\]\]", DOCS[page], re.DOTALL)
        tables_of = [text for text in written if "\n| option |" in text]
        assert len(tables_of) == DOCS[page].count("\n| option |") > 0, page


def test_no_command_or_option_that_does_not_exist() -> None:
    for page, text in ALL.items():
        for name, rest in re.findall(r"datasette pubsub ([a-z]+)([^\n`|]*)", text):
            assert name in pubsub.commands, (page, name)
            flags = {flag for param in pubsub.commands[name].params for flag in (*param.opts, *param.secondary_opts)}
            for flag in re.findall(r"(?<=\s)--?[a-z][-a-z]*", rest):
                assert flag in {*flags, "--help"}, (page, name, flag)


# -- JavaScript --------------------------------------------------------------


def test_every_export_option_and_status_of_the_module() -> None:
    source = (ROOT / "static" / "pubsub.js").read_text()
    assert re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", source, re.MULTILINE) == [
        "connect",
        "query",
    ]

    def properties(name: str) -> list[str]:
        (body,) = re.findall(rf"@typedef {{object}} {name}\n(.*?)\*/", source, re.DOTALL)
        return re.findall(r"@property \{.*?\} \[?(\w+)\]?(?:\s|$)", body, re.MULTILINE)

    for function, options, status, returned in (
        ("connect", "Options", "Status", ("Connection", "Message", "Gap")),
        ("query", "QueryOptions", "QueryStatus", ("LiveQuery", "Result", "ResultChange")),
    ):
        text = section("javascript", f"`{function}(options)`")
        assert len(properties(options)) > 10
        assert [row[0].strip("`") for row in table(text, "option")] == properties(options)
        statuses = re.search(rf"@typedef \{{((?:\"[a-z ]+\"(?: \| )?)+)\}} {status}\b", source)
        assert statuses
        assert [row[0].strip("`") for row in table(text, "status")] == re.findall(r'"([a-z ]+)"', statuses[1])
        for name in returned:
            for entry in properties(name):
                assert f"`{entry}" in text, (name, entry)
