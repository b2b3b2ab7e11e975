"""Debian's Firefox for the tests of pages, over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/).

Playwright drives only a Firefox of its own: Debian's lacks commands that it sends for every page.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from servers import DEADLINE, wait_for
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Ping, Request, TextMessage

NAMES = ("firefox-esr", "firefox")


def binary() -> str | None:
    """The path of a Firefox, ``None`` when there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Firefox:
    """A running Firefox: one command at a time, each answered before the next."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._id = 0
        self._text = ""
        self._send(Request(host=f"127.0.0.1:{port}", target="/session"))
        assert any(isinstance(event, AcceptConnection) for event in self._events())
        self.command("session.new", capabilities={})

    def _send(self, event: Any) -> None:
        self._socket.sendall(self._ws.send(event))

    def _events(self) -> list[Any]:
        data = self._socket.recv(65536)
        assert data, "Firefox has closed the connection"
        self._ws.receive_data(data)
        return list(self._ws.events())

    def close(self) -> None:
        """End the connection, not the browser."""
        self._socket.close()

    def command(self, method: str, **params: Any) -> Any:
        """Send a command; its result. Events are passed over."""
        self._id += 1
        self._send(TextMessage(json.dumps({"id": self._id, "method": method, "params": params})))
        while True:
            for event in self._events():
                assert not isinstance(event, BytesMessage)
                if isinstance(event, Ping):
                    self._send(event.response())
                elif isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        answer, self._text = json.loads(self._text), ""
                        if answer.get("id") == self._id:
                            assert answer["type"] == "success", answer
                            return answer["result"]

    def open(self, url: str) -> Tab:
        """A new tab with this page."""
        context = self.command("browsingContext.create", type="tab")["context"]
        self.command("browsingContext.navigate", context=context, url=url, wait="complete")
        return Tab(self, context)


class Tab:
    """One page in a Firefox."""

    def __init__(self, firefox: Firefox, context: str) -> None:
        self._firefox = firefox
        self._context = context

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, through JSON."""
        answer = self._firefox.command(
            "script.evaluate",
            expression=f"JSON.stringify({expression})",
            target={"context": self._context},
            awaitPromise=False,
            userActivation=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        wait_for(lambda: self.evaluate(expression), expression)


@contextmanager
def running(folder: Path) -> Iterator[Firefox]:
    """A Firefox with a profile of its own in the folder, ended at the end."""
    profile = folder / "profile"
    profile.mkdir()
    log = folder / "firefox.log"
    command = [str(binary()), "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
    try:
        listening = wait_for(
            lambda: re.search(r"WebDriver BiDi listening on ws://127\.0\.0\.1:(\d+)", log.read_text()),
            "Firefox listens",
        )
        with closing(Firefox(int(listening[1]))) as firefox:
            yield firefox
    finally:
        process.terminate()
        process.wait(DEADLINE)
