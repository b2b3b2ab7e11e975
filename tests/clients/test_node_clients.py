"""TypeScript clients against real servers: Connect-ES v1 and v2, gRPC and gRPC-Web, HTTP/1.1 and HTTP/2.

The clients are in ``tests/node``; npm and buf run here when their folders are
not up to date. They only report what they saw; it is judged here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from node_packages import _run, compiled, prepared
from places import NODE
from servers import DEADLINE, OPEN, Server, sqlite_shell, wait_for

pytestmark = pytest.mark.node


#: Of the client that must run as it was first written: the file is not to be edited.
CLIENT_V1_SHA256 = "a2b875d7ca9b754a59034d46f8da3def92f9f53b8ed7aac262fa37bd42ee5e7a"

USERS = """
CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, status TEXT);
CREATE TRIGGER on_user_banned
AFTER UPDATE OF status ON users
WHEN NEW.status = 'banned'
BEGIN
  INSERT INTO vpubsub (channel, payload)
  VALUES ('security_alerts', json_object('event', 'user_banned', 'email', NEW.email));
END;
INSERT INTO users (email, status) VALUES
  ('hacker@example.com', 'active'), ('second@example.com', 'active'),
  ('third@example.com', 'active'), ('fourth@example.com', 'active');
"""


@pytest.fixture(scope="session")
def v1() -> Path:
    return prepared("v1")


@pytest.fixture(scope="session")
def v2() -> Path:
    return prepared("v2")


# -- the client of the description, as it was first written --------------------


def _ban(server: Server, *emails: str) -> list[tuple[str, str]]:
    """Ban users in the sqlite3 shell; the ids and payloads that this must have published."""
    (before,) = server.rows("SELECT max(id) FROM vpubsub")[0]
    for email in emails:
        sqlite_shell(server.path, f"UPDATE users SET status = 'banned' WHERE email = '{email}'")
    return [
        (str(before + n), json.dumps({"event": "user_banned", "email": email}, separators=(",", ":")))
        for n, email in enumerate(emails, 1)
    ]


def _run_v1(folder: Path, server: Server) -> list[tuple[str, str]]:
    """Run the client; the ids and payloads that it printed, and nothing else may be printed."""
    version = "2" if server.http2 else "1.1"
    output = _run(["node_modules/.bin/tsx", "client-v1.ts", server.url, version, server.database], folder)
    lines = [re.fullmatch(r"\[Message ID: (\d+)\] (.*)", line) for line in output.splitlines()]
    assert None not in lines, output
    return [(line[1], line[2]) for line in lines if line]


def test_the_first_client_is_unchanged() -> None:
    text = (NODE / "v1" / "client-v1.ts").read_bytes()
    assert hashlib.sha256(text).hexdigest() == CLIENT_V1_SHA256


def _first_client(folder: Path, server: Server) -> None:
    server.start()
    server.publish(channel="system_logs", payload="makes the tables")
    sqlite_shell(server.path, USERS)

    expected = _ban(server, "hacker@example.com")
    assert _run_v1(folder, server) == expected

    expected = _ban(server, "second@example.com", "third@example.com", "fourth@example.com")
    server.restart()
    assert _run_v1(folder, server) == expected

    logs = "SELECT payload FROM vpubsub WHERE channel = 'system_logs' ORDER BY id"
    published = ["Service spinning up...", "Cache cleared"]
    assert [payload for (payload,) in server.rows(logs)] == ["makes the tables", *published, *published]
    assert server.rows("SELECT owner, name FROM pubsub_subscriptions") == [("", "frontend-dashboard-ui")]


@pytest.fixture(scope="module")
def first_clients(v1: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """One run per HTTP version, side by side, as the client mostly waits."""
    servers = {}
    for version in ("1.1", "2"):
        folder = tmp_path_factory.mktemp("first")
        path = folder / "production_db.db"
        sqlite_shell(path, "CREATE TABLE existing (id INTEGER PRIMARY KEY)")
        servers[version] = Server([path], OPEN, folder, http2=version == "2")
    with ThreadPoolExecutor() as threads:
        yield {version: threads.submit(_first_client, v1, server) for version, server in servers.items()}
    for server in servers.values():
        server.kill()


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_the_first_client_misses_nothing(first_clients: dict[str, Future[None]], version: str) -> None:
    """One message while it runs, then three while neither it nor the server does: it gets these three, once."""
    first_clients[version].result()


# -- Connect-ES v2: everything, over every transport ----------------------------

TRANSPORTS = {
    False: ["connect-1.1", "connect-1.1-json", "grpc-web-1.1", "web", "web-binary", "web-grpc-web"],
    True: ["connect-2", "connect-2-json", "grpc-web-2", "grpc-2", "grpc-2-json"],
}

#: Ids start above this, which is more than a JavaScript number holds exactly.
BIG = 2**53 + 1

#: Nobody may see this database or publish to it.
CLOSED = {"closed": {"allow": False, "permissions": {"publish-message": False}}}

UNICODE = 'grüße, 日本語, 😀, \u2028 \0 "quoted" \\ \r\n end'
BYTES = bytes(range(256))


@pytest.fixture(scope="module")
def reports(v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What the client saw over one transport, and the ``rows`` that the database holds afterwards.

    All transports of an HTTP version run at once, on one server, each with a database of its own.
    """
    servers: list[Server] = []
    found: dict[str, dict[str, Any]] = {}

    def run_all(http2: bool) -> None:
        folder = tmp_path_factory.mktemp("node")
        names = {transport: transport.replace(".", "_") for transport in TRANSPORTS[http2]}
        paths = [folder / f"{name}.db" for name in [*names.values(), "closed"]]
        for path in paths:
            sqlite_shell(path, "CREATE TABLE existing (id INTEGER PRIMARY KEY)")
        server = Server(paths, {**OPEN, "databases": CLOSED}, folder, http2)
        servers.append(server)
        server.start()
        for path in paths[:-1]:
            message = {"channel": "first", "payload": "makes the tables"}
            httpx.post(f"{server.url}/{path.stem}/-/pubsub/-/publish", json=message).raise_for_status()
            sqlite_shell(path, f"UPDATE sqlite_sequence SET seq = {BIG} WHERE name = 'vpubsub'")
        script = compiled(v2, "client")
        clients = {
            transport: subprocess.Popen(
                ["node", script, transport, server.url, name, "closed"],
                cwd=v2,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for transport, name in names.items()
        }
        for transport, client in clients.items():
            try:
                output, errors = client.communicate(timeout=2 * DEADLINE)
            except subprocess.TimeoutExpired:
                client.kill()
                output, errors = client.communicate()
            if client.returncode:
                found[transport] = {"failed": f"{transport} ended with {client.returncode}: {errors}"}
                continue
            with contextlib.closing(sqlite3.connect(folder / f"{names[transport]}.db")) as conn:
                rows = conn.execute("SELECT id, channel FROM vpubsub WHERE id > ? ORDER BY id", [BIG]).fetchall()
            found[transport] = {**json.loads(output), "rows": rows, "log": server.log}

    def report(transport: str) -> dict[str, Any]:
        if transport not in found:
            run_all(transport in TRANSPORTS[True])
        result = found[transport]
        assert "failed" not in result, result["failed"]
        return result

    yield report
    for server in servers:
        server.kill()


every_transport = pytest.mark.parametrize("transport", [*TRANSPORTS[False], *TRANSPORTS[True]])
Report = Callable[[str], dict[str, Any]]


@every_transport
def test_publishing(reports: Report, transport: str) -> None:
    report = reports(transport)
    ids = [str(BIG + n) for n in range(1, 6)]
    assert report["published"] == ids
    assert report["idType"] == "bigint"
    assert report["again"] == [ids[3]], "a key that is known gives the first id"
    channels = ["a", "a", "b", "c.x", "ü 😀", "a", "t", "big", "big"]
    assert report["rows"] == [(BIG + n, channel) for n, channel in enumerate(channels, 1)]


@every_transport
def test_reading(reports: Report, transport: str) -> None:
    report = reports(transport)
    one, two, three, four, five = report["published"]
    messages = report["all"]
    assert [message["id"] for message in messages] == [one, two, three, four, five]
    assert [message["channel"] for message in messages] == ["a", "a", "b", "c.x", "ü 😀"]
    assert [message["payload"] for message in messages] == ["one", UNICODE, "", '{"n": 1}', ""]
    assert [base64.b64decode(message["blob"]) for message in messages] == [b"", b"", BYTES, b"", b""]
    times = [message["createdAt"] for message in messages]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times), times
    assert report["channels"] == [one, two, three, four]
    assert report["pattern"] == [one, two, three]


