"""Durable subscriptions: rows with a cursor. Plain functions of a connection.

The law of this module: SQL on ``pubsub_subscriptions`` stands here. A cursor
only moves forward, and never past the head of the log.

Who holds a subscription, across all server processes on the file: opening a
stream *claims* it. A claim takes the next number of the file, and writes that and
the name of the process (``holder``) into the row. The cursor of a stream is saved
by its claim (:func:`save`), so only while nobody has claimed the subscription
after it. Others look at the rows whose claim is newer than the newest that they
have seen (:func:`newer_claims`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..core.errors import NotFound, OutOfRange, TooManyRequests
from ..core.selector import Selector
from ..core.settings import Settings
from . import log
from .names import Name, shown
from .objects import FILE, NOW, SUBSCRIPTIONS

#: Channels whose removed messages a new subscription remembers as none of its own,
#: in channels: about 10 KB in its row. Beyond, it is told of some that it never needed.
MAX_GONE = 500

#: How long a holder that is not heard of still counts as connected, in seconds. A living one writes ``last_seen_at`` at
#: least once a minute; one that was killed leaves its name in the row.
ALIVE_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Subscription:
    """One row. ``owner`` is the actor's id, empty for anonymous readers; ``reads`` what the selector was made of.

    ``gone`` holds, by channel, the newest id that was removed before the
    subscription was made, where that lies after its first cursor: nothing that it
    missed. ``holder`` is the process that has its live subscriber, or had it, and
    ``alive`` whether that process was heard of lately; ``claim`` is the number of the
    newest opening, 0 before the first, and ``previous`` the one before that.
    ``new`` says that it was made just now, ``ahead`` that this was because its
    cursor was ahead of the log's head: what it had read was another log.
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


#: Other programs may have stored the text as a blob.
_READS = "CAST(reads AS TEXT)"
_ALIVE = (
    "holder IS NOT NULL AND CAST(last_seen_at AS TEXT) > "
    f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{ALIVE_SECONDS} seconds')"
)
_COLUMNS = f"id, owner, name, {_READS}, cursor, created_at, last_seen_at, holder, claim, {_ALIVE}"


def find(conn: sqlite3.Connection, owner: str, name: str) -> Subscription | None:
    """The subscription of this owner and name, or ``None``."""
    row = conn.execute(f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} WHERE owner = ? AND name = ?", [owner, name]).fetchone()
    return _subscription(row) if row else None


