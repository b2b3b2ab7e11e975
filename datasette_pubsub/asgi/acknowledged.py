"""How far the peer's machine has acknowledged what a stream was sent.

A cursor that followed what was handed to the server would pass messages that wait in buffers on this side, and that
are lost when the connection's other end is gone without a word.

Theory of operation. The sender counts bytes (:meth:`Acknowledged.sent`), and the stream sets a mark after messages:
"so many bytes, then everything up to this position has been handed over" (:meth:`Acknowledged.mark`). Neither asks
the kernel anything. Only a look (:meth:`Acknowledged.look`: at a save of cursors, a takeover, the end) does: it learns
how many of the counted bytes have arrived, and takes the marks up to there. A last look is made by itself when the
connection is lost, while the socket is still open. What is not known counts as not arrived.

How many have arrived is learned in one of these ways:

* TCP on Linux, HTTP/1.1: the kernel counts acknowledged bytes over the connection's life. The stream's bytes, with
  their chunk framing, begin at a known place of it (:class:`OverTcp`).
* TCP on Linux, where something else stands between (HTTP/2, TLS, a wrapper that changes the body; noticed by
  comparing): after each send it is noted which place of the connection it ends at.
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

#: What moves the cursor of a connected subscription: acks, acknowledged bytes, or what was handed to the server.
Delivery = Literal["explicit", "tcp-acknowledged", "handed-over"]

#: Marks that a stream keeps, at most, of 16 bytes each. A peer that takes nothing would collect more of them when
#: sends are small, one for each send in its buffers, which hold megabytes. Every second one is dropped then, so that
#: a few more messages come again.
MAX_MARKS = 4096

#: Looks at the end of a stream whose last messages may still arrive: pauses before each, in seconds. A peer may
#: acknowledge 0.04 s late (Linux; 0.2 s elsewhere), and the way there and back takes its time.
LAST_LOOKS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15)

#: How long HTTP/2 bytes may wait in the server before it is looked where they came to stand, in seconds.
HELD_SECONDS = 0.01


class Acknowledged(ABC):
    """What has arrived of one stream. ``position`` is the last id up to which everything has."""

    def __init__(self, transport: asyncio.Transport, beneath: asyncio.Transport) -> None:
        self.position = 0
        #: Whether it can be known. What stands between the stream and the server may keep bytes back.
        self.known = True
        #: The connection has been lost, and its socket must not be asked any more: its number may be another's.
        self.lost = False
        self._count = 0
        #: Bytes that were handed over when the connection was being closed, all of them at the end.
        self._dropped = 0
        #: Whether something is to be done at the next mark.
        self._attends = False
        #: Marks that have not arrived: counts of bytes, and the position that each stands for. Not lists: ten thousand
        #: of them would be the garbage collector's business.
        self._counts = array("q")
        self._positions = array("q")
        self._transport = transport
        self._beneath = beneath
        self._sock: socket.socket = transport.get_extra_info("socket")
        self._undo: Callable[[], None] | None = None

    def watch(self) -> None:
        """Have a last look made when the connection is lost. Raises ``TypeError`` where that cannot be had."""
        self._undo = compat.when_lost(self._beneath, self._when_lost)

    def sent(self, size: int) -> None:
        """So many bytes of body have been given to the server in one piece."""
        self._count += size
        if self._transport.is_closing():
            self._dropped += size

    def mark(self, position: int) -> None:
        """With what was sent until now, everything up to this position has been handed over."""
        self._counts.append(self._count)
        self._positions.append(position)
        if self._attends or len(self._counts) > MAX_MARKS:
            self._marked()

    def look(self) -> bool:
        """Learn what has arrived; whether everything that was marked has."""
        if self._counts and not self.lost:
            try:
                arrived = self._arrived()
            except (OSError, ValueError):
                arrived = 0
            self._take(arrived)
        return not self._counts

    def rewind(self, position: int) -> None:
        """The log ends here now: ids beyond have been given back."""
        self.position = min(self.position, position)
        self._positions = array("q", [min(each, position) for each in self._positions])

    async def last_looks(self) -> None:
        """Give what was sent last a moment to arrive."""
        for pause in LAST_LOOKS:
            if self.look() or self.lost:
                return
            await asyncio.sleep(pause)

    def close(self) -> None:
        """The stream has ended; a last look was made."""
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
        """A mark has been set, and something is to be done: there may be too many."""
        if len(self._counts) > MAX_MARKS:
            self.look()
            if len(self._counts) > MAX_MARKS // 2:
                del self._counts[-2::-2], self._positions[-2::-2]

    @abstractmethod
    def _arrived(self) -> int:
        """How many of the counted bytes have. Raises ``OSError``."""

    @abstractmethod
    def _arrived_at_end(self, error: Exception | None) -> int:
        """The same when the connection is lost. Its buffers on this side are empty then, whatever became of them."""


class OverTcp(Acknowledged):
    """By the bytes that the kernel has seen acknowledged. Begins after the head of the response has been sent."""

    def __init__(
        self, transport: asyncio.Transport, beneath: asyncio.Transport, held: Callable[[], int | None], chunked: bool
    ) -> None:
        super().__init__(transport, beneath)
        self._held = held
        #: Where in the connection the stream's first byte stands.
        self._base = 0
        # What is counted is to be compared with what the kernel says, after the first send and after each look.
        self._attends = True
        #: Where counted bytes end in the connection, if that is not simply as far after ``_base``: counts, and places.
        self._places: tuple[array[int], array[int]] | None = None
        self._through = 0
        #: How many of the counted bytes are the framing of chunks.
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
        """Where in the connection what was written until now ends; ``None`` while bytes are being acknowledged."""
        for _ in range(3):
            before = compat.bytes_acknowledged(self._sock)
            waiting = compat.bytes_outstanding(self._sock)
            if compat.bytes_acknowledged(self._sock) == before:
                return before + waiting + self._beneath.get_write_buffer_size()
        return None

    def _check(self) -> None:
        """Whether the connection holds what was counted, and nothing else; if not, do not count any more."""
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
            # A wrapper compresses the body, and holds the end of it back.
            self.known = False
        elif written != counted:
            # Whatever stands between: all that was counted has been written by now.
            self._attends = True
            self._places = array("q", [self._count]), array("q", [written])

    def _note_later(self) -> None:
        self._timer = None
        self._note()

    def _note(self) -> bool:
        """Note where in the connection what was counted until now ends; whether the server holds nothing of it."""
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
    """By the bytes that the kernel and the server have not got rid of.

    Chunk framing is not counted, but is among the outstanding: of messages that are on the way, a few more than
    necessary count as not arrived. When the peer dies, the kernel throws away what it had not read, and no longer
    says how much that was.
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
    """What has arrived of the stream that answers this request; ``None`` where that cannot be known.

    Call it when the head of the response has been sent and nothing of its body.
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
    """TLS has a buffer, too, of encrypted bytes: how many of ours wait in it is known when it is empty."""
    return lambda: held() if transport.get_write_buffer_size() == 0 else None
