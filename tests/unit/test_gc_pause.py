"""The garbage collector and SQL functions that wait: without ``gc_paused``, both of the first two tests time out."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from servers import DEADLINE

from datasette_pubsub.core.errors import Unavailable
from datasette_pubsub.publish_batch import gc_pause

#: Enough objects that the collector would have been called many times.
OBJECTS = 50_000


def with_garbage() -> sqlite3.Connection:
    """A connection, one of whose statements can only be freed by the collector."""
    conn = sqlite3.connect(":memory:", check_same_thread=False)
    cursor = conn.execute("SELECT 1 UNION ALL SELECT 2")
    cursor.fetchone()
    garbage: list[object] = [cursor]
    garbage.append(garbage)
    return conn


def run(conn: sqlite3.Connection, function: Callable[[], None]) -> None:
    """Run a function within a statement of the connection."""
    conn.create_function("f", 0, function)
    conn.execute("SELECT f()").fetchone()


def test_who_is_waited_for_does_not_collect() -> None:
    done = threading.Event()

    def work() -> None:
        assert len([[] for _ in range(OBJECTS)]) == OBJECTS
        done.set()

    def waits() -> None:
        with gc_pause.gc_paused():
            threading.Thread(target=work, daemon=True).start()
            assert done.wait(DEADLINE)

    with closing(with_garbage()) as conn:
        run(conn, waits)
    assert gc.isenabled()


def test_a_collection_that_waits_for_the_caller_is_not_waited_for() -> None:
    collecting = threading.Event()
    collected = threading.Event()
    refused: list[str] = []

    def collect() -> None:
        gc.callbacks.append(started)
        gc.collect()
        collected.set()

    def started(phase: str, _info: dict[str, int]) -> None:
        gc.callbacks.remove(started)
        collecting.set()

    def waits() -> None:
        threading.Thread(target=collect, daemon=True).start()
        assert collecting.wait(DEADLINE)
        with pytest.raises(Unavailable) as error, gc_pause.gc_paused():
            raise AssertionError("the collection has ended")
        refused.append(error.value.message)

    with closing(with_garbage()) as conn:
        run(conn, waits)
        assert refused == ["publish_batch cannot wait for its messages just now; run the query again"]
        # With the statement ends what it held.
        assert collected.wait(DEADLINE)
    assert gc.isenabled()


def test_those_who_wait_one_after_the_other_do_not_keep_it_away_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_pause, "STARVING_SECONDS", 0.0)
    freed = threading.Event()

    class Cyclic:
        def __init__(self) -> None:
            self.self = self

        def __del__(self) -> None:
            freed.set()

    with gc_pause.gc_paused():
        old = Cyclic()
        gc.collect()  # now it belongs to the oldest generation
        del old
        assert not freed.is_set()
        with gc_pause.gc_paused():
            assert freed.is_set(), "what is in the oldest generation, too"


def test_it_stays_as_it_was() -> None:
    gc.disable()
    try:
        with gc_pause.gc_paused(), gc_pause.gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with gc_pause.gc_paused():
        with gc_pause.gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