@every_transport
def test_start_positions(reports: Report, transport: str) -> None:
    report = reports(transport)
    one, two, three, four, five = report["published"]
    assert report["after"] == [four, five]
    assert report["since"] == [one, two]
    assert report["sinceLater"] == []
    assert report["earliest"] == [three]
    assert report["latest"] == []
    assert report["unnamed"] == []
    assert report["lastMessageId"] == [two]


@every_transport
def test_live(reports: Report, transport: str) -> None:
    report = reports(transport)
    assert report["head"] == report["published"][-1]
    assert report["live"] == [str(BIG + 6)] * 2
    assert report["heartbeat"] == "HEARTBEAT"


@every_transport
def test_durable_subscriptions(reports: Report, transport: str) -> None:
    report = reports(transport)
    one, two, three, *_ = report["published"]
    live = report["live"][0]
    assert report["automatic"] == [three, []], "what was handed over counts as read"
    assert report["explicit"] == [[one, two, live]] * 2, "nothing was acknowledged"
    assert report["acked"] == one
    assert report["afterAck"] == [two, live]
    assert report["ackBack"] == live, "a cursor never moves back"
    assert report["afterAll"] == []


@every_transport
def test_a_newer_connection_takes_over(reports: Report, transport: str) -> None:
    report = reports(transport)
    assert report["superseded"]["code"] == "Aborted"
    assert "superseded" in report["superseded"]["message"]
    assert report["taken"] == [str(BIG + 7)] * 2


