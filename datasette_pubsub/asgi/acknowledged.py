"""Learns how far the peer's machine has acknowledged the bytes of a stream.

If a cursor followed the bytes that were passed to the server, it would pass messages that still wait in the server's
buffers, and that are lost when the peer disappears.

Theory of operation. The frame sender counts bytes (:meth:`Acknowledged.sent`), and the subscriber sets a mark after
messages: "after this many bytes, everything up to this position was sent" (:meth:`Acknowledged.mark`). Neither asks the
kernel. A look (:meth:`Acknowledged.look`, at a save of cursors, at a takeover and at the end) does: it learns how many
of the counted bytes have arrived, moves ``position`` to the last mark among them, and drops these marks. The state goes
from *open* to *lost* when the connection is lost: a last look happens then, while the socket is still open, and no
look after it asks the kernel. Bytes that are not known to have arrived count as not arrived.

There are three ways to learn how many bytes have arrived:

* TCP on Linux with HTTP/1.1: the kernel counts acknowledged bytes over the connection's life. The stream's bytes, with
  their chunk framing, begin at a known place in the connection (:class:`OverTcp`).
* TCP on Linux with something in between (HTTP/2, TLS, a wrapper that changes the body; a comparison of the counts shows
  it): after each send, the place in the connection where it ends is noted.
* Unix sockets on Linux, TCP on macOS: the kernel says how many bytes are outstanding (:class:`Outstanding`).
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .. import compat

#: What moves the cursor of a connected subscription: acks, acknowledged bytes, or bytes passed to the server.
Delivery = Literal["explicit", "tcp-acknowledged", "handed-over"]

#: The most marks of a stream, of 16 bytes each. If a peer accepts no data, small sends would make more of them: one for
#: each send in the buffers, which hold megabytes. Then every second mark is dropped, so that after a reconnect a few
#: more messages are sent again.
MAX_MARKS = 4096

#: The pauses before each of the last looks at the end of a stream, in seconds. A peer may delay its acknowledgement by
#: 0.04 s (Linux; 0.2 s elsewhere), and the round trip takes time.
LAST_LOOKS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15)

#: How long HTTP/2 bytes may wait in the server before their place in the connection is noted, in seconds.
HELD_SECONDS = 0.01


class Acknowledged(ABC):
    """What has arrived of one stream. Everything up to the message id ``position`` has arrived."""

    def __init__(self, transport: asyncio.Transport, beneath: asyncio.Transport) -> None:
        self.position = 0
        #: Whether it can be known: a wrapper between the stream and the server may hold bytes back.
        self.known = True
        #: Whether the connection is lost. The socket must not be used then: its descriptor may belong to another.
        self.lost = False
        self._count = 0
        #: Bytes that were passed to the server while the connection was closing; they are the last ones.
        self._dropped = 0
        #: Whether the next mark needs more than storing it.
        self._attends = False
        #: Marks that have not arrived: byte counts, and the position of each. Arrays, since the garbage collector would
        #: have to scan ten thousand lists.
        self._counts = array("q")
        self._positions = array("q")
        self._transport = transport
        self._beneath = beneath
        self._sock: socket.socket = transport.get_extra_info("socket")
        self._undo: Callable[[], None] | None = None

    def watch(self) -> None:
        """Arrange a last look when the connection is lost. Raises ``TypeError`` if that is not possible."""
        self._undo = compat.when_lost(self._beneath, self._when_lost)

    def sent(self, size: int) -> None:
        """Count bytes of the body that were passed to the server in one send."""
        self._count += size
        if self._transport.is_closing():
            self._dropped += size

    def mark(self, position: int) -> None:
        """Set a mark: the bytes sent so far include every message up to this position."""
        self._counts.append(self._count)
        self._positions.append(position)
        if self._attends or len(self._counts) > MAX_MARKS:
            self._marked()

    def look(self) -> bool:
        """Learn what has arrived; returns whether every mark has."""
        if self._counts and not self.lost:
            try:
                arrived = self._arrived()
            except (OSError, ValueError):
                arrived = 0
            self._take(arrived)
        return not self._counts

    def rewind(self, position: int) -> None:
        """Lower all positions: the log ends here now, and its later ids are void."""
        self.position = min(self.position, position)
        self._positions = array("q", [min(each, position) for each in self._positions])

    async def last_looks(self) -> None:
        """Wait a moment for the last bytes to arrive."""
        for pause in LAST_LOOKS:
            if self.look() or self.lost:
                return
            await asyncio.sleep(pause)

    def close(self) -> None:
        """Stop watching the connection; called after the last look."""
        if self._undo is not None:
            self._undo()
        self.lost = True

    def _take(self, arrived: int) -> None:
        index = bisect_right(self._counts, arrived)
        if index:
            self.position = max(self.position, self._positions[index - 1])
            del self._counts[:index], self._positions[:index]

    def _when_lost(self, error: Exception | None) -> None:
        try:
            self._take(self._arrived_at_end(error))
        except (OSError, ValueError):
            pass
        self.lost = True

    def _marked(self) -> None:
        """Handle a mark that needs more than storing it: for instance, drop marks if there are too many."""
        if len(self._counts) > MAX_MARKS:
            self.look()
            if len(self._counts) > MAX_MARKS // 2:
                del self._counts[-2::-2], self._positions[-2::-2]

    @abstractmethod
    def _arrived(self) -> int:
        """How many of the counted bytes have arrived. Raises ``OSError``."""

    @abstractmethod
    def _arrived_at_end(self, error: Exception | None) -> int:
        """The same when the connection is lost. The server's buffers are empty then, whether they were sent or not."""


