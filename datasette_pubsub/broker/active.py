"""Who holds which subscription: one live stream each, and its cursor on the way to the file.

The law of this module: a cursor of a stream is saved only while that stream
holds the subscription, and only as far as everything before it has arrived at
the reader's machine (:mod:`.asgi.acknowledged`), or was told. It knows no SQL; what
the file says of the rows is brought to it.

Theory of operation, across all server processes on one file. Opening a stream
claims its subscription in the file (:mod:`.storage.subscriptions`); then :meth:`ActiveSubscriptions.enter`
ends the older stream of this process, and :meth:`ActiveSubscriptions.begin` takes the new one in.
Claims of other processes are brought by :meth:`ActiveSubscriptions.see`, always before the
messages that were committed after them: by whoever brings new messages to the hub, and
with every page that a stream reads from the log. So once a newer subscriber has begun,
an older one anywhere is given no message that was committed since. Its cursor is saved
by its claim, which the file refuses from then on. :meth:`ActiveSubscriptions.learn` looks at the
rows themselves now and then, and claims again what somebody has overwritten.

Where the file could not be written (a full disk, a long lock), a stream begins under
the newest claim that the file has, whosever that is, and waits for a claim of its own
(:attr:`ActiveSubscriptions.waiting`). Its cursor is not saved until it has one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..asgi.acknowledged import Delivery
from ..core.events import Changed, Superseded
from ..live.subscriber import Subscriber
from ..storage.subscriptions import Claim, Save, State, Subscription
from .batcher import Batcher


class ActiveSubscriptions:
    """The streams of one database that hold a subscription, by the subscription's id."""

    def __init__(self, batcher: Batcher, name: str) -> None:
        self._batcher = batcher
        #: What this process, or rather this database in it, is called in the rows of subscriptions that it holds.
        self.name = name
        #: The newest claim of the file that has been brought here.
        self.seen = 0
        #: By which claim each subscription is held, also by a stream that is about to begin.
        self._claims: dict[int, int] = {}
        #: Whose claim is to be written yet, and which one must be the newest then; ``None``: whichever it is.
        self._waiting: dict[int, int | None] = {}
        self._streams: dict[int, Subscriber] = {}
        #: What each of them was opened to read, as it stood in its row.
        self._reads: dict[int, str] = {}
        #: Streams whose row read something else at the last look. A reader that names other channels
        #: changes its row too, just before it takes over: so only what is still so at the next look counts.
        self._differing: set[Subscriber] = set()
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

    @property
    def waiting(self) -> dict[int, int | None]:
        """Those that have a stream and no claim in the file, for :func:`.storage.subscriptions.claim_late`."""
        return dict(self._waiting)

    def behind(self, claims: int) -> bool:
        """Whether a claim up to this one may end a stream and has not been brought here."""
        return bool(self._claims) and claims != self.seen

    def delivery(self, number: int) -> Delivery | None:
        """What moves the cursor of a subscription; ``None`` while nobody is connected."""
        stream = self._streams.get(number)
        return None if stream is None else stream.delivery

    def enter(self, subscription: Subscription) -> None:
        """A stream is about to begin that has claimed the subscription: end the one that holds it here.

        An automatic cursor goes on after what has arrived over the older connection, unless another process had the
        subscription in between. What was on the way there comes again.
        """
        number, claim, previous = subscription.id, subscription.claim, subscription.previous
        arrived = self._batcher.newest_cursor(number, previous)
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.stop(Superseded())
            if number in self._automatic and self._claims[number] == previous:
                arrived = max(arrived, stream.finished()[0])
        self._forget(number)
        self._claims[number] = claim
        if subscription.holder != self.name:
            self._waiting[number] = claim
        if arrived:
            self._batcher.move_cursor(number, Save(claim, arrived))

    def begin(self, subscription: Subscription, stream: Subscriber, automatic: bool) -> None:
        """A stream holds the subscription from here on, unless another has claimed it after :meth:`enter`."""
        number = subscription.id
        if number in self._streams or self._claims.get(number) != subscription.claim:
            stream.stop(Superseded())
            return
        self._streams[number] = stream
        self._reads[number] = subscription.reads
        if automatic:
            self._automatic[number] = stream.sends

    def resumed(self, subscription: Subscription, position: int) -> None:
        """A reader that acks has said where it goes on, which is an ack."""
        if self._claims.get(subscription.id) == subscription.claim:
            self._batcher.move_cursor(subscription.id, Save(subscription.claim, position))

    def leave(self, subscription: Subscription, stream: Subscriber | None) -> None:
        """A stream has ended, or never began (``None``): its cursor is saved, and nobody holds the subscription."""
        number = subscription.id
        if self._streams.get(number) is not stream or number not in self._claims:
            return
        if stream is None and self._claims[number] != subscription.claim:
            return
        arrived = stream.finished()[0] if stream is not None and number in self._automatic else 0
        claim = self._claims[number]
        self._forget(number)
        self._batcher.move_cursor(number, Save(claim, arrived, release=True))

    def drop(self, number: int) -> None:
        """The subscription is gone, or held elsewhere: its stream ends, and nothing of it is saved."""
        self._batcher.forget_cursor(number)
        stream = self._streams.get(number)
        self._forget(number)
        if stream is not None:
            stream.stop(Superseded())

    def _forget(self, number: int) -> None:
        for known in (self._streams, self._claims, self._waiting, self._reads, self._automatic, self._states):
            known.pop(number, None)

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
                self._batcher.move_cursor(number, Save(self._claims[number], finished))

    def save_quiet(self, numbers: Collection[int]) -> None:
        """Have these cursors written, so far as they are automatic, though nothing was sent."""
        for number in numbers:
            if number in self._automatic:
                self._batcher.move_cursor(number, Save(self._claims[number], self._streams[number].finished()[0]))

    def see(self, newest: int, claims: Iterable[Claim]) -> None:
        """Take in claims, and the number of the file's newest: streams end whose subscriptions are held elsewhere."""
        if newest < self.seen:
            # The file was restored from a backup, which knows nothing of these streams.
            self._waiting.update(dict.fromkeys(self._streams))
        self.seen = newest
        for claim in claims:
            self.see_one(claim)

    def see_one(self, claim: Claim) -> None:
        """Take in who claimed one subscription last."""
        number = claim.number
        if claim.claim <= self._claims.get(number, claim.claim) or self._waiting.get(number, 0) is None:
            return
        if claim.holder != self.name:
            self.drop(number)
        elif number in self._waiting:
            # Written after all, though the answer was that it was not.
            self.claimed({number: self._waiting[number]}, {number: claim.claim})
        elif number in self._streams:
            # A stream of this process, about which the event loop hears in a moment: :meth:`enter` does the rest.
            self._streams[number].stop(Superseded())

    def claimed(self, asked: Mapping[int, int | None], done: Mapping[int, int]) -> None:
        """Claims have been written of those that were :attr:`waiting`; without one, another was there first."""
        for number, expected in asked.items():
            if number not in self._waiting or self._waiting[number] != expected:
                continue
            if number not in done:
                self.drop(number)
                continue
            del self._waiting[number]
            self._claims[number] = done[number]
            if number in self._automatic:
                self._automatic[number] = -1

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
            self._check_claim(number, stream, state, stream in differed)
            if number not in self._automatic:
                stream.acknowledged(state.cursor)

    def _check_claim(self, number: int, stream: Subscriber, state: State, again: bool) -> None:
        """Whether the row says that this stream holds the subscription. ``again``: nor did it at the last look."""
        mine = self._claims[number]
        if number in self._waiting or (state.claim, state.holder) == (mine, self.name):
            return
        if state.holder != self.name and state.claim > mine:
            self.drop(number)
        elif not again:
            # Written a moment ago: what comes of it is on its way here.
            self._differing.add(stream)
        else:
            self._waiting[number] = state.claim