@every_transport
def test_big_messages(reports: Report, transport: str) -> None:
    """A text and a blob of 1 MiB each, which is the limit."""
    text = ("x" * (1024 * 1024 - 9) + "é€😀").encode()
    blob = bytes((n * 7919) >> 3 & 255 for n in range(1024 * 1024))
    assert len(text) == len(blob) == 1024 * 1024
    nothing = hashlib.sha256(b"").hexdigest()
    assert reports(transport)["big"] == [
        {"payload": hashlib.sha256(text).hexdigest(), "blob": nothing},
        {"payload": nothing, "blob": hashlib.sha256(blob).hexdigest()},
    ]


@every_transport
@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("publishUnknown", "NotFound", "nowhere"),
        ("subscribeUnknown", "NotFound", "nowhere"),
        ("ackUnknown", "NotFound", "nowhere"),
        ("ackUnknownSubscription", "NotFound", "never made"),
        ("ackTooFar", "OutOfRange", "message_id"),
        ("publishEmptyChannel", "InvalidArgument", "items[0].channel"),
        ("publishBoth", "InvalidArgument", "items[0].blob"),
        ("publishTooLarge", "ResourceExhausted", "max_payload_bytes"),
        ("subscribeNoChannel", "InvalidArgument", "channel"),
        ("subscribeTooMany", "InvalidArgument", "max_channels_per_stream"),
        ("publishClosed", "PermissionDenied", "publish-message"),
        ("subscribeClosed", "PermissionDenied", "view-channel"),
        ("timeout", "DeadlineExceeded", ""),
        ("canceled", "Canceled", ""),
    ],
)
def test_errors(reports: Report, transport: str, case: str, code: str, said: str) -> None:
    error = reports(transport)["errors"][case]
    assert error["code"] == code, error
    assert said in error["message"]


