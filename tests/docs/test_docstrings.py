"""The examples in docstrings run as they stand.

Two kinds: ``>>>`` lines, which doctest runs, and indented blocks after ``Example::``, which may await and find a
``datasette`` with one database, ``data``. Every class and function that other plugins may import has one.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from docstrings import blocks

import datasette_pubsub
from datasette_pubsub import api, events
from datasette_pubsub.access import gateway
from datasette_pubsub.broker import broker, registry
from datasette_pubsub.core import errors, selector, settings, values

PACKAGE = Path(datasette_pubsub.__file__).parent

#: What other plugins may import. An error is shown by its base class, a function of the gateway by itself.
PUBLIC = [
    errors.PubsubError,
    errors.MethodNotAllowed,
    selector.Selector,
    settings.Settings,
    values.Item,
    values.Message,
    values.Where,
    gateway.Admitted,
    gateway.open_publisher,
    gateway.publish,
    gateway.move_cursor,
    gateway.forget,
    registry.registry,
    broker.Broker,
    events.PublishMessages,
    api.publish,
    api.subscribe,
]


def modules() -> list[str]:
    """The package's modules by their dotted names, but for generated ones."""
    paths = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    names = [path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__") for path in paths]
    # Two import what is no dependency.
    others = ("agents.chat", "agents.mcp")
    return [
        f"datasette_pubsub.{name}"
        for name in names
        if name.split(".")[0] not in ("gen", "__init__") and name not in others
    ]


EXAMPLES = [
    pytest.param(code, id=f"{name.partition('.')[2]}.{owner}")
    for name in modules()
    # These need a server of their own: tests/clients/test_python_client.py.
    if not name.startswith("datasette_pubsub.client")
    for owner, code in blocks(importlib.import_module(name))
]


@pytest.mark.parametrize("name", modules())
def test_the_lines_with_a_prompt_give_what_they_show(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("code", EXAMPLES)
@pytest.mark.asyncio
async def test_a_block_runs(tmp_path: Path, code: str) -> None:
    (tmp_path / "data.db").touch()
    datasette = Datasette([str(tmp_path / "data.db")], config={"permissions": {"publish-message": True}})
    await datasette.start_background_tasks()
    try:
        found: dict[str, Any] = {"datasette": datasette}
        compiled = compile(code, "<example>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        pending = eval(compiled, found)
        if inspect.isawaitable(pending):
            await pending
    finally:
        await datasette.invoke_shutdown()


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__qualname__)
def test_what_plugins_import_has_an_example(thing: Any) -> None:
    text = inspect.getdoc(thing) or ""
    assert ">>> " in text or "Example::" in text
