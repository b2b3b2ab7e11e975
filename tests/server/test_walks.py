"""The walks in docs/architecture.md lead through the functions that they name: a server tells what it calls."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys

import pytest
from architecture import WALKS, functions, part
from commands import datasette
from servers import free_port

from datasette_pubsub.compat import connections

#: Serves a database, takes the walks, and prints what was called on each, by qualified names, in the page's order.
SCRIPT = """
import json, subprocess, sys, threading, time
from pathlib import Path

import httpx
import uvicorn
from datasette.app import Datasette

import datasette_pubsub

path, port = sys.argv[1:]
base = f"http://127.0.0.1:{port}/data/-/pubsub"
ours = str(Path(datasette_pubsub.__file__).parent)
called, lines = set(), []


def profile(frame, event, _):
    if event == "call" and frame.f_code.co_filename.startswith(ours):
        called.add(frame.f_code.co_qualname.partition(".<locals>")[0])


def wait(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, (lines, sorted(called))
        time.sleep(0.01)


def walked():
    found = sorted(called)
    called.clear()
    return found


def publish(payload):
    httpx.post(f"{base}/-/publish", json={"channel": "a", "payload": payload}).raise_for_status()
    wait(lambda: any(f'"{payload}"' in line for line in lines))


def read():
    with httpx.stream("GET", f"{base}/-/stream", params={"channel": "a", "subscription": "s"}, timeout=60) as response:
        for line in response.iter_lines():
            lines.append(line)


threading.setprofile(profile)
datasette = Datasette([path], config={"permissions": {"publish-message": True}})
server = uvicorn.Server(uvicorn.Config(datasette.app(), port=int(port), log_level="error"))
threading.Thread(target=server.run, daemon=True).start()
wait(lambda: server.started)
httpx.post(f"{base}/-/publish", json={"channel": "a", "payload": "before"}).raise_for_status()
walked()
threading.Thread(target=read, daemon=True).start()
wait(lambda: "event: ready" in lines)
subscriber = walked()
for number in range(3):
    publish(f"published {number}")
publisher = walked()
httpx.get(base).raise_for_status()
for number in range(3):
    sql = f"INSERT INTO vpubsub (channel, payload) VALUES ('a', 'inserted {number}')"
    subprocess.run(["sqlite3", path, sql], check=True)
    wait(lambda: any(f'"inserted {number}"' in line for line in lines))
print(json.dumps([publisher, subscriber, walked()]))
sys.stdout.flush()
server.should_exit = True
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    path = tmp_path_factory.mktemp("walks") / "data.db"
    sqlite3.connect(path).close()
    datasette("pubsub", "install", path)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(free_port())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(WALKS, map(set, json.loads(run.stdout)), strict=True))


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_calls_what_it_names(walked: dict[str, set[str]], walk: str) -> None:
    named = set(functions(part(walk)))
    assert len(named) > 8
    # The page has both ways of a transaction, and a Python takes one of them.
    named.discard("append" if connections.can_disable_triggers() else "Batch.append_plain")
    assert named - walked[walk] == set()
