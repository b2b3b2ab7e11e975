"""The rooms of the package, and that imports go down only.

The table is the rule, and docs/architecture.md shows it. A module may import from its own room and from rooms that
stand in an earlier line.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture import PAGE, WALKS, functions, part

import datasette_pubsub
from datasette_pubsub import hooks

PACKAGE = Path(datasette_pubsub.__file__).parent

#: From the ground up; rooms in one line know nothing of each other.
FLOORS = [
    {"client", "compat", "events", "gen", "hookspecs", "lazy", "telemetry"},
    {"core"},
    {"storage", "protocol", "asgi"},
    {"broadcast", "live", "relay"},
    {"live_query"},
    {"broker"},
    {"access", "api", "demo"},
    {"cli", "datasette_events", "http", "sinks"},
    {"publish_batch"},
    {"rpc", "pages", "agents"},
    {"hooks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: What a room must not know, of others' packages and of ours: more than the table says.
WALLS = {
    "client": {"datasette", "click", "connectrpc", "uvicorn", "msgspec"},
    "core": {"sqlite3", "datasette", "asyncio", "click"},
    "storage": {"datasette", "asyncio", "click", "connectrpc"},
    "protocol": {"sqlite3", "datasette", "asyncio", "click", "connectrpc"},
    "telemetry": {"sqlite3", "asyncio", "click", "connectrpc", "uvicorn"},
    "asgi": {"sqlite3", "click", "connectrpc"},
    "live": {"sqlite3", "sqlite_utils", "datasette", "click", "connectrpc", "uvicorn"},
    "broadcast": {"datasette", "asyncio", "click"},
    "live_query": {"datasette", "click", "connectrpc", "uvicorn"},
    "relay": {"sqlite3", "sqlite_utils", "datasette", "click", "connectrpc", "uvicorn"},
    "broker": {"connectrpc", "uvicorn", "click"},
    "cli": {"datasette_pubsub.broker", "datasette_pubsub.live"},
}


def modules(package: Path) -> Iterator[tuple[str, Path]]:
    """Every module by its dotted name in the package, but for generated ones."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] != "gen" and parts != ("__init__",):
            yield ".".join(parts), path