#: hypercorn 0.18 ends a connection when data comes for a call that it has answered: pgjones/hypercorn#329.
DATA_AFTER_THE_ANSWER = re.compile(
    r"^Unhandled exception in client_connected_cb\n(?:(?!Unhandled exception).*\n)*?"
    r".* in _handle_events\n.*self\.streams\[event\.stream_id\]\.handle\(\n.*\n.*KeyError: \d+\n +\+-+\n",
    re.MULTILINE,
)


@every_transport
def test_the_server_saw_no_failure(reports: Report, transport: str) -> None:
    log = DATA_AFTER_THE_ANSWER.sub("", reports(transport)["log"])
    assert "Traceback" not in log
    assert "internal error" not in log
    assert "Exception" not in log


# -- publish streams ---------------------------------------------------------------


@pytest.mark.parametrize("transport", ["connect-2", "connect-2-json", "grpc-2", "grpc-2-json"])
def test_a_publish_stream(v2: Path, serve: Callable[..., Server], transport: str) -> None:
    options = {"plugins": {"datasette-pubsub": {"channel_permissions": {"secret": {"publish": False}}}}}
    server = serve(["data", "closed"], {**OPEN, **options, "databases": CLOSED}, http2=True)
    command = ["node", compiled(v2, "publish"), transport, server.url, server.database, "closed"]
    report = json.loads(_run(command, v2))
    assert [answer[:3] for answer in report["seen"]] == [
        [1, [1, 2], ""],
        [2, [], "invalid_argument"],
        [3, [], "invalid_argument"],
        [4, [], "aborted"],
        [5, [], "permission_denied"],
        [6, [], ""],
        [7, [3], ""],
    ]
    texts = ["", "items[1].channel is empty", "db_name must be data", "expected_last_id is 9", "'secret'", "", ""]
    assert [text in answer[3] for text, answer in zip(texts, report["seen"], strict=True)] == [True] * len(texts)
    assert (report["ended"], report["number"], report["refused"]) == (True, 2000, "PermissionDenied")
    assert server.rows("SELECT channel, payload FROM vpubsub WHERE channel <> 'many' ORDER BY id") == [
        ("a", "one"),
        ("b", b"\x00\xff"),
        ("a", "last"),
    ]
    many = server.rows("SELECT payload FROM vpubsub WHERE channel = 'many' ORDER BY id")
    assert many == [(str(n),) for n in range(2000)]
    # hypercorn (0.18) loses a connection on which a message arrives for a stream that was refused already, and
    # says so; nothing of ours may fail.
    assert "datasette_pubsub" not in server.log


# -- clients that go away --------------------------------------------------------


@pytest.mark.parametrize("transport", ["connect-1.1", "grpc-2"])
def test_a_client_that_is_killed_leaves_nothing_behind(v2: Path, serve: Callable[..., Server], transport: str) -> None:
    """Its stream ends on the server too, and what comes later waits for it."""
    server = serve(http2=transport in TRANSPORTS[True])

    def connected() -> list[bool]:
        url = f"{server.pubsub}/-/subscriptions.json"
        return [found["connected"] for found in httpx.get(url).json()["subscriptions"]]

    @contextlib.contextmanager
    def client() -> Iterator[IO[str]]:
        command = ["node", compiled(v2, "follow"), transport, server.url, server.database, "mine", "a"]
        with subprocess.Popen(command, cwd=v2, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield process.stdout
            finally:
                process.kill()

    with client() as lines:
        assert lines.readline() == "ready 0\n"
        assert connected() == [True]
        server.publish(channel="a", payload="seen")
        assert lines.readline() == "1 seen\n"
    wait_for(lambda: connected() == [False], "the stream of the killed client is gone")
    server.publish(channel="a", payload="missed")
    with client() as lines:
        assert lines.readline() == "2 missed\n"
        assert lines.readline() == "ready 2\n"
    assert "Traceback" not in server.log
