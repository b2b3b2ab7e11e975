"""``datasette pubsub tail --filter … --start last``, and filters in ``subscriptions``."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import call, failure

ERRORS = "payload ->> '$.level' = 'error'"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """30 messages in three channels; every fifth is an error, and every seventh has a key."""
    path = tmp_path / "data.db"
    call("install", path, "--create")
    with closing(sqlite3.connect(path)) as conn:
        for number in range(1, 31):
            level = "info" if number % 5 else "error"
            values = ["abc"[number % 3], json.dumps({"level": level}), None if number % 7 else f"k{number}"]
            conn.execute("INSERT INTO vpubsub (channel, payload, key) VALUES (?, ?, ?)", values)
        conn.commit()
    return path


def ids(*arguments: Any) -> list[int]:
    lines = call("tail", "--json", *arguments).stdout.splitlines()
    return [int(json.loads(line)["messageId"]) for line in lines]


def test_tail_with_a_filter(file: Path) -> None:
    assert ids(file, "--start", "earliest", "--filter", ERRORS) == [5, 10, 15, 20, 25, 30]
    assert ids(file, "a", "--start", "earliest", "--filter", ERRORS) == [15, 30]
    assert ids(file, "--after", "12", "--filter", "key IS NOT NULL") == [14, 21, 28]
    # The newest so many of those that pass.
    assert ids(file, "-n", "2", "--filter", ERRORS) == [25, 30]
    assert ids(file, "--filter", ERRORS) == [5, 10, 15, 20, 25, 30]
    assert ids(file, "-n", "0", "--filter", ERRORS) == []
    assert failure("tail", file, "--filter", "random()").startswith("filter: the function random")
    assert failure("tail", file, "--filter", "(").startswith("filter: the brackets")


def test_tail_with_the_newest_of_each_channel(file: Path) -> None:
    assert ids(file, "--start", "last") == [28, 29, 30]
    assert ids(file, "a", "b", "--start", "last") == [28, 30]
    assert ids(file, "--start", "last", "--filter", ERRORS) == [20, 25, 30]
    assert ids(file, "none", "--start", "last") == []
    plain = call("tail", file, "--start", "last").stdout.splitlines()
    assert [line.split("\t")[0] for line in plain] == ["28", "29", "30"]


def test_subscriptions_with_a_filter(file: Path) -> None:
    with closing(sqlite3.connect(file)) as conn:
        for name, filter in (("errors", ERRORS), ("broken", "random()"), ("all", "")):
            reads = {"channels": ["a", "b"], **({"filter": filter} if filter else {})}
            conn.execute(
                "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES ('', ?, ?, 3)",
                [name, json.dumps(reads)],
            )
        conn.commit()
    listed = {row["subscription"]: row for row in json.loads(call("subscriptions", file, "--json").stdout)}
    assert {name: (row["filter"], row["lag"]) for name, row in listed.items()} == {
        "errors": (ERRORS, 4),
        "broken": ("random()", 0),
        "all": ("", 18),
    }
    assert f"a, b where {ERRORS}" in call("subscriptions", file).stdout
