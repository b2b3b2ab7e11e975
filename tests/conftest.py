"""Fixtures: servers and browsers."""

from __future__ import annotations

import contextlib
import functools
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx._transports.default as transports
import pytest
from servers import OPEN, Server
from zygote import keep_compiled_templates, without_rich

if TYPE_CHECKING:
    from python_clients import Driver

# A shell starts what stands in the background with SIGINT ignored, and so would be every server that is to end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Every client of httpx reads the certificates of all authorities, though no test's request is encrypted by it: 18 ms of
# processor time for each of many thousand requests. One context does for all.
transports.create_ssl_context = functools.cache(transports.create_ssl_context)  # type: ignore[attr-defined]

# Datasettes in this process answer, too.
keep_compiled_templates()
without_rich()


#: The files that take longest, the longest first: no worker has one of them left when the others are done.
LONG = (
    "test_acked_link_servers",
    "test_node_clients",
    "test_acked_link",
    "test_servers",
    "test_typescript_client",
    "test_docs_examples",
    "test_live_layout",
    "test_health_bounds",
    "test_health",
    "test_acked",
    "test_relay",
    "test_relay_refused",
    "test_host",
    "test_live_pages",
    "test_live_table",
    "test_viewer",
    "test_catchup",
    "test_live_query",
    "test_publish_batch_browser",
    "test_module",
    "test_live_pages_tabs",
    "test_cross_site",
    "test_follow",
    "test_shared_cursors",
    "test_relay_files",
    "test_relay_login",
    "test_broadcast_rebuild",
    "test_sharing",
    "test_standing",
    "test_publish_form",
    "test_forms_layout",
    "test_agents",
    "test_accessibility",
    "test_viewer_find",
    "test_node_orms",
    "test_beyond_one_machine",
    "test_readme",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; `make check` tells pytest-xdist to keep to this order."""
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def _engines_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections of filters, as a broker does when it stops: Python 3.13 warns of open ones."""
    from datasette_pubsub.storage.filter_engine import Engine

    made: list[Engine] = []
    begin = Engine.__init__

    def beginning(engine: Engine) -> None:
        begin(engine)
        made.append(engine)

    monkeypatch.setattr(Engine, "__init__", beginning)
    yield
    for engine in made:
        engine.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start real servers: ``serve(config=…, http2=…, databases=[…])``; all are ended with the test."""
    servers: list[Server] = []

    def begin(
        databases: list[str] | None = None,
        config: dict[str, Any] | None = None,
        http2: bool = False,
        options: list[str] | None = None,
        prefix: list[str] | None = None,
    ) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        paths = [tmp_path / f"{name}.db" for name in databases or ["data"]]
        for path in paths:
            if not path.exists():
                with contextlib.closing(sqlite3.connect(path)) as conn:
                    conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
        server = Server(paths, OPEN if config is None else config, folder, http2, options or [], prefix=prefix or [])
        servers.append(server)
        return server.start()

    yield begin
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of one module."""
    import browsers as chromium

    with chromium.running() as found:
        yield found


@pytest.fixture
def watched(browser: Any) -> Iterator[Any]:
    """A fresh profile; afterwards: no script has failed, no dialog was shown."""
    from browsers import Watched

    context = browser.new_context()
    found = Watched(context)
    yield found
    context.close()
    assert (found.errors, found.dialogs) == ([], [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with a log."""
    from commands import call

    path = tmp_path / "data.db"
    call("install", path, "--create")
    return path


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Any]:
    """A NATS server with JetStream."""
    from nats_servers import running

    with running(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands that go on until they are told to end."""
    from commands import PUBSUB

    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: Any) -> subprocess.Popen[str]:
        command = [*PUBSUB, *(str(argument) for argument in arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def shell_path() -> Iterator[str]:
    """A ``PATH`` for a shell, in which ``datasette`` is found."""
    from shell import path_with_datasette

    with path_with_datasette() as found:
        yield found


#: How long a test of the client for Python may take, in seconds; and one that is slow.
TEST_SECONDS, SLOW_TEST_SECONDS = 60, 900


@pytest.fixture
def in_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """An iterator that waits for a message that never comes fails its test."""

    def late(*_: object) -> None:
        raise TimeoutError("the test waits for something that does not come")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOW_TEST_SECONDS if request.node.get_closest_marker("slow") else TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["Client", "AsyncClient"])
def client_of(request: pytest.FixtureRequest, in_time: None) -> Iterator[Callable[..., Driver]]:
    """Make clients for Python of a server, or an address; each test runs with either kind."""
    from python_clients import Driver

    from datasette_pubsub import client

    made: list[Driver] = []

    def make(server: Server | str, **options: Any) -> Driver:
        url = server if isinstance(server, str) else f"{server.url}/data"
        made.append(Driver(getattr(client, request.param), url, **options))
        return made[-1]

    yield make
    for driver in made:
        driver.end()
