"""Evaluates filters in an SQLite of their own: in memory, it holds the messages of one batch and nothing else.

A filter is one SQL expression about a message (:mod:`.core.filters`). It may name the columns of a message and call the
functions in :data:`FUNCTIONS`; the authorizer refuses everything else when it is compiled: tables, queries, other
functions. Messages are evaluated in chunks, one statement for each. If a chunk fails, each of its messages is evaluated
by itself, and one that fails does not pass.

What a visitor's filter may cost is bounded, and what passes never depends on time. The work for one message is bounded
before it is done: by the size of its payload times a weight, the sum of what the filter's functions cost. Functions
that would take the product of two sizes are replaced by ones in Python that take their sum. Between two messages
SQLite's progress handler looks at the clock; when the time is over, there are fewer verdicts than messages.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from ..core.errors import InvalidArgument
from ..core.filters import COLUMNS, normalised, refused
from ..core.values import Message, Payload

#: The functions that a filter may call: those of one message's values, whose time and result grow with their arguments.
FUNCTIONS = frozenset({
    "->", "->>", "abs", "coalesce", "date", "datetime", "glob", "ifnull", "iif", "instr", "json_array_length",
    "json_extract", "json_type", "json_valid", "julianday", "length", "like", "lower", "ltrim", "nullif", "round",
    "rtrim", "sign", "substr", "substring", "time", "trim", "typeof", "unicode", "unixepoch", "upper",
})  # fmt: skip

#: How many steps of about 10 ns a function takes for each byte of its arguments, at worst; others take one.
_WEIGHTS = {"like": 100, "glob": 100, "->": 3, "->>": 3, "json_extract": 3, "json_type": 3, "json_array_length": 3}

#: The longest pattern of LIKE and GLOB, in bytes: matching takes up to the product of pattern and text.
MAX_PATTERN_BYTES = 100

#: The most steps for one message: about a second. A filter that names the payload fails for a larger payload than these
#: steps allow it, or than ``MAX_FILTERED_BYTES`` (the default of max_payload_bytes), so that message does not pass.
MAX_STEPS = 100_000_000
MAX_FILTERED_BYTES = 1024 * 1024

#: The most messages and bytes of payload in one statement.
CHUNK_MESSAGES = 256
CHUNK_BYTES = 256 * 1024

#: The numbers of rows that one INSERT loads: few calls for a chunk, since each takes the interpreter lock.
_ROWS = (64, 8, 1)

#: SQLite looks at the clock after so many steps of its virtual machine, or after each message that takes this long.
_LOOK_STEPS = 1_000
_LONG_STEPS = 50_000

#: How many compiled filters a connection keeps: about 10 KB each.
COMPILED = 1_024

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_FILTERED_BYTES + 64 * 1024,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1024 * 1024,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 32,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: max(_ROWS),
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: MAX_PATTERN_BYTES,
}

#: A message; as in the log, ``payload`` has no type, so that it is compared as there.
_TABLE = """
    CREATE TABLE message (n INTEGER PRIMARY KEY, id INTEGER, channel TEXT, payload, key TEXT, created_at TEXT)"""


class _Compiled(NamedTuple):
    """The statements of one filter: for all loaded messages, for those among them with JSON (2: not JSON), and for one.

    ``payload`` says that the filter names the payload, and ``weight`` how many steps it takes for each byte of it.
    """

    all: str
    json: str
    one: str
    payload: bool
    weight: int

    def most(self, steps: int) -> int:
        """The largest payload that can be evaluated in so many steps, in bytes."""
        return min(steps // self.weight, MAX_FILTERED_BYTES)


class _Chunk(NamedTuple):
    """Messages that one statement evaluates, and the size of the largest payload in bytes."""

    messages: list[Message]
    largest: int


class Engine:
    """One connection with the messages of one batch; used by one thread at a time."""

    def __init__(self) -> None:
        self._conn = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=COMPILED
        )
        self._conn.execute(_TABLE)
        for category, limit in _LIMITS.items():
            self._conn.setlimit(category, limit)
        self._conn.create_function("instr", 2, _instr, deterministic=True)
        for name, sides in (("trim", "both"), ("ltrim", "left"), ("rtrim", "right")):
            self._conn.create_function(name, 2, _trim(sides), deterministic=True)
        self._compiled: OrderedDict[str, _Compiled | None] = OrderedDict()
        for arguments in range(3, _LIMITS[sqlite3.SQLITE_LIMIT_FUNCTION_ARG] + 1):
            # With many paths it would build a text that is many times as long as the payload.
            # The check refuses these calls, so that the result does not matter.
            self._conn.create_function("json_extract", arguments, lambda *_: None)
        #: While a filter is checked: the columns that it names, the weights of its functions, why it is refused.
        self._names: set[str] | None = None
        self._weight = 0
        self._selects = 0
        self._checks = 0
        self._why = ""
        self._conn.set_authorizer(self._authorize)
        #: The messages that were divided into chunks last, and the chunk that is loaded.
        self._divided: list[Message] = []
        self._chunks: list[_Chunk] = []
        self._loaded: list[Message] = []
        self._rows = 0
        self._end = 0.0

    def close(self) -> None:
        """Close the connection. From Python 3.13 on, one that is not closed is a warning."""
        self._conn.close()

    def check(self, text: str) -> _Compiled:
        """Compile a filter. Raises :class:`InvalidArgument`, naming the field ``filter``."""
        self._names, self._weight, self._selects, self._why = set(), 0, 0, ""
        # Python keeps compiled statements, and for one of these SQLite would not ask the authorizer again.
        self._checks += 1
        case = f"CASE WHEN ({text}) THEN 1 ELSE 0 END"
        try:
            steps = self._conn.execute(f"EXPLAIN SELECT {case} FROM message -- {self._checks}").fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise refused(self._why or str(error)) from None
        finally:
            names, self._names = self._names, None
        if any(_MANY_PATHS.match(str(step[5])) for step in steps):
            raise refused("json_extract takes one path here")
        return _Compiled(
            f"SELECT group_concat({case}, '') FROM message",
            f"SELECT group_concat(CASE WHEN json_valid(payload) THEN {case} ELSE 2 END, '') FROM message",
            f"SELECT {case} FROM message WHERE n = ?",
            "payload" in names,
            # Every operator takes a step, and || makes its result longer for what is done with it.
            (self._weight + 1 + len(text) // 8) * (1 + text.count("||")),
        )

    def _authorize(self, action: int, one: str | None, two: str | None, *_: object) -> int:
        """What SQLite asks for while it compiles a statement."""
        if self._names is None:
            # One of this class's own statements, with a filter that was checked.
            mine = action in _OWN or (action == sqlite3.SQLITE_FUNCTION and two in _OWN_FUNCTIONS)
            return sqlite3.SQLITE_OK if mine else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_SELECT:
            self._selects += 1
            if self._selects == 1:
                return sqlite3.SQLITE_OK
            self._why = self._why or "is an expression about one message: it has no SELECT"
        elif action == sqlite3.SQLITE_READ and one == "message" and two in (*COLUMNS, ""):
            self._names.add(str(two))
            return sqlite3.SQLITE_OK
        elif action == sqlite3.SQLITE_READ and one != "message":
            self._why = self._why or f"is an expression about one message: it reads no table, not {one}"
        elif action == sqlite3.SQLITE_READ:
            self._why = self._why or f"{two or one} is not a column of a message; there are {', '.join(COLUMNS)}"
        elif action == sqlite3.SQLITE_FUNCTION and two in FUNCTIONS:
            self._weight += _WEIGHTS.get(two, 1)
            return sqlite3.SQLITE_OK
        elif action == sqlite3.SQLITE_FUNCTION:
            self._why = self._why or f"the function {two} is not for filters; there are {', '.join(sorted(FUNCTIONS))}"
        return sqlite3.SQLITE_DENY

    def _statements(self, text: str) -> _Compiled | None:
        """The statements of a filter; ``None`` if it is none, which a program may have stored."""
        try:
            found = self._compiled[text]
        except KeyError:
            try:
                found = self.check(normalised(text))
            except InvalidArgument:
                found = None
            self._compiled[text] = found
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return found

    def verdicts(self, text: str, messages: Sequence[Message], seconds: float, steps: int = MAX_STEPS) -> list[bool]:
        """Whether the first of these messages pass, as many as can be told in so many seconds.

        With fewer ``steps`` than ``MAX_STEPS`` there is none at all if a message may need more. Otherwise there is at
        least one verdict.
        """
        statements = self._statements(text)
        if statements is None:
            return [False] * len(messages)
        self._end = time.monotonic() + seconds
        if messages != self._divided:
            # Many filters are evaluated for the same messages.
            self._chunks, self._divided = list(_chunks(messages)), list(messages)
        chunks = self._chunks
        if not statements.payload:
            return self._in_chunks(statements, chunks)
        most, most_now = statements.most(MAX_STEPS), statements.most(steps)
        if any(chunk.largest > most_now for chunk in chunks):
            if most_now < most:
                return []
            sizes = [_size(message.payload) for message in messages]
            small = [message for message, size in zip(messages, sizes, strict=True) if size <= most]
            known = iter(self._in_chunks(statements, _chunks(small)))
            verdicts = (False if size > most else next(known, None) for size in sizes)
            return [ok for ok in takewhile(lambda ok: ok is not None, verdicts) if ok is not None]
        return self._in_chunks(statements, chunks)

    def _in_chunks(self, statements: _Compiled, chunks: Iterable[_Chunk]) -> list[bool]:
        found: list[bool] = []
        for chunk in chunks:
            if found and self.over():
                break
            self._load(chunk.messages)
            long = statements.weight * chunk.largest > _LONG_STEPS
            self._conn.set_progress_handler(self.over, 1 if long else _LOOK_STEPS)
            try:
                (passed,) = self._conn.execute(statements.all).fetchone()
            except sqlite3.Error:
                passed = None
            finally:
                self._conn.set_progress_handler(None, 0)
            if passed is not None:
                found += [each == "1" for each in passed]
                continue
            count = len(chunk.messages)
            verdicts = self._one_by_one(statements, count, bool(found))
            found += verdicts
            if len(verdicts) < count:
                break
        return found

    def _one_by_one(self, statements: _Compiled, count: int, enough: bool) -> list[bool]:
        """The verdicts of the loaded messages, of which one fails or all together take too long; at least one verdict.

        There may be none if there are ``enough`` already.
        """
        known = "2" * count
        if not self.over():
            # Mostly it is a payload that is not JSON which fails.
            with suppress(sqlite3.Error):
                (known,) = self._conn.execute(statements.json).fetchone()
        found: list[bool] = []
        for number in range(count):
            if known[number] != "2":
                found.append(known[number] == "1")
                continue
            if self.over() and (found or enough):
                break
            try:
                (passed,) = self._conn.execute(statements.one, (number,)).fetchone()
                found.append(passed == 1)
            except sqlite3.Error:
                found.append(False)
        return found

    def over(self) -> bool:
        """Whether the time of the last call is over."""
        return time.monotonic() > self._end

    def _load(self, messages: list[Message]) -> None:
        """Load a chunk, unless it is loaded: many filters are evaluated for the same messages."""
        if messages is self._loaded or messages == self._loaded:
            return
        self._loaded = []
        done = 0
        for size in _ROWS:
            while len(messages) - done >= size:
                values: list[object] = []
                for number, each in enumerate(messages[done : done + size], done):
                    payload = each.payload if _size(each.payload) <= MAX_FILTERED_BYTES else None
                    values += (number, each.id, each.channel, payload, each.key, each.created_at)
                self._conn.execute(_INSERT[size], values)
                done += size
        if self._rows > done:
            self._conn.execute("DELETE FROM message WHERE n >= ?", (done,))
        self._rows = done
        self._loaded = messages


#: How EXPLAIN shows a call of the functions that take the place of json_extract() with several paths.
_MANY_PATHS = re.compile(r"json_extract\(\d+\)")

_INSERT = {size: f"REPLACE INTO message VALUES {', '.join(['(?, ?, ?, ?, ?, ?)'] * size)}" for size in _ROWS}

_OWN = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE)
_OWN_FUNCTIONS = FUNCTIONS | {"group_concat"}


def _size(payload: Payload) -> int:
    """About how many bytes a payload has."""
    return len(payload) if isinstance(payload, (str, bytes)) else 8


def _chunks(messages: Sequence[Message]) -> Iterator[_Chunk]:
    """The messages in chunks."""
    sizes = [_size(message.payload) for message in messages]
    if len(messages) <= CHUNK_MESSAGES and sum(sizes) <= CHUNK_BYTES:
        yield _Chunk(list(messages), max(sizes, default=0))
        return
    begin = total = 0
    for place, size in enumerate(sizes):
        if place > begin and (place - begin == CHUNK_MESSAGES or total + size > CHUNK_BYTES):
            yield _Chunk(list(messages[begin:place]), max(sizes[begin:place]))
            begin, total = place, 0
        total += size
    yield _Chunk(list(messages[begin:]), max(sizes[begin:]))


def _text(value: Payload) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else repr(value)


def _instr(text: Payload | None, wanted: Payload | None) -> int | None:
    """SQLite's ``instr()``, which compares at each position; Python's search takes the sum of both sizes."""
    if text is None or wanted is None:
        return None
    if isinstance(text, bytes) and isinstance(wanted, bytes):
        return text.find(wanted) + 1
    return _text(text).find(_text(wanted)) + 1


def _trim(sides: str) -> Callable[[Payload | None, Payload | None], str | None]:
    """SQLite's ``trim()`` with the characters to remove, which compares each character with all of them."""

    def trim(text: Payload | None, characters: Payload | None) -> str | None:
        if text is None or characters is None:
            return None
        found, removed = _text(text), frozenset(_text(characters))
        begin, end = 0, len(found)
        while sides != "right" and begin < end and found[begin] in removed:
            begin += 1
        while sides != "left" and end > begin and found[end - 1] in removed:
            end -= 1
        return found[begin:end]

    return trim