def everyone(conn: sqlite3.Connection) -> list[Subscription]:
    """All subscriptions of the file, by owner and name."""
    return [_subscription(row) for row in conn.execute(f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} ORDER BY owner, name")]


def of_owner(conn: sqlite3.Connection, owner: str) -> list[Subscription]:
    """The subscriptions of one owner, by name."""
    sql = f"SELECT {_COLUMNS} FROM {SUBSCRIPTIONS} WHERE owner = ? ORDER BY name"
    return [_subscription(row) for row in conn.execute(sql, [owner])]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one owner may have: so many subscriptions, which together name so many bytes of what they read.

    ``option`` is the option that says how many.
    """

    number: int
    option: str
    bytes: int

    @classmethod
    def of(cls, settings: Settings, owner: str) -> Bounds:
        """The bounds of an owner; all anonymous visitors together are one."""
        name = "max_subscriptions_per_actor" if owner else "max_anonymous_subscriptions"
        return cls(getattr(settings, name), name, settings.max_subscription_bytes_per_actor)

    def check(self, conn: sqlite3.Connection, owner: str, reads: str, instead_of: int | None = None) -> None:
        """Raise :class:`TooManyRequests` unless there is room for one more, or for one that changes to read this."""
        sql = f"SELECT count(*), coalesce(sum(length(CAST(reads AS BLOB))), 0) FROM {SUBSCRIPTIONS} WHERE owner = ?"
        number, size = conn.execute(f"{sql} AND id IS NOT ?", [owner, instead_of]).fetchone()
        whose = "this actor has" if owner else "anonymous visitors together have"
        if instead_of is None and number >= self.number:
            raise TooManyRequests(f"{whose} {number} subscriptions; the limit is {self.number} ({self.option})")
        if size + len(reads.encode()) > self.bytes:
            size += len(reads.encode())
            raise TooManyRequests(
                f"what the subscriptions of {'this actor' if owner else 'anonymous visitors'} read would take "
                f"{size} bytes; the limit is {self.bytes} bytes (max_subscription_bytes_per_actor)"
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
    """The subscription, made with this cursor if it is new; what it reads is brought up to date.

    An empty selector keeps what an existing subscription reads. ``gone`` is
    for a new one. Raises :class:`TooManyRequests` for what is over the ``bounds``.
    """
    found = find(conn, owner, name)
    reads = _reads(selector, (gone or {}) if found is None else found.gone)
    if bounds is not None and (found is None or (selector and len(reads) > len(found.reads))):
        bounds.check(conn, owner, reads, found.id if found else None)
    if found is None:
        conn.execute(
            f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor) VALUES (?, ?, ?, ?)",
            [owner, name, reads, cursor],
        )
    elif selector and selector != found.selector:
        conn.execute(f"UPDATE {SUBSCRIPTIONS} SET reads = ?, last_seen_at = {NOW} WHERE id = ?", [reads, found.id])
    else:
        conn.execute(f"UPDATE {SUBSCRIPTIONS} SET last_seen_at = {NOW} WHERE id = ?", [found.id])
    result = find(conn, owner, name)
    assert result is not None
    return replace(result, new=found is None)


def delete(conn: sqlite3.Connection, owner: str, name: str) -> int:
    """Forget a subscription; returns the id it had. Raises :class:`NotFound`."""
    found = find(conn, owner, name)
    if found is None:
        raise NotFound(f"subscription not found: {name}")
    conn.execute(f"DELETE FROM {SUBSCRIPTIONS} WHERE id = ?", [found.id])
    return found.id


def renew(conn: sqlite3.Connection, found: Subscription, cursor: int, gone: Mapping[Name, int]) -> Subscription:
    """Make a subscription anew whose cursor is ahead of the head, since a cursor never moves back."""
    conn.execute(f"DELETE FROM {SUBSCRIPTIONS} WHERE id = ?", [found.id])
    conn.execute(
        f"INSERT INTO {SUBSCRIPTIONS} (owner, name, reads, cursor, created_at) VALUES (?, ?, ?, ?, ?)",
        [found.owner, found.name, _reads(found.selector, gone), cursor, found.created_at],
    )
    result = find(conn, found.owner, found.name)
    assert result is not None
    return replace(result, new=True, ahead=True)


class Save(NamedTuple):
    """A cursor to be saved by the claim of its stream; with ``release`` nobody holds the subscription after that."""

    claim: int
    cursor: int
    release: bool = False


class Claim(NamedTuple):
    """Who claimed a subscription last; ``number`` is the subscription's id."""

    number: int
    claim: int
    holder: str | None


class State(NamedTuple):
    """What SQL and other processes may change in a row while a subscriber is connected."""

    cursor: int
    reads: str
    claim: int
    holder: str | None

    @classmethod
    def of(cls, text: str) -> State:
        """The state that :func:`states` has told."""
        return cls(*json.loads(text))


def states(conn: sqlite3.Connection, ids: Iterable[int], seen_before: str) -> tuple[dict[str, str], list[int]]:
    """The present state of these subscriptions, by id, none for one that does not exist; and who was seen last before.

    Read as one row: for each row SQLite lets go of the interpreter lock and asks for it
    again, which with ten thousand of them takes seconds where the event loop is busy.
    Each is a text, to be compared with the one before: ten thousand lists, once a second,
    made Python's garbage collector look through the whole process every ten seconds.
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
    """These subscriptions are in use now."""
    conn.execute(
        f"UPDATE {SUBSCRIPTIONS} SET last_seen_at = {NOW} WHERE id IN (SELECT value FROM json_each(?))",
        [json.dumps(list(ids))],
    )


def save(conn: sqlite3.Connection, holder: str, saves: Iterable[Save]) -> None:
    """Move cursors of this process's streams forward, at most to the head; one that is already further stays there.

    A subscription that was claimed by another stream since then stays as it is. One statement for
    each place, since most cursors are at the head: a call for each of ten thousand would keep
    publishers waiting for seconds where the event loop is busy.
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
    """Move one cursor forward, whoever holds the subscription, at most to the head."""
    conn.execute(
        f"UPDATE {SUBSCRIPTIONS} SET cursor = max(cursor, ?), last_seen_at = {NOW} WHERE id = ?",
        [min(cursor, log.head(conn)), number],
    )


def claims(conn: sqlite3.Connection) -> int:
    """How often subscriptions of this file were claimed: the number of the newest claim. 0 without a log."""
    try:
        row = conn.execute(f"SELECT claims FROM {FILE}").fetchone()
    except sqlite3.OperationalError as error:
        # A file of the first version, or without a log.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return 0
    return int(row[0]) if row else 0


def newer_claims(conn: sqlite3.Connection, seen: int) -> tuple[int, list[Claim]]:
    """The number of the newest claim, and who claimed what after the claim ``seen``, the newest claim of each."""
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
    """Who claimed this subscription last; ``None`` for one that does not exist."""
    row = conn.execute(f"SELECT id, claim, holder FROM {SUBSCRIPTIONS} WHERE id = ?", [number]).fetchone()
    return Claim(*row) if row else None


def claim(conn: sqlite3.Connection, found: Subscription, holder: str) -> Subscription:
    """The subscription, held by this process from now on, under a new claim."""
    number = _next_claim(conn)
    conn.execute(f"UPDATE {SUBSCRIPTIONS} SET holder = ?, claim = ? WHERE id = ?", [holder, number, found.id])
    return replace(found, holder=holder, claim=number, alive=True, previous=found.claim)


def claim_late(conn: sqlite3.Connection, holder: str, waiting: Mapping[int, int | None]) -> dict[int, int]:
    """Claim subscriptions, by id, whose streams could not when they began; the claims that succeeded.

    Only where the newest claim is the one given: who has claimed it since then began later. ``None``: whichever it is.
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
    """Finish all messages up to an id; returns the subscription's id and its cursor, which never moves back.

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
    selector = Selector(frozenset(channels), tuple(patterns))
    return Subscription(
        row[0], row[1], row[2], row[3], selector, gone, row[4], row[5], row[6], row[7], row[8], bool(row[9])
    )


def _reads(selector: Selector, gone: Mapping[Name, int]) -> str:
    """What a subscription reads, as it stands in its row."""
    reads: dict[str, Any] = {"channels": sorted(selector.channels), "patterns": list(selector.patterns)}
    if gone:
        newest = sorted(gone.items(), key=lambda entry: -entry[1])[:MAX_GONE]
        reads["gone"] = {shown(channel): number for channel, number in reversed(newest)}
    return json.dumps(reads)


def _texts(reads: Any, name: str) -> list[str]:
    """A list of names in a row, which any program may have made: what is not as it should be names nothing."""
    found = reads.get(name) if isinstance(reads, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
