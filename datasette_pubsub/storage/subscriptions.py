"""Durable subscriptions: the rows of ``pubsub_subscriptions``, with their cursors and claims.

A cursor only moves forward, and never past the head of the log.

A subscription has at most one holder among all server processes on the file. Opening a subscriber *claims* the
subscription: :func:`claim` takes the file's next claim number, and writes it and the name of the process (``holder``)
into the row. :func:`save` saves a cursor under its claim, so only while no newer claim exists. Other processes read the
rows whose claim is newer than the newest that they know (:func:`newer_claims`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..core.errors import NotFound, OutOfRange, TooManyRequests
from ..core.selector import Selector
from ..core.settings import RELAY_OWNER, Settings
from . import log
from .names import Name, shown
from .objects import FILE, NOW, SUBSCRIPTIONS

#: The most channels in ``gone`` of a subscription: about 10 KB in its row. Beyond that, a new subscription reports
#: messages as missed that were trimmed before it was created.
MAX_GONE = 500

#: How long a holder counts as connected without updating its row, in seconds. A running one writes ``last_seen_at`` at
#: least once a minute; a killed one leaves its name in the row.
ALIVE_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Subscription:
    """One row. ``owner`` is the actor's id, empty for anonymous visitors; ``reads`` is the selector as JSON.

    ``gone`` has, by channel, the newest id that was trimmed before the
    subscription was created, if that is after its first cursor: it does not count
    as missed. ``holder`` is the process that has, or had, its subscriber, and
    ``alive`` says whether that process has updated the row recently. ``claim`` is
    the newest claim, 0 before the first, and ``previous`` the one before it.
    ``new`` says that the row was just created, and ``ahead`` that it was created
    again since its cursor was ahead of the log's head. ``turn`` numbers the
    subscribers of this process in the order in which they claimed; it is no column.
    """

    id: int
    owner: str
    name: str
    reads: str
    selector: Selector
    gone: Mapping[Name, int]
    cursor: int
    created_at: str
    last_seen_at: str
    holder: str | None = None
    claim: int = 0
    alive: bool = False
    previous: int = 0
    new: bool = False
    ahead: bool = False
    turn: int = 0

    @property
    def relay_to(self) -> str | None:
        """The stream, if this row shows how far a relay is: a process of its own, which resumes without it."""
        return self.name if self.owner == RELAY_OWNER else None


#: Other programs may have stored the text as a blob.
_READS = "CAST(reads AS TEXT)"
_ALIVE = (
    "holder IS NOT NULL AND CAST(last_seen_at AS TEXT) > "
    f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{ALIVE_SECONDS} seconds')"
)
_COLUMNS = f"id, owner, name, {_READS}, cursor, created_at, last_seen_at, holder, claim, {_ALIVE}"


def find(conn: sqlite3.Connection, owner: str, name: str) -> Subscription | None:
    """The subscription with this owner and name, or ``None``."""
    row = conn.execute(f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} WHERE owner = ? AND name = ?", [owner, name]).fetchone()
    return _subscription(row) if row else None


def everyone(conn: sqlite3.Connection) -> list[Subscription]:
    """All subscriptions of the file, sorted by owner and name."""
    return [_subscription(row) for row in conn.execute(f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} ORDER BY owner, name")]


def of_owner(conn: sqlite3.Connection, owner: str) -> list[Subscription]:
    """The subscriptions of one owner, sorted by name."""
    sql = f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} WHERE owner = ? ORDER BY name"
    return [_subscription(row) for row in conn.execute(sql, [owner])]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one owner: how many subscriptions, and how many bytes of channels, patterns and filters in all.

    ``option`` names the option that limits the number.
    """

    number: int
    option: str
    bytes: int

    @classmethod
    def of(cls, settings: Settings, owner: str) -> Bounds:
        """The limits of an owner; all anonymous visitors together are one owner."""
        name = "max_subscriptions_per_actor" if owner else "max_anonymous_subscriptions"
        return cls(getattr(settings, name), name, settings.max_subscription_bytes_per_actor)

    def check(self, conn: sqlite3.Connection, owner: str, reads: str, instead_of: int | None = None) -> None:
        """Raise :class:`TooManyRequests` if one more subscription, or a changed one, would exceed the limits."""
        sql = f"SELECT count(*), coalesce(sum(length(CAST(reads AS BLOB))), 0) FROM {SUBSCRIPTIONS} WHERE owner = ?"
        number, size = conn.execute(f"{sql} AND id IS NOT ?", [owner, instead_of]).fetchone()
        whose = "this actor has" if owner else "anonymous visitors together have"
        if instead_of is None and number >= self.number:
            raise TooManyRequests(
                f"{whose} {number} subscriptions; the limit is {self.number} ({self.option})", limit=self.option
            )
        if size + len(reads.encode()) > self.bytes:
            size += len(reads.encode())
            raise TooManyRequests(
                f"what the subscriptions of {'this actor' if owner else 'anonymous visitors'} read would take "
                f"{size} bytes; the limit is {self.bytes} bytes (max_subscription_bytes_per_actor)",
                limit="max_subscription_bytes_per_actor",
            )


