"""A real ``datasette serve`` with the default configuration, and the CPU time and memory of its process."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: Longest time that the server may take to start, in seconds.
START_SECONDS = 30.0


def raise_open_files() -> None:
    """Raise the limit of open files to the hard limit: 10,000 subscribers need 10,000 in each process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def remove_database(path: Path) -> None:
    """Delete a database and its write-ahead log."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class Server:
    """Serves one file, which it creates if necessary. Every actor may publish; everything else is the default."""

    def __init__(self, path: Path, plugins: Path | None = None, **options: str) -> None:
        """``options`` are options of the plugin, with their values as JSON."""
        self.path, self.database = path, path.stem
        if not path.exists():
            with sqlite3.connect(path) as conn:
                conn.execute("CREATE TABLE t (a)")
            conn.close()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "datasette", "serve", str(path), "--port", str(self.port)]
        command += ["-s", "permissions.publish-message", "true"]
        for name, value in options.items():
            command += ["-s", f"plugins.datasette-pubsub.{name}", value]
        if plugins:
            command += ["--plugins-dir", str(plugins)]
        self.output = path.with_suffix(".server.txt")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.pid = self.process.pid
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/-/versions.json", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"Datasette did not start: {self.output.read_text()[-2000:]}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path: str, body: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def publish(self, channel: str, *payloads: str) -> list[int]:
        """Publish over HTTP, and return the ids."""
        items = [{"channel": channel, "payload": payload} for payload in payloads]
        return [int(n) for n in self.post(f"/{self.database}/-/pubsub/-/publish", {"items": items})["message_ids"]]

    def cpu_seconds(self) -> float:
        """CPU time that all threads of the process have used, in seconds, to the microsecond."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory_kib(self) -> int:
        """Resident memory that the process does not share, in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise RuntimeError("no RssAnon in /proc")


def python_text() -> str:
    """This Python: its version, whether its compiler optimised it by a profile, and whether it has the lock."""
    if sys.base_prefix == "/usr" and Path("/etc/debian_version").exists():
        # Debian optimises it, and leaves no trace of that in the configuration.
        how = "Debian's, with profile-guided optimisation"
    elif "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS")):
        how = "with profile-guided optimisation"
    else:
        how = "without profile-guided optimisation"
    lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    return f"Python {sys.version.split()[0]} ({how}{'' if lock else ', free-threaded'})"


def environment() -> dict[str, Any]:
    """The machine, the versions and the durability of a run."""
    import datasette
    import uvicorn

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown processor",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 // 1024
    kernel = os.uname().release.split("-")[0]
    return {
        "machine": f"{os.cpu_count()} cores of {model}, {memory} GiB, Linux {kernel}",
        "python": python_text(),
        "sqlite": sqlite3.sqlite_version,
        "datasette": datasette.__version__,
        "uvicorn": uvicorn.__version__,
        "durability": "WAL, synchronous=FULL (the default)",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
