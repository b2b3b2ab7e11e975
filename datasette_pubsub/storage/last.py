"""The newest message of each channel: the state that a subscriber with ``start=last`` gets first.

The ids are found once, and the messages are read in pages, so that nobody holds more of them than one send.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from ..core.errors import InvalidArgument, Unavailable
from ..core.limits import PAGE_MESSAGES
from ..core.selector import Selector
from ..core.values import Message, Page
from .filters import Filters
from .log import channel_names, expand
from .names import OF_CHANNEL, Name
from .objects import LOG
from .schema import installed

#: With a filter, so many of the newest messages of a channel are looked at, at most, for one that passes.
LOOKED_AT = 1_000

#: The most messages that are looked at for one subscriber, in all channels: about half a second's work.
LOOKED_AT_IN_ALL = 100_000

#: About how many bytes of messages of one channel are read at once.
ROUND_BYTES = 1024 * 1024

#: The longest time for a filter, in seconds.
FILTER_SECONDS = 2.0

_COLUMNS = "id, channel, payload, created_at, key"


def ids(conn: sqlite3.Connection, selector: Selector, head: int, filters: Filters, most: int) -> list[int]:
    """The ids, up to ``head``, of the newest message of each of the selector's channels, in their order.

    With a filter, of the newest one that passes, among the newest messages of the channel. Raises
    :class:`InvalidArgument` for more than ``most`` channels, and :class:`Unavailable` if the filter takes too long.
    """
    if not installed(conn):
        return []
    channels = channel_names(conn, most + 1) if selector.everything else expand(conn, selector)
    if len(channels) > most:
        raise InvalidArgument(
            f"start=last is for at most {most} channels (max_last_channels)", field="start", limit="max_last_channels"
        )
    if selector.filter:
        return sorted(_passing(conn, selector.filter, channels, head, filters))
    sql = f"SELECT max(id) FROM {LOG} WHERE {OF_CHANNEL} AND id <= ?"
    found = [conn.execute(sql, [channel, head]).fetchone()[0] for channel in channels]
    return sorted(int(number) for number in found if number is not None)


def _passing(conn: sqlite3.Connection, text: str, channels: list[Name], head: int, filters: Filters) -> list[int]:
    """For each channel, the id of its newest message that passes, if it is found.

    Each round looks at twice as many messages of the channels that are left.
    """
    found: list[int] = []
    left = dict.fromkeys(channels, head + 1)
    depth = max(1, min(LOOKED_AT, LOOKED_AT_IN_ALL // max(1, len(channels))))
    done, count, seconds = 0, 1, FILTER_SECONDS
    while left and done < depth:
        count = min(count, depth - done)
        further: dict[Name, int] = {}
        for channel, before in left.items():
            messages = _before(conn, channel, before, count)
            verdicts, took = filters.timed(text, messages, seconds)
            seconds -= took
            if len(verdicts) < len(messages) or seconds <= 0:
                raise Unavailable("the filter took too long to find the newest message of each channel")
            passing = next((each.id for each, ok in zip(messages, verdicts, strict=True) if ok), None)
            if passing is not None:
                found.append(passing)
            elif messages:
                further[channel] = messages[-1].id
        left = further
        done += count
        count *= 2
    return found


def _before(conn: sqlite3.Connection, channel: Name, before: int, count: int) -> list[Message]:
    """The newest messages of a channel below an id: at most ``count``, and about ``ROUND_BYTES``, but at least one."""
    sql = f"SELECT {_COLUMNS} FROM {LOG} WHERE {OF_CHANNEL} AND id < ? ORDER BY id DESC LIMIT ?"
    messages: list[Message] = []
    total = 0
    for row in conn.execute(sql, [channel, before, count]):
        messages.append(Message(*row))
        total += messages[-1].size
        if total > ROUND_BYTES:
            break
    return messages


@dataclass(slots=True)
class Last:
    """The messages that are still to be sent, by id, and the position after them."""

    ids: list[int]
    head: int

    @property
    def begin(self) -> int:
        """The position before the first of them; the head if there is none."""
        return self.ids[0] - 1 if self.ids else self.head

    def page(self, conn: sqlite3.Connection, limit: int, max_bytes: int) -> Page:
        """The next of these messages: at most ``limit``, and about ``max_bytes`` of payload, but at least one."""
        wanted = self.ids[: min(limit, PAGE_MESSAGES)]
        sql = f"SELECT {_COLUMNS} FROM {LOG} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        messages: list[Message] = []
        total = 0
        for row in conn.execute(sql, [json.dumps(wanted)]):
            message = Message(*row)
            total += message.size
            if messages and total > max_bytes:
                wanted = [number for number in wanted if number < message.id]
                break
            messages.append(message)
        # A message that was trimmed meanwhile is not missed: it was not the newest any more, or its channel is empty.
        self.ids = self.ids[len(wanted) :]
        return Page(messages, wanted[-1] if self.ids else self.head, self.head)