def open_or_create(
    conn: sqlite3.Connection,
    owner: str,
    name: str,
    selector: Selector,
    cursor: int,
    gone: Mapping[Name, int] | None = None,
    bounds: Bounds | None = None,
) -> Subscription:
    """Open a subscription: create it with this cursor if it is new, and store its selector.

    An empty selector keeps the selector of an existing subscription, or all but its
    filter; see :meth:`.core.selector.Selector.over`. ``gone`` is for a new one.
    Raises :class:`TooManyRequests` if it exceeds the ``bounds``.
    """
    found = find(conn, owner, name)
    selector = selector.over(found.selector) if found else selector
    reads = _reads(selector, (gone or {}) if found is None else found.gone)
    if bounds is not None and (found is None or (selector != found.selector and len(reads) > len(found.reads))):
        bounds.check(conn, owner, reads, found.id if found else None)
    if found is None:
        conn.execute(
            f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor) VALUES (?, ?, ?, ?)",
            [owner, name, reads, cursor],
        )
    elif selector != found.selector:
        conn.execute(f"UPDATE {SUBSCRIPTIONS} SET reads = ?, last_seen_at = {NOW} WHERE id = ?", [reads, found.id])
    else:
        conn.execute(f"UPDATE {SUBSCRIPTIONS} SET last_seen_at = {NOW} WHERE id = ?", [found.id])
    result = find(conn, owner, name)
    assert result is not None
    return replace(result, new=found is None)


def delete(conn: sqlite3.Connection, owner: str, name: str) -> int:
    """Delete a subscription; returns its id. Raises :class:`NotFound`."""
    found = find(conn, owner, name)
    if found is None:
        raise NotFound(f"subscription not found: {name}")
    conn.execute(f"DELETE FROM {SUBSCRIPTIONS} WHERE id = ?", [found.id])
    return found.id


def renew(conn: sqlite3.Connection, found: Subscription, cursor: int, gone: Mapping[Name, int]) -> Subscription:
    """Create a subscription again whose cursor is ahead of the head, since a cursor never moves back."""
    conn.execute(f"DELETE FROM {SUBSCRIPTIONS} WHERE id = ?", [found.id])
    conn.execute(
        f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor, created_at) VALUES (?, ?, ?, ?, ?)",
        [found.owner, found.name, _reads(found.selector, gone), cursor, found.created_at],
    )
    result = find(conn, found.owner, found.name)
    assert result is not None
    return replace(result, new=True, ahead=True)


class Save(NamedTuple):
    """A cursor to save under a claim; ``release`` frees the subscription afterwards."""

    claim: int
    cursor: int
    release: bool = False


