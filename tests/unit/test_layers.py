"""The rooms of the package, and that imports go down only.

The table is the rule, and docs/architecture.md shows it. A module may import from its own room and from rooms that
stand in an earlier line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import datasette_pubsub

PACKAGE = Path(datasette_pubsub.__file__).parent

#: From the ground up; rooms in one line know nothing of each other.
FLOORS = [
    {"compat", "gen", "lazy"},
    {"core"},
    {"storage", "protocol", "asgi"},
    {"broadcast", "live"},
    {"broker"},
    {"access", "demo"},
    {"cli", "http"},
    {"publish_batch"},
    {"rpc", "pages"},
    {"hooks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: What a room must not know, of others' packages and of ours: more than the table says.
WALLS = {
    "core": {"sqlite3", "datasette", "asyncio", "click"},
    "storage": {"datasette", "asyncio", "click", "connectrpc"},
    "protocol": {"sqlite3", "datasette", "asyncio", "click", "connectrpc"},
    "asgi": {"sqlite3", "click", "connectrpc"},
    "live": {"sqlite3", "sqlite_utils", "datasette", "click", "connectrpc", "uvicorn"},
    "broadcast": {"datasette", "asyncio", "click"},
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


def private(package: Path) -> list[str]:
    """Each use of a name with an underscore that is not ours, outside of compat."""
    trees = {name: ast.parse(path.read_text()) for name, path in modules(package) if name != "compat"}
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


def test_apsw_is_nowhere_in_the_package() -> None:
    for name, path in modules(PACKAGE):
        assert not {imported for imported in imports(path, name) if imported.split(".")[0] == "apsw"}, name


def test_the_file_is_never_opened_beside_sqlite() -> None:
    """Closing a plain file handle of a database would drop SQLite's locks."""
    for name, path in modules(PACKAGE):
        if name.split(".")[0] in ("cli", "demo"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sqlite3":
                assert node.attr != "connect", name
