"""What Datasette pays for the plugin: questions about rights, internal queries, modules that are loaded."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import python_module
from datasette import hookimpl
from datasette.app import Datasette
from datasette.permissions import PermissionSQL
from datasette.plugins import pm
from datasette.resources import TableResource
from places import ROOT
from servers import Server

from datasette_pubsub.access import permissions
from datasette_pubsub.access.rules import PUBLISH, VIEW, ChannelResource
from datasette_pubsub.storage.objects import LOG

#: How many more internal queries a page may take with the plugin than without it.
MORE_QUERIES = 2


@pytest.fixture(scope="module")
def counted() -> dict[tuple[Any, ...], dict[str, Any]]:
    """Counts by number of databases, log or none, the plugin (with, with rules, without), actor and page."""
    run = python_module("host", "--json", "1", "16", folder=ROOT / "bench")
    assert run.returncode == 0, run.stderr
    keys = ("databases", "log", "plugin", "actor", "page")
    return {tuple(row[key] for key in keys): row for row in json.loads(run.stdout)}


def test_a_page_asks_the_same_for_one_database_and_for_sixteen(counted: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    assert {row["status"] for row in counted.values()} == {200}
    assert {key[-1] for key in counted} == {"`/`", "a database", "a table", "the jump menu", "`/-/allowed.json`"}
    for (databases, log, plugin, actor, page), row in counted.items():
        if databases == 1:
            sixteen = counted[16, log, plugin, actor, page]
            # Datasette reads lists of more than a hundred tables in parts, with the plugin and without.
            own = [counted[number, log, "without", actor, page] for number in (1, 16)]
            for what in ("hooks", "queries"):
                grown = own[1][what] - own[0][what]
                assert sixteen[what] <= row[what] + 2 * grown, (what, log, plugin, actor, page)
                if not log:
                    assert (grown, sixteen[what]) == (0, row[what]), (what, plugin, actor, page)


def test_a_page_costs_at_most_two_internal_queries_more(counted: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    for (databases, log, plugin, actor, page), row in counted.items():
        without = counted[databases, log, "without", actor, page]
        assert row["queries"] <= without["queries"] + MORE_QUERIES, (databases, log, plugin, actor, page)


def test_a_question_about_channels_is_asked_once_per_request(counted: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Also one that is denied, and however many places of a page depend on it."""
    asked = 0
    for (_, _, _, actor, page), row in counted.items():
        for action in (VIEW, PUBLISH):
            number = row["asked"].get(action, 0)
            asked += number
            # Datasette asks about anonymous visitors, too, to mark what is private.
            assert number <= (1 if actor == "anonymous" else 2), (actor, page, action)
    assert asked > 0