class Claim(NamedTuple):
    """The newest claim of a subscription and its holder; ``number`` is the subscription's id."""

    number: int
    claim: int
    holder: str | None


class State(NamedTuple):
    """The columns of a row that SQL and other processes may change while a subscriber is connected."""

    cursor: int
    reads: str
    claim: int
    holder: str | None

    @classmethod
    def of(cls, text: str) -> State:
        """Decode a state that :func:`states` has returned."""
        return cls(*json.loads(text))


def states(conn: sqlite3.Connection, ids: Iterable[int], seen_before: str) -> tuple[dict[str, str], list[int]]:
    """The present state of each of these subscriptions that exists, by id, and the ids last used before a time.

    The query returns one row: for each row, the interpreter lock is released and taken
    again, which for ten thousand rows takes seconds if the event loop is busy. Each state
    is a text, to be compared with the one before: ten thousand new lists every second made
    Python's garbage collector scan the whole process every ten seconds.
    """
    texts, stale = conn.execute(
        f"""
        SELECT json_group_object(CAST(id AS TEXT), '' || json_array(CAST(cursor AS INTEGER), {_READS},
                CAST(claim AS INTEGER), CAST(holder AS TEXT))),
            json_group_array(id) FILTER (WHERE CAST(last_seen_at AS TEXT) < ?)
        FROM {SUBSCRIPTIONS} WHERE id IN (SELECT value FROM json_each(?))""",
        [seen_before, json.dumps(list(ids))],
    ).fetchone()
    return json.loads(texts), json.loads(stale)


