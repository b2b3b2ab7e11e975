"""The tools for agents: over datasette-mcp by the MCP SDK's own client, and in datasette-agent by its own executor."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_packages import installed
from auth import headers
from commands import call
from places import ROOT
from servers import Server

NAMES = {"list_channels", "read_messages", "wait_for_message", "publish_message"}

#: ada may everything, others see open/ and publish nothing.
CONFIG: dict[str, Any] = {
    "plugins": {
        "datasette-pubsub": {
            "channel_permissions": {
                "open/*": {"view": True},
                "*": {"view": {"id": "ada"}, "publish": {"id": "ada"}},
            }
        }
    }
}


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    folder = installed()
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def server(serve: Callable[..., Server], packages: Path) -> Server:
    environment = [f"PYTHONPATH={packages}", "DATASETTE_LOAD_PLUGINS=datasette-pubsub,datasette-mcp"]
    return serve(config=CONFIG, prefix=["env", *environment])


@asynccontextmanager
async def agent(server: Server, actor: str | None = "ada") -> AsyncIterator[Any]:
    """Calls a tool by its name, as an agent with this actor's rights; errors are texts."""
    import httpx2
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async with (
        httpx2.AsyncClient(headers=headers(actor), timeout=60) as http,
        streamable_http_client(f"{server.url}/-/mcp", http_client=http) as streams,
        ClientSession(streams[0], streams[1]) as session,
    ):
        await session.initialize()

        async def call(tool: str, **arguments: Any) -> Any:
            answer = await session.call_tool(tool, arguments)
            (content,) = answer.content
            return content.text if answer.is_error else json.loads(content.text)

        yield call, session


def run(work: Any) -> None:
    asyncio.run(work)


def test_the_tools_are_there(server: Server) -> None:
    async def check() -> None:
        async with agent(server) as (_, session):
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) >= NAMES | {"execute_sql"}
            assert not tools["publish_message"].annotations.read_only_hint
            assert all(tools[name].annotations.read_only_hint for name in NAMES - {"publish_message"})
            assert "ctx" not in tools["read_messages"].input_schema["properties"]

    run(check())


def test_an_agent_publishes_reads_and_waits(server: Server) -> None:
    async def check() -> None:
        async with agent(server) as (call, _):
            first = await call("publish_message", database="data", channel="open/1", payload="one", key="k")
            assert first == {"database": "data", "message_id": 1}
            assert await call("publish_message", database="data", channel="open/1", payload="one", key="k") == first
            await call("publish_message", database="data", channel="b", payload='{"n": 2}')
            channels = await call("list_channels", database="data")
            assert [(row["channel"], row["count"]) for row in channels["channels"]] == [("b", 1), ("open/1", 1)]
            read = await call("read_messages", database="data")
            assert [(each["id"], each["payload"]) for each in read["messages"]] == [(2, '{"n": 2}'), (1, "one")]
            older = await call("read_messages", database="data", before=2, limit=1)
            assert ([each["id"] for each in older["messages"]], older["more"]) == ([1], False)
            waited = await call("wait_for_message", database="data", patterns=["*"], after=0)
            assert ([each["id"] for each in waited["messages"]], waited["after"]) == ([1, 2], 2)
            waiting = asyncio.ensure_future(call("wait_for_message", database="data", channels=["b"], seconds=30))
            await asyncio.sleep(0.5)
            await call("publish_message", database="data", channel="open/1", payload="for others")
            await call("publish_message", database="data", channel="b", payload="at last")
            found = await waiting
            assert [each["payload"] for each in found["messages"]] == ["at last"]
            nothing = await call("wait_for_message", database="data", channels=["b"], after=found["after"], seconds=0.2)
            assert (nothing["messages"], nothing["after"]) == ([], found["after"])

    run(check())