def imports(path: Path, name: str) -> set[str]:
    """What a module imports: dotted names, ours with ``datasette_pubsub`` before them."""
    package = ["datasette_pubsub", *name.split(".")[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def faults(package: Path) -> list[str]:
    """Each import that goes up, over a wall, or out of a module that stands in no room."""
    found = []
    for name, path in modules(package):
        room = name.split(".")[0]
        if room not in FLOOR:
            found.append(f"{name} stands in no room")
            continue
        for imported in sorted(imports(path, name)):
            parts = imported.split(".")
            if parts[0] == "datasette_pubsub":
                other = parts[1]
                if other not in FLOOR:
                    found.append(f"{name} imports {imported}, which stands in no room")
                elif other != room and FLOOR[other] >= FLOOR[room]:
                    found.append(f"{name} imports {imported}, which does not stand below it")
            if any(imported == wall or imported.startswith(f"{wall}.") for wall in WALLS.get(room, ())):
                found.append(f"{name} knows {imported}")
    return found


def test_imports_go_down_only() -> None:
    assert faults(PACKAGE) == []
    assert len(list(modules(PACKAGE))) > 80, "walked"


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("core/values.py", "from ..storage import log", "core.values imports datasette_pubsub.storage.log, which"),
        ("storage/deeper/more.py", "from ...live.hub import Hub", "storage.deeper.more imports datasette_pubsub.live"),
        ("live/hub.py", "import sqlite3", "live.hub knows sqlite3"),
        ("protocol/items.py", "from ..storage import log", "protocol.items imports datasette_pubsub.storage.log"),
        (
            "cli/main.py",
            "def f():\n    from ..broker.registry import registry",
            "cli.main knows datasette_pubsub.broker",
        ),
        ("attic.py", "", "attic stands in no room"),
    ],
)
def test_an_import_up_is_found(tmp_path: Path, file: str, line: str, fault: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    (found,) = faults(tmp_path)
    assert found.startswith(fault)


def test_the_face_shows_every_hook() -> None:
    """A hook that it leaves out would never be called."""
    found = [name for name, value in vars(hooks).items() if hasattr(value, "datasette_impl")]
    assert len(found) > 20
    assert sorted(datasette_pubsub.__all__) == sorted(found)


# -- what docs/architecture.md says of the rooms ------------------------------


def test_the_picture_shows_these_rooms_on_these_floors() -> None:
    (picture,) = re.findall(r"```text\n(.*?)```", part("The rooms"), re.DOTALL)
    shown = {
        int(number): set(rooms.split()) for number, rooms in re.findall(r"^ *(\d+) │([^│]*)│", picture, re.MULTILINE)
    }
    assert shown == dict(enumerate(FLOORS))


def test_the_table_says_what_each_room_imports_and_must_not_know() -> None:
    found: dict[str, set[str]] = {room: set() for room in FLOOR}
    for name, path in modules(PACKAGE):
        ours = [imported.split(".") for imported in imports(path, name) if imported.startswith("datasette_pubsub.")]
        found[name.split(".")[0]] |= {parts[1] for parts in ours}
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \| (.*?) ?\|$", part("The rooms"), re.MULTILINE)
    shown = {room: set(re.findall(r"\w+", said)) - {"nothing"} for room, _, said, _ in rows if room != "room"}
    assert shown == {room: others - {room} for room, others in found.items()}
    walls = {room: set(re.findall(r"`(.+?)`", said)) for room, *_, said in rows if room != "room"}
    assert walls == {room: {as_written(wall) for wall in WALLS.get(room, ())} for room in FLOOR}


def as_written(wall: str) -> str:
    """A wall as the page names it: our rooms by themselves, packages as they are installed."""
    return wall.removeprefix("datasette_pubsub.").replace("_", "-")


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_has_at_most_eight_rooms_and_none_twice_without_a_reason(walk: str) -> None:
    steps = re.findall(r"^\d+\. \*\*(\w+)\*\*(, again, because)?", part(walk), re.MULTILINE)
    rooms = [room for room, _ in steps]
    assert len(rooms) > 5
    assert len(set(rooms)) <= 8
    assert set(rooms) <= set(FLOOR)
    for number, (room, again) in enumerate(steps):
        assert bool(again) == (room in rooms[:number]), f"{room}: a second visit says why, and a first one does not"


def test_the_page_names_what_there_is() -> None:
    """Functions with their parentheses, methods with their class, modules and files by their path."""
    known = set()
    for _, path in modules(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                known.add(node.name)
            elif isinstance(node, ast.ClassDef):
                inside = [each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
                known |= {f"{node.name}.{each.name}" for each in inside}
    named = functions(PAGE)
    assert len(named) > 40
    assert [name for name in named if name not in known and name not in ("open", "last_insert_rowid")] == []
    files = re.findall(r"`((?:\w+/)*\w+\.(?:py|js|toml|proto))`", PAGE)
    root = PACKAGE.parent
    assert [name for name in files if not any((base / name).exists() for base in (PACKAGE, root))] == []


def private(package: Path) -> list[str]:
    """Each use of a name with an underscore that is not ours, outside of compat."""
    trees = {name: ast.parse(path.read_text()) for name, path in modules(package) if name.split(".")[0] != "compat"}
    ours = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                ours.add(node.attr)
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "setattr")
            ):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found += [
                f"{name}:{getattr(node, 'lineno', 0)} uses {each}"
                for each in names
                if each.startswith("_") and not each.startswith("__") and each not in ours
            ]
    return found


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_what_is_not_documented_is_used_in_compat_alone() -> None:
    assert private(PACKAGE) == []


@pytest.mark.parametrize(
    "line", ["from asyncio.tasks import _enter_task", "db._write_thread.join()", "getattr(db, '_write_thread', None)"]
)
def test_a_private_name_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "hooks.py").write_text(line)
    assert len(private(tmp_path)) == 1


def test_apsw_and_nats_are_known_to_the_relay_alone() -> None:
    for name, path in modules(PACKAGE):
        if name.split(".")[0] == "relay":
            continue
        assert not {imported for imported in imports(path, name) if imported.split(".")[0] in ("apsw", "nats")}, name


def test_the_command_line_loads_the_relay_when_it_runs() -> None:
    """So that the extra is needed by those commands alone, and never by a server, which loads the command line too."""
    code = "import datasette_pubsub.hooks, sys; assert not {'apsw', 'nats'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_is_never_opened_beside_sqlite() -> None:
    """Closing a plain file handle of a database would drop SQLite's locks. A database in memory has none."""
    for name, path in modules(PACKAGE):
        # The commands and the client run in processes of their own.
        if name.split(".")[0] in ("cli", "client", "demo"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sqlite3":
                assert node.attr != "connect" or name == "storage.filter_engine", name
    assert 'sqlite3.connect(\n            ":memory:",' in (PACKAGE / "storage" / "filter_engine.py").read_text()
