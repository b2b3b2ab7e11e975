"""Real servers in processes of their own, and what tests say to them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from zygote import ENVIRONMENT, Forked, zygote

#: How long anything that must happen may take before a test gives up, in seconds.
DEADLINE = 30.0

#: How long a server may take to end while streams are open, in seconds: 3 on a machine with nothing else to do.
ENDS_SECONDS = 10.0


#: Everyone may publish; tests of permissions use their own configuration.
OPEN = {"permissions": {"publish-message": True}}


#: The newest ports of :func:`free_port`, in ports; older servers have ended.
MAX_RESERVED = 100


_reserved: deque[socket.socket] = deque()


def wait_for(condition: Callable[[], Any], what: str = "condition", deadline: float = DEADLINE) -> Any:
    """Wait until the condition is true; its value. Fails with ``what`` when it never becomes so."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {deadline} s: {what}")


def free_port() -> int:
    """A port that no other test, client or process is given in the meantime.

    It stays bound: a server that sets SO_REUSEADDR, as all do, may listen where another socket with the option is
    bound and does not listen (man 7 socket), while the kernel chooses it for nobody.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    _reserved.append(sock)
    if len(_reserved) > MAX_RESERVED:
        _reserved.popleft().close()
    return int(sock.getsockname()[1])


@atexit.register
def _release() -> None:
    for sock in _reserved:
        sock.close()


def sqlite_shell(path: Path, sql: str) -> str:
    """Run SQL in Debian's sqlite3 shell: another process, another library."""
    command = ["sqlite3", "-bail", "-cmd", ".timeout 10000", str(path)]
    return subprocess.run(command, input=sql, text=True, capture_output=True, check=True, timeout=120).stdout


@dataclass
class Server:
    """One Datasette, served by ``datasette serve`` or by hypercorn."""

    databases: list[Path]
    config: dict[str, Any]
    folder: Path
    http2: bool = False
    options: list[str] = field(default_factory=list)
    port: int = 0
    process: subprocess.Popen[bytes] | Forked | None = None
    root_token: str | None = None
    prefix: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pubsub(self) -> str:
        """The base of the first database's addresses."""
        return f"{self.url}/{self.databases[0].stem}/-/pubsub"

    @property
    def database(self) -> str:
        return self.databases[0].stem

    @property
    def path(self) -> Path:
        return self.databases[0]

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def command(self) -> list[str]:
        """What ``python -m`` runs."""
        config = self.folder / "datasette.json"
        config.write_text(json.dumps(self.config))
        names = [str(path) for path in self.databases]
        if not self.http2:
            how = ["-p", str(self.port), "-c", str(config), "--secret", "tests", *self.options]
            return ["datasette", "serve", *names, *how]
        app = self.folder / "served.py"
        app.write_text(
            "import json\nfrom datasette.app import Datasette\n"
            f"datasette = Datasette({names!r}, config=json.loads({json.dumps(self.config)!r}))\n"
            "app = datasette.app()\n"
        )
        # No worker processes: the signal that ends the server must reach the plugin. Hypercorn waits for
        # idle connections when it ends, so many seconds.
        how = ["--workers", "0", "--graceful-timeout", "1", "--bind", f"127.0.0.1:{self.port}"]
        return ["hypercorn", *how, "served:app"]

    def start(self) -> Server:
        self.port = self.port or free_port()
        self.run(self.command())
        wait_for(self._answers, f"the server answers; its log: {self.log}")
        return self

    def run(self, arguments: list[str]) -> None:
        """Start ``python -m`` with these arguments as this server's process."""
        log = self.folder / "server.log"
        log.touch()
        if not self.prefix and (parent := zygote()):
            self.process = parent.start(arguments, self.folder, (Path(os.devnull), log, log))
            return
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", *arguments],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended: {self.log}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/-/versions.json").status_code < 500
        return False

    def kill(self) -> None:
        """As a crash would: no warning, no goodbye."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE)

    def stop(self, number: signal.Signals = signal.SIGINT, deadline: float = DEADLINE) -> float:
        """End it as an operator does; how long that took, in seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(deadline)
        return time.monotonic() - began

    def restart(self) -> Server:
        self.stop()
        return self.start()

    def root_cookie(self) -> dict[str, str]:
        """The cookie of the root user; needs the option ``--root``."""
        token = re.findall(r"auth-token\?token=([0-9a-f]+)", self.log)[-1]
        response = httpx.get(f"{self.url}/-/auth-token?token={token}")
        return {"ds_actor": response.cookies["ds_actor"]}

    def publish(self, *items: dict[str, Any], **message: Any) -> list[int]:
        response = httpx.post(f"{self.pubsub}/-/publish", json={"items": list(items)} if items else message, timeout=60)
        assert response.status_code == 200, response.text
        return list(response.json()["message_ids"])

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """Read the file from this process, which is not the server's."""
        with contextlib.closing(sqlite3.connect(self.path)) as conn:
            return conn.execute(sql, values).fetchall()


class Sse:
    """An SSE reader with a thread-free, blocking interface: one event at a time."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, **params: Any) -> None:
        self._client = httpx.Client(timeout=httpx.Timeout(DEADLINE))
        request = self._client.build_request("GET", url, params=params, headers=headers)
        self.response = self._client.send(request, stream=True)
        if self.response.status_code != 200:
            self.response.read()
            self._client.close()
            raise AssertionError(f"{self.response.status_code}: {self.response.text}")
        self._lines = self.response.iter_lines()

    def event(self) -> dict[str, Any]:
        """The next event: ``{"event": …, "id": …, "data": …}``; data parsed where it is JSON."""
        found: dict[str, Any] = {"event": "message", "id": None, "data": ""}
        data: list[str] = []
        for line in self._lines:
            if not line:
                if data:
                    break
                # A frame without data, as that of ``retry:`` alone, is no event.
                found = {"event": "message", "id": None, "data": ""}
                continue
            name, _, value = line.partition(": ")
            if name == "data":
                data.append(value)
            else:
                found[name] = value
        else:
            raise EOFError
        text = "\n".join(data)
        found["data"] = json.loads(text) if text[:1] == "{" else text
        return found

    def messages(self, count: int) -> list[dict[str, Any]]:
        """The next so many messages; other events are passed over."""
        found: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        end = time.monotonic() + DEADLINE + count / 1000
        while len(found) < count:
            event = self.event()
            if event["event"] == "message":
                found.append(event["data"])
            else:
                # Heartbeats keep a stream alive that has nothing to say.
                others.append(event)
                assert time.monotonic() < end, f"{len(found)} of {count} messages, and {others}"
        return found

    def until(self, name: str) -> dict[str, Any]:
        """Read up to the next event of this name."""
        end = time.monotonic() + DEADLINE
        while True:
            event = self.event()
            if event["event"] == name:
                return event
            assert event["event"] != "heartbeat" or time.monotonic() < end, f"no {name}"

    def close(self) -> None:
        self.response.close()
        self._client.close()

    def __enter__(self) -> Sse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