def test_an_agent_has_its_actors_rights(server: Server) -> None:
    async def check() -> None:
        async with agent(server) as (ada, _):
            await ada("publish_message", database="data", channel="open/1", payload="for all")
            await ada("publish_message", database="data", channel="secret", payload="hidden text")
        for actor in ("bob", None):
            async with agent(server, actor) as (call, _):
                rows = await call("list_channels", database="data")
                assert [row["channel"] for row in rows["channels"]] == ["open/1"]
                read = await call("read_messages", database="data")
                assert [each["payload"] for each in read["messages"]] == ["for all"]
                for name in ("read_messages", "wait_for_message"):
                    refused = await call(name, database="data", channels=["secret"])
                    assert "permission denied: view-channel on channel 'secret'" in refused
                refused = await call("publish_message", database="data", channel="open/1", payload="x")
                assert "permission denied: publish-message on channel 'open/1'" in refused
        assert server.rows("SELECT count(*) FROM vpubsub") == [(2,)]

    run(check())


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("read_messages", {"limit": 101}, "limit must be a number of messages from 1 to 100"),
        ("read_messages", {"limit": 0}, "limit must be"),
        ("read_messages", {"before": -1}, "before"),
        ("wait_for_message", {}, "name at least one channel or pattern"),
        ("wait_for_message", {"channels": ["b"], "seconds": 51}, "seconds must be more than 0 and at most 50"),
        ("wait_for_message", {"channels": ["b"], "seconds": 0}, "seconds must be"),
        ("wait_for_message", {"channels": ["b"], "after": -1}, "after"),
        ("publish_message", {"channel": "", "payload": "x"}, "channel is empty"),
        ("list_channels", {"database": "nowhere"}, "database not found: nowhere"),
    ],
)
def test_what_is_wrong_is_named(server: Server, tool: str, arguments: dict[str, Any], error: str) -> None:
    async def check() -> None:
        async with agent(server) as (call, _):
            assert error in await call(tool, **{"database": "data", **arguments})

    run(check())


CHAT = """
import asyncio, json, sys
from datasette.app import Datasette
from datasette_agent.tools import execute_agent_tool, get_agent_tools

path, yes = sys.argv[1], sys.argv[2] == "yes"
asked = []


async def ask(question):
    asked.append([question["prompt"], question["text"]])
    return yes


async def main():
    datasette = Datasette([path], config=json.loads(sys.argv[3]))
    await datasette.invoke_startup()
    await datasette.start_background_tasks()
    tools = {tool.name: tool for tool in await get_agent_tools(datasette)}

    async def call(name, actor, **arguments):
        found = await execute_agent_tool(
            tools[name], datasette, actor, arguments=arguments, supports_questions=True, ask_user_callback=ask,
            conversation_id="c", tool_call_id="t",
        )
        return json.loads(found)

    ada = {"id": "ada"}
    published = await call("publish_message", ada, database="data", channel="b", payload="hello")
    read = await call("read_messages", ada, database="data")
    others = await call("read_messages", {"id": "bob"}, database="data", channels=["b"])
    waited = await call("wait_for_message", ada, database="data", patterns=["*"], after=0, seconds=0.5)
    listed = await call("list_channels", ada, database="data")
    print(json.dumps([sorted(tools), asked, published, read, others, waited, listed]))
    await datasette.invoke_shutdown()


asyncio.run(main())
"""


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_the_assistant_asks_before_it_publishes(packages: Path, tmp_path: Path, answer: str) -> None:
    path = tmp_path / "data.db"
    path.touch()
    call("install", path)
    environment = {
        **os.environ,
        "PYTHONPATH": str(packages),
        "DATASETTE_LOAD_PLUGINS": "datasette-pubsub,datasette-agent,datasette-llm",
    }
    command = [sys.executable, "-c", CHAT, str(path), answer, json.dumps(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    tools, asked, published, read, others, waited, listed = json.loads(done.stdout)
    assert set(tools) >= NAMES
    assert asked == [["Publish this to the channel b of data?", "hello"]]
    assert others == {"error": "permission denied: view-channel on channel 'b' of database data"}
    if answer == "yes":
        assert published == {"database": "data", "message_id": 1}
        assert [each["payload"] for each in read["messages"]] == ["hello"]
        assert (waited["messages"], waited["after"]) == (read["messages"], 1)
        assert [row["channel"] for row in listed["channels"]] == ["b"]
    else:
        assert published == {"published": False, "reason": "the user said no"}
        assert read["messages"] == waited["messages"] == listed["channels"] == []


def test_without_the_plugins_nothing_of_them_is_imported() -> None:
    code = (
        "import sys, datasette.app, datasette_pubsub.hooks; "
        "print([name for name in sys.modules if name.split('.')[0] in ('mcp', 'datasette_agent', 'llm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