def touch(conn: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Mark these subscriptions as used now."""
    conn.execute(
        f"UPDATE {SUBSCRIPTIONS} SET last_seen_at = {NOW} WHERE id IN (SELECT value FROM json_each(?))",
        [json.dumps(list(ids))],
    )


def save(conn: sqlite3.Connection, holder: str, saves: Iterable[Save]) -> None:
    """Move the cursors of this process's subscribers forward, at most to the head; no cursor moves back.

    A subscription with a newer claim stays as it is. There is one statement for each position,
    since most cursors are at the head: a call for each of ten thousand cursors would delay
    publishers for seconds if the event loop is busy.
    """
    top = log.head(conn)
    places: dict[tuple[int, bool], list[int]] = {}
    for claim, cursor, release in saves:
        places.setdefault((min(cursor, top), release), []).append(claim)
    for (place, release), claims in places.items():
        conn.execute(
            f"UPDATE {SUBSCRIPTIONS} SET cursor = max(cursor, ?), last_seen_at = {NOW}"
            f"{', holder = NULL' if release else ''} "
            "WHERE claim IN (SELECT value FROM json_each(?)) AND holder = ?",
            [place, json.dumps(claims), holder],
        )


def move(conn: sqlite3.Connection, number: int, cursor: int) -> None:
    """Move one cursor forward, at most to the head, whatever its claim is."""
    conn.execute(
        f"UPDATE {SUBSCRIPTIONS} SET cursor = max(cursor, ?), last_seen_at = {NOW} WHERE id = ?",
        [min(cursor, log.head(conn)), number],
    )


def claims(conn: sqlite3.Connection) -> int:
    """The number of the file's newest claim; 0 without a log."""
    try:
        row = conn.execute(f"SELECT claims FROM {FILE}").fetchone()
    except sqlite3.OperationalError as error:
        # The file is of version 1, or has no log.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return 0
    return int(row[0]) if row else 0


def newer_claims(conn: sqlite3.Connection, seen: int) -> tuple[int, list[Claim]]:
    """The number of the newest claim, and the newest claim of each subscription that was claimed after ``seen``."""
    newest = claims(conn)
    if newest <= seen:
        return newest, []
    (text,) = conn.execute(
        f"SELECT json_group_array(json_array(id, CAST(claim AS INTEGER), CAST(holder AS TEXT))) "
        f"FROM {SUBSCRIPTIONS} WHERE claim > ?",
        [seen],
    ).fetchone()
    return newest, [Claim(*each) for each in json.loads(text)]


def claim_of(conn: sqlite3.Connection, number: int) -> Claim | None:
    """The newest claim of this subscription; ``None`` if it does not exist."""
    row = conn.execute(f"SELECT id, claim, holder FROM {SUBSCRIPTIONS} WHERE id = ?", [number]).fetchone()
    return Claim(*row) if row else None


def claim(conn: sqlite3.Connection, found: Subscription, holder: str) -> Subscription:
    """Claim the subscription for this process; returns it with the new claim."""
    number = _next_claim(conn)
    conn.execute(f"UPDATE {SUBSCRIPTIONS} SET holder = ?, claim = ? WHERE id = ?", [holder, number, found.id])
    return replace(found, holder=holder, claim=number, alive=True, previous=found.claim)


def claim_late(conn: sqlite3.Connection, holder: str, waiting: Mapping[int, int | None]) -> dict[int, int]:
    """Claim subscriptions, by id, whose subscribers could not claim them when they began; returns the new claims.

    A claim is written only if the present one is the one given: a newer one belongs to a later subscriber. ``None``
    accepts any.
    """
    done: dict[int, int] = {}
    for number, expected in waiting.items():
        claimed = _next_claim(conn)
        changed = conn.execute(
            f"UPDATE {SUBSCRIPTIONS} SET holder = ?, claim = ?, last_seen_at = {NOW} "
            "WHERE id = ? AND claim = coalesce(?, claim)",
            [holder, claimed, number, expected],
        )
        if changed.rowcount:
            done[number] = claimed
    return done


def _next_claim(conn: sqlite3.Connection) -> int:
    conn.execute(f"UPDATE {FILE} SET claims = claims + 1")
    return claims(conn)


def acknowledge(conn: sqlite3.Connection, owner: str, name: str, message_id: int) -> tuple[int, int]:
    """Acknowledge all messages up to an id; returns the subscription's id and its cursor, which never moves back.

    Raises :class:`NotFound` for an unknown subscription and :class:`OutOfRange`
    for an id that the log has not given out.
    """
    found = find(conn, owner, name)
    if found is None:
        raise NotFound(f"subscription not found: {name}")
    top = log.head(conn)
    if message_id < 1 or message_id > top:
        raise OutOfRange(f"message_id {message_id} is not an id of this log; its newest is {top}")
    move(conn, found.id, message_id)
    return found.id, max(found.cursor, message_id)


def _subscription(row: sqlite3.Row) -> Subscription:
    reads = json.loads(row[3])
    gone = reads.get("gone") if isinstance(reads, dict) else None
    gone = {k: v for k, v in gone.items() if isinstance(v, int)} if isinstance(gone, dict) else {}
    channels, patterns = (_texts(reads, name) for name in ("channels", "patterns"))
    text = reads.get("filter") if isinstance(reads, dict) else None
    selector = Selector(frozenset(channels), tuple(patterns), filter=text if isinstance(text, str) else "")
    return Subscription(
        row[0], row[1], row[2], row[3], selector, gone, row[4], row[5], row[6], row[7], row[8], bool(row[9])
    )


def _reads(selector: Selector, gone: Mapping[Name, int]) -> str:
    """The JSON of a selector for the column ``reads``."""
    reads: dict[str, Any] = {"channels": sorted(selector.channels), "patterns": list(selector.patterns)}
    if selector.filter:
        reads["filter"] = selector.filter
    if gone:
        newest = sorted(gone.items(), key=lambda entry: -entry[1])[:MAX_GONE]
        reads["gone"] = {shown(channel): number for channel, number in reversed(newest)}
    return json.dumps(reads)


def _texts(reads: Any, name: str) -> list[str]:
    """A list of names from a row; values of a wrong type are ignored, since any program may have written the row."""
    found = reads.get(name) if isinstance(reads, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
