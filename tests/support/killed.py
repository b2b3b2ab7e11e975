"""Processes that kill themselves with SIGKILL at one step of a standing query's run.

``killed.py serve STEP ARGUMENTS…`` is ``datasette serve ARGUMENTS…``. ``killed.py watch FILE ROUNDS`` forks
``datasette pubsub watch`` so many times, each killed at the next step, changes the table between them, and looks after
each what has been published. It exits with 1 and a line that says what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasette.cli import cli

from datasette_pubsub.broker.standing import StandingQueries
from datasette_pubsub.cli.main import pubsub
from datasette_pubsub.cli.watch import Watcher
from datasette_pubsub.storage import standing

#: The moments at which a process dies: the last result was read, the query has run, the messages were inserted, the
#: result was stored, and the transaction was committed. The first four are inside of the write transaction.
STEPS = ("prepared", "ran", "published", "written", "committed")

SQL = "SELECT id, name FROM items WHERE wanted"


def arm(step: str) -> None:
    """Make this process kill itself at this step of the first run that publishes or stores anything."""
    inside = [False]

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            if inside[0]:
                die()
            return found

        return wrapped

    run = standing.run

    def begun(*args: Any) -> Any:
        inside[0] = True
        return run(*args)

    names = {"prepared": "load", "ran": "_result", "published": "publish", "written": "save"}
    if step in names:
        setattr(standing, names[step], after(getattr(standing, names[step])))
    else:
        Watcher._tell = die  # type: ignore[method-assign]
        StandingQueries._log = die  # type: ignore[method-assign]
    standing.run = begun  # type: ignore[assignment]


def watch(path: str, step: str | None) -> int:
    """Run ``watch --once`` in a process of its own; returns the signal that has ended it, or 0."""
    child = os.fork()
    if child == 0:
        if step is not None:
            arm(step)
        pubsub.main(["watch", path, "items", SQL, "--channel", "items", "--key", "id", "--once"])
    return os.waitpid(child, 0)[1] & 0x7F


@contextlib.contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as conn:
        yield conn


def look(path: str) -> tuple[dict[int, str], dict[int, str], int]:
    """The rows of which the messages tell, those of the stored result, and how many messages there are."""
    with opened(path) as conn:
        messages = [json.loads(row[0]) for row in conn.execute("SELECT payload FROM vpubsub ORDER BY id")]
        (result,) = conn.execute("SELECT result FROM _pubsub_standing").fetchone()
    told: dict[int, str] = {}
    for message in messages:
        number = message["key"]["id"]
        if message["op"] == "insert":
            assert number not in told, f"row {number} was published twice"
            told[number] = message["new"]["name"]
        elif message["op"] == "update":
            assert told[number] == message["old"]["name"] != message["new"]["name"], f"row {number}: {message}"
            told[number] = message["new"]["name"]
        else:
            assert told.pop(number) == message["old"]["name"], f"row {number}: {message}"
    return told, dict(json.loads(result)), len(messages)


def rounds(path: str, count: int) -> None:
    chance = random.Random(count)
    assert watch(path, None) == 0
    told, _, after = look(path)
    for number in range(1, count + 1):
        with opened(path) as conn:
            conn.execute("BEGIN")
            conn.execute("INSERT INTO items VALUES (?, 'new', 1)", [number])
            if told and chance.random() < 0.5:
                conn.execute("UPDATE items SET name = name || '.' WHERE id = ?", [chance.choice(list(told))])
            if told and chance.random() < 0.2:
                conn.execute("DELETE FROM items WHERE id = ?", [chance.choice(list(told))])
            conn.execute("COMMIT")
        step = STEPS[number % len(STEPS)]
        killed = watch(path, step)
        assert killed == signal.SIGKILL, f"round {number}: at {step}, it ended with {killed}"
        before, (told, stored, after) = after, look(path)
        assert told == stored, f"round {number}: killed at {step}, the messages and the stored result differ"
        assert (after > before) == (step == "committed"), f"round {number}: killed at {step}"
    assert watch(path, None) == 0
    told, stored, messages = look(path)
    with opened(path) as conn:
        rows = dict(conn.execute(SQL).fetchall())
        new = conn.execute("SELECT count(*) FROM vpubsub WHERE payload ->> 'op' = 'insert'").fetchone()[0]
    assert told == stored == rows, "the messages do not lead to the result"
    assert new == count, f"{count} rows came, and {new} were published"
    print(json.dumps({"kills": count, "messages": messages, "inserts": new, "rows": len(rows)}))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "serve":
        arm(arguments[0])
        sys.argv = ["datasette", "serve", *arguments[1:]]
        cli()
    else:
        rounds(str(Path(arguments[0])), int(arguments[1]))
