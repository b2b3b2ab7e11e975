"""Publishing from the command line: one message, or every line of standard input.

It counts only committed messages. If a line is invalid, the lines before it are published, and the error names its
number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import click

from ..core.errors import Conflict, FailedPrecondition, InvalidArgument, PayloadTooLarge, PubsubError
from ..core.limits import CHUNK_MESSAGES
from ..core.settings import Settings
from ..core.validation import check_item
from ..core.values import Item
from ..protocol.items import item_of_fields
from ..storage import log, sources
from ..storage.transaction import transaction
from .common import Progress, counted

#: The most bytes that one read from standard input returns.
READ_BYTES = 1024 * 1024

#: How many bytes of JSON one byte of payload can take (``\\u0000``).
JSON_BYTES = 6

#: Room for the other fields of a line of JSON, in bytes.
JSON_FIELDS_BYTES = 4096


class Publisher:
    """Publishes in transactions, and counts the committed messages."""

    def __init__(self, conn: sqlite3.Connection, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings
        self._new = 0
        self._known = 0
        self._last_id = 0

    def publish(self, items: Sequence[Item]) -> None:
        """Append messages in one transaction. Raises :class:`FailedPrecondition` for a log that follows a stream."""
        try:
            with transaction(self._conn):
                ids, new = log.append(self._conn, items, log.now())
        except (Conflict, sqlite3.IntegrityError):
            sources.check_own(self._conn)
            raise
        self._new += len(new)
        self._known += len(ids) - len(new)
        self._last_id = ids[-1]

    def publish_lines(self, stream: BinaryIO, channel: str | None, json_lines: bool) -> None:
        """Publish every line up to the end, or up to the first invalid one. Raises :class:`click.ClickException`."""
        typed = stream.isatty()
        if typed:
            click.echo("One message a line; Ctrl+D ends.", err=True)
        progress = Progress(not typed)
        limit = self._settings.max_payload_bytes
        items: list[Item] = []
        try:
            for lines in _lines(stream, JSON_BYTES * limit + JSON_FIELDS_BYTES if json_lines else limit):
                for number, line in lines:
                    item = self._item(number, line, channel, json_lines)
                    if item is not None:
                        items.append(item)
                    if len(items) == CHUNK_MESSAGES:
                        items = self._flush(items)
                items = self._flush(items)
                progress.show(f"Published {counted(self._new)}")
        except Conflict as error:
            # The lines that were collected belong to one transaction, so none of them is stored.
            raise click.ClickException(f"{error.message} of its transaction. {self.summary()}") from None
        except FailedPrecondition as error:
            raise click.ClickException(f"{error.message}. {self.summary()}") from None
        except PubsubError as error:
            self._flush(items)
            raise click.ClickException(f"{error.message}. {self.summary()}") from None
        except (sqlite3.Error, KeyboardInterrupt):
            click.echo(self.summary(), err=True)
            raise
        finally:
            progress.clear()

    def _item(self, number: int, line: bytes, channel: str | None, json_lines: bool) -> Item | None:
        """The message of one line; ``None`` for an empty line among lines of JSON."""
        try:
            text = line.decode()
            if json_lines and not text.strip():
                return None
            item = _item_of_json(text, channel) if json_lines else Item(channel or "", text)
            check_item(item, self._settings)
        except UnicodeDecodeError:
            raise InvalidArgument(f"line {number}: not UTF-8") from None
        except PubsubError as error:
            raise InvalidArgument(f"line {number}: {error.message}") from None
        return item

    def _flush(self, items: list[Item]) -> list[Item]:
        if items:
            self.publish(items)
        return []

    def summary(self) -> str:
        """One line that says what was published."""
        text = f"Published {counted(self._new)}"
        if self._last_id:
            text += f", last id {self._last_id}"
        if self._known:
            text += f"; {self._known} already there under the same key"
        return text


def _lines(stream: BinaryIO, longest: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yield lists of numbered lines, without their ends, as soon as they have been read.

    Raises :class:`PayloadTooLarge` for a line of more than ``longest`` bytes.
    """
    number = 0
    parts: list[bytes] = []
    size = 0
    while chunk := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *ended, rest = chunk.split(b"\n")
        if ended:
            ended[0] = b"".join([*parts, ended[0]])
            yield [(n, line.removesuffix(b"\r")) for n, line in enumerate(ended, number + 1)]
            number += len(ended)
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > longest + 1:
            raise PayloadTooLarge(f"line {number + 1}: longer than {longest} bytes, so over the limit of its payload")
    if size:
        yield [(number + 1, b"".join(parts))]


def _item_of_json(text: str, channel: str | None) -> Item:
    """A message from a line of JSON. Raises :class:`InvalidArgument`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument("not valid JSON") from None
    if not isinstance(data, dict):
        raise InvalidArgument("must be an object with channel and payload")
    if channel is not None:
        data.setdefault("channel", channel)
    # The log assigns these fields; a line from `tail --json` has them.
    for field in ("messageId", "createdAt"):
        data.pop(field, None)
    return item_of_fields(data, "")
