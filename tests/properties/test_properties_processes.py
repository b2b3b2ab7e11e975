"""Any interleaving of writers, readers, trims, kills and restarts of a real server: nothing skipped, all in order."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SUPPORT
from property_tests import QUICK, channels
from servers import OPEN, Server, Sse, sqlite_shell, wait_for
from witnesses import Truth, make_file

from datasette_pubsub.core.selector import Selector

TRIMMER = SUPPORT / "trimmer.py"


# -- the same with a real server, that is killed and started again ---------------


class Processes:
    """A server, programs that write beside it, and two readers of channel ``a``: one acks, one does not."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.count = 0
        self.accepted: dict[int, str] = {}
        self.seen: dict[str, dict[int, str]] = {"explicit": {}, "auto": {}}
        self.missed = 0

    def truth(self) -> Truth:
        with closing(sqlite3.connect(self.server.path, isolation_level=None)) as conn:
            return Truth.of(conn)

    def items(self, channels: list[str]) -> list[dict[str, str]]:
        self.count += 1
        return [{"channel": channel, "payload": f"{self.count} {n}"} for n, channel in enumerate(channels)]

    def publish(self, channels: list[str]) -> None:
        items = self.items(channels)
        try:
            ids = self.server.publish(*items)
        except httpx.TransportError:
            # Killed: it may have been stored, but was not acknowledged.
            return
        self.accepted.update(zip(ids, (item["payload"] for item in items), strict=True))

    def publish_elsewhere(self, channels: list[str]) -> None:
        """In the sqlite3 shell: a transaction that is rolled back, and one that is not."""
        values = ", ".join(f"('{item['channel']}', '{item['payload']}')" for item in self.items(channels))
        insert = "INSERT INTO vpubsub (channel, payload)"
        sqlite_shell(
            self.server.path,
            f"BEGIN IMMEDIATE; {insert} VALUES ('a', 'never'); ROLLBACK;"
            f"BEGIN IMMEDIATE; {insert} VALUES {values}; COMMIT;",
        )

    def trim(self, share: float) -> None:
        up_to = int(max(self.truth().said, default=0) * share)
        subprocess.run([sys.executable, str(TRIMMER), str(self.server.path), str(up_to), "a", "b"], check=True)

    def kill(self, channels: list[str]) -> None:
        """Kill the server while somebody publishes, and start it again."""
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(lambda: [self.publish(channels) for _ in range(5)])
            wait_for(lambda: publishing.done() or self.accepted, "the first of them")
            self.server.kill()
            publishing.result()
        self.server.start()

    def read(self, ack: str, most: int, acks: bool) -> None:
        """Connect and read: the auto reader to the end, so that it ends cleanly; the other one as it likes."""
        before, start = self.truth(), self.cursor(ack)
        missed, got, end = 0, dict[int, str](), None
        with Sse(f"{self.server.pubsub}/-/stream", channel="a", subscription=ack, ack=ack) as reader:
            while end is None and (ack == "auto" or len(got) < most):
                event = reader.event()
                if event["event"] == "gap":
                    missed += int(event["data"]["missed"])
                elif event["event"] == "ready":
                    end = int(event["data"]["head"])
                elif event["event"] == "message":
                    number = int(event["data"]["messageId"])
                    assert number > max(got, default=0), "in order"
                    got[number] = event["data"]["payload"]
        if ack == "auto":
            wait_for(lambda: self.cursor("auto") == end, "its cursor is saved")
            assert not got.keys() & self.seen["auto"].keys(), "once"
            self.missed += missed
        elif acks and got:
            answer = httpx.post(
                f"{self.server.pubsub}/-/ack", json={"subscription": ack, "message_id": max(got)}, timeout=30
            )
            assert answer.json()["cursor"] == max(got)
        self.seen[ack].update(got)
        if start is not None:
            passed = before.ids(A, start, end or max(got, default=start)) - got.keys()
            assert passed <= before.gone, f"skipped {passed - before.gone}"
            assert missed == len(passed), "each trimmed message is told"

    def cursor(self, name: str) -> int | None:
        """Where a subscription stands, if it exists."""
        rows = self.server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = ?", name)
        return rows[0][0] if rows else None


A = Selector.of(["a"])
in_processes = st.one_of(
    st.tuples(st.just("publish"), channels),
    st.tuples(st.just("publish_elsewhere"), channels),
    st.tuples(st.just("trim"), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("read"), st.sampled_from(["auto", "explicit"]), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("read"), st.sampled_from(["auto", "explicit"]), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("kill"), channels),
    st.tuples(st.just("restart")),
)


def run_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    name = f"data{len(list(tmp_path.glob('data*.db')))}"
    make_file(tmp_path / f"{name}.db")
    server = serve(
        databases=[name], config={**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_interval_seconds": 0.05}}}
    )
    world = Processes(server)
    # Both subscriptions exist before anything is trimmed, so that everything is owed to them.
    world.publish(["a"])
    world.read("auto", 1, acks=False)
    world.read("explicit", 1, acks=False)
    for step, *values in steps:
        if step == "restart":
            server.restart()
        else:
            getattr(world, step)(*values)
    world.publish(["a", "b"])
    world.read("auto", 1, acks=False)
    world.read("explicit", 1_000_000, acks=True)
    server.stop()
    truth = world.truth()
    assert all(truth.said[number][1] == payload for number, payload in world.accepted.items())
    assert all(payload != "never" for _, payload in truth.said.values())
    for seen in world.seen.values():
        assert all(truth.said[number] == ("a", payload) for number, payload in seen.items())
        assert truth.ids(A) - seen.keys() <= truth.gone
    assert world.missed == len(truth.ids(A) - world.seen["auto"].keys())
    moved = server.rows("SELECT was, became FROM moved")
    assert all(became >= was for was, became in moved), "a cursor moved back"
    assert "Traceback" not in server.log
    assert server.rows("PRAGMA integrity_check") == [("ok",)]


@settings(QUICK, max_examples=2)
@given(steps=st.lists(in_processes, min_size=5, max_size=10))
def test_any_interleaving_in_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    run_processes(serve, tmp_path, steps)


@pytest.mark.slow
@settings(QUICK, max_examples=40)
@given(steps=st.lists(in_processes, min_size=5, max_size=30))
def test_any_long_interleaving_in_processes(serve: Callable[..., Server], tmp_path: Path, steps: list[Any]) -> None:
    run_processes(serve, tmp_path, steps)
