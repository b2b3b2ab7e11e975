"""Modules import only downward, as the design says."""

from __future__ import annotations

import ast
from pathlib import Path

import datasette_pubsub

PACKAGE = Path(datasette_pubsub.__file__).parent

LAYERS = [
    {"codes", "errors", "config", "models", "collector", "compat", "names", "utf8_sql"},
    {"objects", "migration", "schema"},
    {"log", "subscriptions", "selector", "retention", "catchup", "activity", "search", "snapshot", "reader"},
    {"expressions", "harmless", "broadcast", "broadcast_file"},
    {"sql", "transaction", "batcher"},
    {"store", "health"},
    {"acknowledged", "hub", "watcher", "rounds", "recent", "admission"},
    {"stream", "inflow"},
    {"holders"},
    {"upkeep"},
    {"broker"},
    {"brokers"},
    {"rulings", "rules", "permissions", "recheck", "tables", "caller", "shutdown"},
    {"wire", "wire_connect", "codecs", "edge", "endless", "sending", "texts", "plot", "unpacking"},
    {"rpc_call"},
    {"frame", "messages", "links", "rpc_publish", "ndjson"},
    {"sse", "rpc", "api", "pages", "pages_broadcast", "pages_publish", "pages_subscriptions", "live_table", "runs"},
    {"panel", "jump", "demo"},
    {"cli", "cli_broadcast", "cli_common", "cli_publish", "cli_tail", "cli_trim"},
    {"cli_group"},
    {"later", "hooks"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found.update([node.module.split(".")[0]] if node.module else [alias.name for alias in node.names])
    return found - {"gen"}


def external(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_module_has_its_layer_and_imports_only_downward() -> None:
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(LAYER)
    for name, path in modules.items():
        for imported in imports(path):
            same = LAYER[imported] == LAYER[name]
            assert LAYER[imported] < LAYER[name] or same, f"{name} imports {imported}, which stands above it"


def test_each_layer_knows_only_its_own_business() -> None:
    def files(*names: str) -> list[Path]:
        return [PACKAGE / f"{name}.py" for name in names]

    storage = {"sqlite3", "sqlite_utils", "apsw"}
    for path in files("hub", "stream", "inflow", "rounds", "wire", "models", "selector"):
        assert not external(path) & storage, f"{path.stem} knows storage"
    for path in files(
        "log",
        "schema",
        "subscriptions",
        "sql",
        "transaction",
        "batcher",
        "hub",
        "watcher",
        "stream",
        "inflow",
        "broker",
    ):
        assert not external(path) & {"connectrpc", "uvicorn", "starlette"}, f"{path.stem} knows HTTP"
    assert not {"hub", "broker", "stream"} & imports(PACKAGE / "log.py")


def test_apsw_is_nowhere_in_the_package() -> None:
    for path in PACKAGE.glob("*.py"):
        assert "apsw" not in external(path), path.stem


def test_the_file_is_never_opened_beside_sqlite() -> None:
    """Closing a plain file handle of a database would drop SQLite's locks."""
    for path in PACKAGE.glob("*.py"):
        if path.stem in ("cli", "demo"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", path.stem
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sqlite3":
                assert node.attr != "connect", path.stem