class OverTcp(Acknowledged):
    """Uses the kernel's count of acknowledged bytes. Make it after the head of the response has been sent."""

    def __init__(
        self, transport: asyncio.Transport, beneath: asyncio.Transport, held: Callable[[], int | None], chunked: bool
    ) -> None:
        super().__init__(transport, beneath)
        self._held = held
        #: The place of the stream's first byte in the connection.
        self._base = 0
        # The count is compared with the kernel's after the first send and after each look.
        self._attends = True
        #: Pairs of byte counts and places in the connection, if the places are not simply ``_base`` plus the counts.
        self._places: tuple[array[int], array[int]] | None = None
        self._through = 0
        #: How many of the counted bytes are chunk framing.
        self._framing = 0
        self._timer: asyncio.TimerHandle | None = None
        written = self._written()
        if chunked and written is not None:
            self._base = written
        else:
            self._places = array("q"), array("q")

    def sent(self, size: int) -> None:
        if self._places is not None:
            super().sent(size)
        elif size:
            # A chunk: its size in hexadecimal digits, CRLF, the bytes, CRLF.
            framing = ((size.bit_length() + 3) >> 2) + 4
            self._framing += framing
            self._count += size + framing

    def _marked(self) -> None:
        super()._marked()
        if self._places is None:
            self._check()
        elif not self._note() and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HELD_SECONDS, self._note_later)

    def close(self) -> None:
        super().close()
        if self._timer is not None:
            self._timer.cancel()

    def _written(self) -> int | None:
        """The place in the connection where the written bytes end; ``None`` while bytes are being acknowledged."""
        for _ in range(3):
            before = compat.bytes_acknowledged(self._sock)
            waiting = compat.bytes_outstanding(self._sock)
            if compat.bytes_acknowledged(self._sock) == before:
                return before + waiting + self._beneath.get_write_buffer_size()
        return None

    def _check(self) -> None:
        """Check that the connection has exactly the counted bytes; if not, switch to noting places."""
        if self._transport.is_closing() or self.lost:
            return
        try:
            written = self._written()
        except (OSError, ValueError):
            return
        if written is None:
            return
        self._attends = False
        counted = self._base + self._count
        if written < counted - self._framing:
            # A wrapper compresses the body and holds its end back.
            self.known = False
        elif written != counted:
            # Something in between changes the size, but every counted byte has been written by now.
            self._attends = True
            self._places = array("q", [self._count]), array("q", [written])

    def _note_later(self) -> None:
        self._timer = None
        self._note()

    def _note(self) -> bool:
        """Note the place in the connection where the counted bytes end; returns whether the server holds none back."""
        assert self._places is not None
        if self._transport.is_closing() or self.lost:
            return True
        held = self._held()
        try:
            written = None if held is None else self._written()
        except (OSError, ValueError):
            return True
        if written is None or held is None:
            return False
        count = self._count - self._dropped - held
        counts, places = self._places
        if not counts or counts[-1] < count:
            counts.append(count)
            places.append(written)
        if len(counts) > MAX_MARKS:
            del counts[-2::-2], places[-2::-2]
        return held == 0

    def _arrived(self) -> int:
        self._attends = True
        if self._places is not None:
            self._note()
        return self._arrived_at_end(None)

    def _arrived_at_end(self, error: Exception | None) -> int:
        acknowledged = compat.bytes_acknowledged(self._sock)
        if self._places is None:
            return acknowledged - self._base
        counts, places = self._places
        index = bisect_right(places, acknowledged)
        if index:
            self._through = counts[index - 1]
            del counts[:index], places[:index]
        return self._through


class Outstanding(Acknowledged):
    """Uses the number of bytes that are outstanding in the kernel and in the server.

    Chunk framing is not counted, but is part of the outstanding bytes: so a few messages count as not arrived that
    have. When the peer's process dies, the kernel discards what it had not read, and no longer says how much that was.
    """

    def __init__(self, transport: asyncio.Transport, beneath: asyncio.Transport) -> None:
        super().__init__(transport, beneath)
        compat.bytes_outstanding(self._sock)
        self._through = 0

    def _arrived(self) -> int:
        found = self._arrived_at_end(None)
        if self._transport.is_closing() or compat.has_hung_up(self._sock):
            return self._through
        self._through = found
        return found

    def _arrived_at_end(self, error: Exception | None) -> int:
        if error is not None:
            return self._through
        waiting = compat.bytes_outstanding(self._sock) + self._beneath.get_write_buffer_size()
        return max(self._through, self._count - self._dropped - waiting)


def of(scope: Mapping[str, Any]) -> Acknowledged | None:
    """An object that learns what has arrived of the response to this request; ``None`` if that is not possible.

    Call this after the head of the response has been sent, and before its body.
    """
    transport = compat.transport_of(scope)
    sock = None if transport is None else transport.get_extra_info("socket")
    if transport is None or sock is None or transport.is_closing():
        return None
    beneath = transport
    held = compat.held_back(scope)
    chunked = not compat.is_multiplexed(scope)
    if transport.get_extra_info("sslcontext") is not None:
        tls = compat.beneath_tls(transport)
        if tls is None:
            return None
        beneath, chunked, held = tls, False, _held_by_tls(transport, held)
    try:
        found: Acknowledged
        if compat.LINUX and sock.family in (socket.AF_INET, socket.AF_INET6):
            found = OverTcp(transport, beneath, held, chunked)
        elif chunked:
            found = Outstanding(transport, beneath)
        else:
            return None
        found.watch()
    except (OSError, TypeError, ValueError):
        return None
    return found


def _held_by_tls(transport: asyncio.Transport, held: Callable[[], int | None]) -> Callable[[], int | None]:
    """Add TLS to ``held``: its buffer has encrypted bytes, so the number of ours is known only if it is empty."""
    return lambda: held() if transport.get_write_buffer_size() == 0 else None