def test_a_refusal_is_not_asked_for_again_in_the_same_request(serve: Callable[..., Server], tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    asked = tmp_path / "asked"
    (plugins / "rule.py").write_text(
        "from datasette import hookimpl\n@hookimpl\ndef permission_resources_sql(datasette, actor, action):\n"
        f"    open({str(asked)!r}, 'a').write(action + '\\n')\n"
    )
    server = serve(options=["--plugins-dir", str(plugins)], config={"settings": {"default_allow_sql": True}})
    for address in (
        "/data/-/query?sql=select+publish_batch('a',+'x')",
        "/data/-/query?sql=select+1",
        "/data",
        "/data/-/pubsub",
        "/data/-/pubsub/-/publish-form",
        "/-/jump.json?q=a",
    ):
        asked.write_text("")
        assert httpx.get(f"{server.url}{address}").status_code in (200, 400, 403), address
        actions = asked.read_text().split()
        assert actions.count(PUBLISH) <= 1, (address, actions)
        assert actions.count(VIEW) <= 1, (address, actions)


# -- the same as Datasette decides ---------------------------------------------

NAMES = ("d0", "d1")
CHANNELS = ("a", "b", "c/1")


class Rules:
    """Rules of another plugin, of every shape, at random."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rules = {action: self._some(action) for action in (VIEW, PUBLISH, "view-table")}

    def _place(self, action: str) -> tuple[str, str]:
        children = (LOG, LOG.upper()) if action == "view-table" else CHANNELS
        parent, child = (None, *NAMES), (None, *children)
        one, other = (
            "NULL" if found is None else f"'{found}'"
            for found in (self.chance.choice(parent), self.chance.choice(child))
        )
        return one, other

    def _some(self, action: str) -> list[tuple[str | None, str | None]]:
        found: list[tuple[str | None, str | None]] = []
        for _ in range(self.chance.randrange(4)):
            parent, child = self._place(action)
            allow = self.chance.choice((":allowed", "0", "(SELECT 1)"))
            found.append((f"SELECT {parent} AS parent, {child} AS child, {allow} AS allow, :actor_id AS reason", None))
        for _ in range(self.chance.choice((0, 0, 1, 2))):
            places = [self._place(action) for _ in range(self.chance.randrange(4))]
            rows = [f"SELECT {parent} AS parent, {child} AS child" for parent, child in places]
            found.append((None, " UNION ALL ".join(rows or ["SELECT NULL AS parent, NULL AS child WHERE 0"])))
        return found

    @hookimpl
    def permission_resources_sql(self, action: str) -> list[PermissionSQL]:
        return [
            PermissionSQL(sql=sql, restriction_sql=within, params={"allowed": 1})
            for sql, within in self.rules.get(action, [])
        ]


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(60))
async def test_rights_are_what_datasette_decides(seed: int) -> None:
    """For all databases at once, and asked of Datasette one by one."""
    chance = random.Random(seed)
    blocks: list[Any] = [True, False, {"id": "ada"}, {"id": "bob"}]
    channel_permissions = {
        pattern: {what: chance.choice(blocks) for what in ("view", "publish") if chance.random() < 0.7}
        for pattern in chance.sample(("a", "c/*", "*", "[ab]"), chance.randrange(3))
    }
    config: dict[str, Any] = {
        "plugins": {
            "datasette-pubsub": {
                "channel_permissions": {key: rule for key, rule in channel_permissions.items() if rule}
            }
        },
        "permissions": {VIEW: chance.choice(blocks)} if chance.random() < 0.3 else {},
        "databases": {"d0": {"allow": chance.choice(blocks)}} if chance.random() < 0.5 else {},
    }
    restricted = {"id": "ada", "_r": {"d": {"d0": [VIEW]}, "r": {"d1": {"a": [PUBLISH, VIEW]}}}}
    rules = Rules(chance)
    datasette = Datasette(config=config, default_deny=chance.random() < 0.3)
    pm.register(rules, "random rules")
    try:
        for name in NAMES:
            datasette.add_memory_database(f"host_{seed}_{name}", name=name)
        await datasette.invoke_startup()
        for actor in (None, {"id": "ada"}, {"id": "bob"}, restricted):
            for action in (VIEW, PUBLISH):
                for name in NAMES:
                    found = await permissions.rights(datasette, actor, action, name)
                    for channel in (*CHANNELS, "new"):
                        resource = ChannelResource(name, channel)
                        decided = await datasette.allowed(action=action, resource=resource, actor=actor)
                        assert found.allows(channel) == decided, (actor, action, name, channel, found, rules.rules)
                    general = await datasette.allowed(action=action, resource=ChannelResource(name), actor=actor)
                    assert found.general == general, (actor, action, name, found, rules.rules)
    finally:
        pm.unregister(rules)
        datasette.close()


@pytest.mark.asyncio
async def test_what_the_tables_rules_say_is_what_the_log_shows() -> None:
    """Viewing follows from the table, also where its rule spells the name otherwise, or asks for another right."""
    config = {"databases": {"d0": {"tables": {LOG.upper(): {"allow": False}}}}}
    datasette = Datasette(config=config)
    try:
        for name in NAMES:
            datasette.add_memory_database(f"host_log_{name}", name=name)
        await datasette.invoke_startup()
        for name, seen in (("d0", False), ("d1", True)):
            resource = TableResource(name, LOG)
            assert await datasette.allowed(action="view-table", resource=resource, actor=None) is seen
            assert (await permissions.rights(datasette, None, VIEW, name)).everything is seen
    finally:
        datasette.close()


# -- what is loaded ------------------------------------------------------------

#: Modules that nobody needs before something is published or subscribed to.
HEAVY = ("msgspec", "connectrpc", "google.protobuf", "uvloop", "apsw", "nats")


def loaded(script: str, *arguments: str) -> list[str]:
    """The modules that stand after a script, with none of Datasette's plugins but this one."""
    script += "\nimport sys\nprint('\\n' + '\\n'.join(sys.modules))"
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.split("\n")


def test_importing_datasette_loads_the_hooks_and_nothing_else() -> None:
    found = loaded("import datasette.cli\nassert 'pubsub' in datasette.cli.cli.commands")
    ours = {name for name in found if name.startswith("datasette_pubsub")}
    assert ours == {"datasette_pubsub", *(f"datasette_pubsub.{name}" for name in ("cli", "cli.group", "hooks", "lazy"))}
    assert not [name for name in HEAVY if name in found]


RUN = """
import sys
from datasette.cli import cli
try:
    cli(sys.argv[1:])
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize("command", [["--version"], ["--help"], ["plugins"], ["pubsub", "--help"]])
def test_commands_of_datasette_load_no_broker(command: list[str]) -> None:
    found = loaded(RUN, *command)
    assert "connectrpc" not in found
    if command[0] != "pubsub":
        assert "datasette_pubsub.broker" not in found
        assert "msgspec" not in found


def test_inspecting_and_getting_load_no_protobuf(tmp_path: Path) -> None:
    file = tmp_path / "data.db"
    subprocess.run(["sqlite3", str(file), "CREATE TABLE t (id INTEGER PRIMARY KEY)"], check=True)
    for command in (
        ["inspect", str(file)],
        *(["serve", str(file), "--get", page] for page in ("/", "/data", "/data/t")),
    ):
        found = loaded(RUN, *command)
        assert "datasette_pubsub.hooks" in found
        assert not [name for name in ("connectrpc", "google.protobuf") if name in found], command


def test_a_server_has_loaded_everything_before_its_first_request(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from datasette.app import Datasette

async def main():
    app = Datasette(memory=True).app()
    told = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    async def receive():
        return told.pop(0)
    async def send(message):
        if message["type"] == "lifespan.startup.complete":
            print("\\nSTARTED", "connectrpc" in sys.modules, "google.protobuf" in sys.modules)
    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)

asyncio.run(main())
"""
    assert "STARTED True True" in loaded(script)


def test_the_group_has_the_commands() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "datasette", "pubsub", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    for name in ("install", "publish", "tail", "channels", "subscriptions", "trim", "broadcast", "demo"):
        assert f"\n  {name} " in run.stdout
    run = subprocess.run(
        [sys.executable, "-m", "datasette", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pubsub" in run.stdout
