"""A reader of the README and the docs: a shell in a folder with data.db, the README's server, and ``$TOKEN`` once made.

:func:`after_the_readme` has done what the README says. Blocks that only show what the one before has printed are
compared with it: ``…`` stands for anything, and times are not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import httpx
from commands import line_of
from doc_pages import README, blocks
from node_packages import TSX, example_folder, first_lines, prepared
from servers import DEADLINE, Server, free_port, sqlite_shell, wait_for

#: What the README's terminal has.
SECRET = "change-me"

#: What the log has when the README was followed in a terminal: :func:`after_the_readme`, by channel.
CHANNELS = {"logs": 5, "security_alerts": 1, "orders": 1, "analytics_feed": 1}

#: A time, whose digits differ each time, as does the wait before a subscriber connects again.
_CHANGING = (
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"retry: \d+", "retry: N"),
    (r"\d{4}-\d\d-\d\d [\d:.]+", "TIME"),
    (r"(_seconds\": ?)[\d.e-]+", r"\g<1>0"),
)


class Reader:
    """Runs blocks in their order. ``port`` is that of the server, which the pages have at 8001."""

    def __init__(self, folder: Path, shell_path: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": shell_path, "COLUMNS": "100"}
        self.server: Server | None = None
        #: What the last block has printed, and the stream that it has opened.
        self.printed = ""
        self._stream: subprocess.Popen[bytes] | None = None
        self._cookies: dict[str, str] | None = None

    def end(self) -> None:
        if self._stream is not None:
            os.killpg(self._stream.pid, signal.SIGKILL)
            self._stream.communicate()
            self._stream = None

    def here(self, code: str) -> str:
        assert self.server is not None or "127.0.0.1" not in code
        return code.replace("127.0.0.1:8001", f"127.0.0.1:{self.server.port}") if self.server else code

    def run(self, code: str, fails: bool = False) -> str:
        """Run a program of the shell, which succeeds unless ``fails``; what it prints. Refused requests fail."""
        code = self.here(code).replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(
            ["bash", "-euc", code],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode != 0) == fails, (code, done.stdout, done.stderr)
        self.printed = done.stdout + (done.stderr if fails and "curl" not in code else "")
        return self.printed

    def python(self, code: str, name: str = "example.py") -> str:
        (self.folder / name).write_text(self.here(code))
        return self.run(f"{sys.executable} {name}")

    def sql(self, code: str) -> str:
        self.printed = sqlite_shell(self.folder / "data.db", code)
        return self.printed

    def query(self, code: str) -> list[Any]:
        """Run a query as Datasette's SQL page does, logged in by the link that the server has printed."""
        assert self.server is not None
        if self._cookies is None:
            self._cookies = self.server.root_cookie()
        address = f"{self.server.url}/data/-/query.json"
        headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        answer = httpx.get(address, params={"sql": code}, headers=headers, cookies=self._cookies, timeout=60)
        assert answer.status_code == 200, answer.text
        return [list(row.values()) for row in answer.json()["rows"]]

    def token(self, code: str) -> None:
        """The two lines that make a token, which the next blocks have."""
        # The servers of the tests have this secret.
        text = self.run(f"{code.replace(SECRET, 'tests')}\necho $TOKEN")
        self.environment["TOKEN"] = text.strip()
        self.printed = ""

    def stream(self, code: str) -> str:
        """Open a stream, and read its first event; the stream stays open for the blocks that follow."""
        self.end()
        self._stream = subprocess.Popen(
            ["bash", "-c", f"exec {self.here(code).strip()}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.printed = self._event() + self._event()
        return self.printed

    def _event(self) -> str:
        assert self._stream is not None
        assert self._stream.stdout is not None
        return event_of(self._stream.stdout)

    def shows(self, text: str) -> None:
        """What the block before has printed is this text; of a stream that goes on, the next event."""
        printed = self.printed
        if text.startswith(("event:", "id:")):
            if not printed.startswith("retry:"):
                printed = self._event()
                while "event: heartbeat" in printed:
                    printed = self._event()
            printed = re.sub(r"^retry: \d+\n\n", "", printed)
        assert same(text, printed), f"shown:\n{text}\nprinted:\n{printed}"


def starts(reader: Reader, code: str) -> None:
    """Start servers, a line for each, at the same time; each answers, on another port than the page's, and ends."""
    lines = re.sub(r"--workers [1-9]", "--workers 2", code).splitlines()
    running = []
    try:
        for line in lines:
            port = free_port()
            line, places = re.subn(r"\b800[12]\b", str(port), line)
            assert places == 1, line
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            process = subprocess.Popen(
                ["bash", "-c", line],
                cwd=reader.folder,
                env={**reader.environment, "PATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            running.append((process, line, f"http://127.0.0.1:{port}/data/-/pubsub"))
        for process, line, address in running:
            wait_for(lambda process=process, address=address: answers(process, address), line)
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(DEADLINE)
    finally:
        for process, *_ in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(process: subprocess.Popen[bytes], address: str) -> bool:
    assert process.poll() is None, "the server has ended"
    with contextlib.suppress(httpx.TransportError):
        return "orders" in httpx.get(address, timeout=DEADLINE).text
    return False


def event_of(pipe: IO[bytes]) -> str:
    """The lines of a stream up to the next empty one."""
    text = ""
    while not text.endswith("\n\n"):
        line = line_of(pipe, "the stream sends nothing")
        assert line, "the stream has ended"
        text += line
    return text


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed; JSON may have other spaces there.

    >>> same('{"ok": true, "head": "…"}', '{"ok":true,"head":"12"}')
    True
    """
    texts = []
    for text in (shown, printed):
        for pattern, name in _CHANGING:
            text = re.sub(pattern, name, text)
        texts.append("\n".join(_compact(line) for line in text.strip().splitlines()))
    pattern = ".*?".join(re.escape(part) for part in texts[0].split("…"))
    return re.fullmatch(pattern, texts[1], re.DOTALL) is not None


def _compact(line: str) -> str:
    name, colon, value = line.partition(": ") if line.startswith("data: ") else ("", "", line)
    try:
        value = json.dumps(json.loads(value), separators=(",", ":"), ensure_ascii=False)
    except ValueError:
        pass
    return name + colon + value.rstrip()


def do(reader: Reader, kind: str, code: str) -> None:
    """Run a block of a kind that README and docs have."""
    if kind in ("sh", "shell", "curl"):
        reader.run(code)
    elif kind == "refused":
        reader.run(code, fails=True)
    elif kind == "starts":
        starts(reader, code)
    elif kind == "sqlite3":
        reader.sql(code)
    elif kind == "token":
        reader.token(code)
    elif kind in ("stream", "live"):
        reader.stream(code)
        assert re.search(r"^id: \d" if kind == "stream" else r"^event: snapshot", reader.printed, re.MULTILINE)
    elif kind == "query":
        reader.printed = "".join(f"{'|'.join(map(str, row))}\n" for row in reader.query(code))
    elif kind == "python":
        reader.python(code)
    elif kind == "typescript":
        (example_folder(reader.folder) / "example.ts").write_text(reader.here(code))
        reader.run(f"{TSX} example.ts")
    elif kind == "generated":
        # With the code that buf generates for the clients of the tests; it would go on.
        script = prepared("v2") / f"example_{os.getpid()}.ts"
        script.write_text(reader.here(code))
        try:
            reader.printed = "\n".join(first_lines(script.name, script.parent, 2, reader.environment))
        finally:
            script.unlink()
    elif kind == "reflection":
        # tests/clients/test_reflection.py runs it: it needs HTTP/2.
        reader.printed = ""
    elif kind.startswith("file "):
        reader.python(code, kind.removeprefix("file "))
    elif kind == "output":
        reader.shows(code)
    else:
        raise AssertionError(f"no block is of this kind: {kind}")


def after_the_readme(folder: Path, shell_path: str, start: Any) -> Reader:
    """Somebody who has done in a terminal what the README says. ``start`` starts the server on data.db."""
    reader = Reader(folder, shell_path)
    for kind, code in blocks(README):
        if kind == "shell" and "datasette serve" in code:
            reader.run("\n".join(code.splitlines()[:-1]))
            reader.server = start()
        elif "pip install" in code:
            # It is installed already.
            continue
        elif kind in ("shell", "sqlite3", "token", "query", "curl"):
            do(reader, kind, code)
    return reader
