"""Who holds which subscription: one live stream each, and its cursor on the way to the file.

The law of this module: a cursor of a stream is saved only while that stream
holds the subscription, and only as far as everything before it has arrived at
the reader's machine (:mod:`.acknowledged`), or was told. It knows no SQL; what
the file says of the rows is brought to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .acknowledged import Delivery
from .batcher import Batcher
from .models import Changed, Superseded
from .stream import Stream
from .subscriptions import State, Subscription


class Holders:
    """The streams of one database that hold a subscription, by the subscription's id."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._streams: dict[int, Stream] = {}
        #: What each of them was opened to read, as it stood in its row.
        self._reads: dict[int, str] = {}
        #: Streams whose row read something else at the last look. A reader that names other channels
        #: changes its row too, just before it takes over: so only what is still so at the next look counts.
        self._differing: set[Stream] = set()
        #: Those of them whose cursor follows the stream, with the sends it had had when it was last saved;
        #: -1 while not all of them had arrived.
        self._automatic: dict[int, int] = {}
        #: What was last seen of each row.
        self._states: dict[int, str] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._streams

    @property
    def ids(self) -> list[int]:
        """The subscriptions that are held now."""
        return list(self._streams)

    def delivery(self, number: int) -> Delivery | None:
        """What moves the cursor of a subscription; ``None`` while nobody is connected."""
        stream = self._streams.get(number)
        return None if stream is None else stream.delivery

    def take_over(self, number: int, position: int, automatic: bool, resumes: bool) -> int:
        """End the stream that holds the subscription; where the next one begins.

        An automatic cursor goes on after what has arrived over the older connection. What was on the way there
        comes again.
        """
        previous = self._streams.pop(number, None)
        if previous is None:
            return position
        self._forget(number)
        previous.stop(Superseded())
        if number in self._automatic:
            del self._automatic[number]
            finished, _ = previous.finished()
            self._batcher.move_cursor(number, finished)
            if automatic and not resumes:
                return max(position, finished)
        return position

    def begin(self, subscription: Subscription, stream: Stream, automatic: bool) -> None:
        """A stream holds the subscription from here on."""
        self._streams[subscription.id] = stream
        self._reads[subscription.id] = subscription.reads
        if automatic:
            self._automatic[subscription.id] = stream.sends

    def leave(self, number: int, stream: Stream) -> None:
        """A stream has ended; its cursor is saved if it still held the subscription."""
        if self._streams.get(number) is stream:
            del self._streams[number]
            self._forget(number)
            if number in self._automatic:
                del self._automatic[number]
                self._batcher.move_cursor(number, stream.finished()[0])

    def drop(self, number: int) -> None:
        """The subscription is gone: its stream ends, and nothing of it is saved."""
        self._batcher.forget_cursor(number)
        self._automatic.pop(number, None)
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._forget(number)
            stream.stop(Superseded())

    def _forget(self, number: int) -> None:
        del self._reads[number]
        self._states.pop(number, None)

    def acknowledged(self, number: int, cursor: int) -> None:
        """The reader of a subscription has finished everything up to here."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.acknowledged(cursor)

    def save(self) -> None:
        """Have the cursors of automatic subscriptions written whose readers were sent something since the last time.

        Or had not got all of it then.
        Where the others stand is of use to nobody: after what they have read, there is nothing for them.
        """
        for number, before in self._automatic.items():
            stream = self._streams[number]
            if stream.sends != before:
                sends = stream.sends
                finished, everything = stream.finished()
                self._automatic[number] = sends if everything else -1
                self._batcher.move_cursor(number, finished)

    def save_quiet(self, numbers: Collection[int]) -> None:
        """Have these cursors written, so far as they are automatic, though nothing was sent."""
        for number in numbers:
            if number in self._automatic:
                self._batcher.move_cursor(number, self._streams[number].finished()[0])

    def learn(self, asked: Collection[int], states: Mapping[str, str]) -> None:
        """Take in what SQL did to the rows: cursors that were moved, other channels to read, rows that are gone."""
        differed, self._differing = self._differing, set()
        for number in asked:
            stream = self._streams.get(number)
            if stream is None:
                continue
            text = states.get(str(number))
            if text is None:
                self.drop(number)
                continue
            if text == self._states.get(number) and stream not in differed:
                continue
            self._states[number] = text
            state = State.of(text)
            if state.reads != self._reads[number]:
                self._differing.add(stream)
                if stream in differed:
                    stream.stop(Changed())
            if number not in self._automatic:
                stream.acknowledged(state.cursor)
