"""Active subscriptions: which subscriber holds each one, and its cursor until the file has it.

A subscriber's cursor is saved only while it holds the subscription, and only up to the position that its machine has
acknowledged (:mod:`.asgi.acknowledged`). This module runs no SQL: the broker brings it what the file says.

Theory of operation, across all server processes on one file. A subscription is *free* or *held*, by one subscriber of
one process, under a *claim*: a number that the file gives out and that only grows. A newer claim supersedes an older
one.

- Opening a subscriber writes a claim (:mod:`.storage.subscriptions`). Then :meth:`ActiveSubscriptions.enter` ends the
  older subscriber of this process, :meth:`ActiveSubscriptions.begin` makes the new one the holder, and
  :meth:`ActiveSubscriptions.leave` saves its cursor and frees the subscription.
- :meth:`ActiveSubscriptions.see` brings the claims of other processes, always before the messages that were committed
  after them: with each refresh of the hub, and with each page of the log. So an older subscriber receives no message
  that was committed after a newer one began. Its cursor is saved under its claim, which the file then refuses.
- If the file could not be written (a full disk, a long lock), a subscriber begins under the file's newest claim,
  whichever it is, and is *waiting* for its own (:attr:`ActiveSubscriptions.waiting`). Maintenance writes that later
  and calls :meth:`ActiveSubscriptions.claimed`; until then the cursor is not saved.
- :meth:`ActiveSubscriptions.learn` compares the rows from time to time: it ends subscribers whose rows were deleted or
  changed by SQL, and marks claims that SQL has overwritten as waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..asgi.acknowledged import Delivery
from ..core.events import Changed, Superseded
from ..live.subscriber import Subscriber
from ..storage.subscriptions import Claim, Save, State, Subscription
from .batcher import Batcher


class ActiveSubscriptions:
    """The subscribers of one database that hold a subscription, by the subscription's id."""

    def __init__(self, batcher: Batcher, name: str) -> None:
        self._batcher = batcher
        #: The name of this database in this process, for the column ``holder`` of the subscriptions that it holds.
        self.name = name
        #: The newest claim of the file that :meth:`see` was given.
        self.seen = 0
        #: The claim under which each subscription is held, including by a subscriber that is about to begin.
        self._claims: dict[int, int] = {}
        #: The turn of the subscriber under whose claim each subscription is held.
        self._turns: dict[int, int] = {}
        #: Subscriptions whose claim is not written yet, with the claim that must be the newest then; ``None``: any.
        self._waiting: dict[int, int | None] = {}
        self._streams: dict[int, Subscriber] = {}
        #: The channels of each subscription, as text, when its subscriber was opened.
        self._reads: dict[int, str] = {}
        #: Subscribers whose row differed at the last look. A client that connects with other channels changes the row
        #: just before it takes over, so a difference counts only if the next look finds it again.
        self._differing: set[Subscriber] = set()
        #: Subscriptions with an automatic cursor, and the number of sends when it was last saved; -1 if not all of
        #: them had arrived then.
        self._automatic: dict[int, int] = {}
        #: Subscriptions with explicit acks and a filter, or a subscriber that was ahead when it began; and the cursor
        #: that was last saved for them.
        self._filtered: dict[int, int] = {}
        #: The state of each row at the last look.
        self._states: dict[int, str] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._streams

    @property
    def ids(self) -> list[int]:
        """The subscriptions that are held now."""
        return list(self._streams)

    @property
    def waiting(self) -> dict[int, int | None]:
        """The subscriptions whose claim is not written yet, for :func:`.storage.subscriptions.claim_late`."""
        return dict(self._waiting)

    def behind(self, claims: int) -> bool:
        """Whether the file has claims that :meth:`see` was not given and that may supersede a subscriber."""
        return bool(self._claims) and claims != self.seen

    def delivery(self, number: int) -> Delivery | None:
        """What moves the cursor of a subscription; ``None`` while no subscriber is connected."""
        stream = self._streams.get(number)
        return None if stream is None else stream.delivery

    def enter(self, subscription: Subscription) -> None:
        """Prepare for a subscriber that has claimed the subscription: end the one that holds it in this process.

        An automatic cursor continues after the messages that have arrived over the older connection, unless another
        process held the subscription in between. Messages that were still in transit are sent again.

        The answers of two writes may come in another order than the writes: one whose claim is older than that of the
        holder enters too late, and :meth:`begin` ends it.
        """
        number, claim, previous = subscription.id, subscription.claim, subscription.previous
        if subscription.turn < self._turns.get(number, 0):
            return
        if subscription.new:
            # In a file of an earlier version, it may have the id of a subscription that was deleted by SQL.
            self.drop(number)
        arrived = self._batcher.newest_cursor(number, previous)
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.stop(Superseded())
            if number in self._automatic and self._claims[number] == previous:
                arrived = max(arrived, stream.finished()[0])
        self._forget(number)
        self._claims[number] = claim
        self._turns[number] = subscription.turn
        if subscription.holder != self.name:
            self._waiting[number] = claim
        if arrived:
            self._batcher.move_cursor(number, Save(claim, arrived))

    def begin(self, subscription: Subscription, stream: Subscriber, automatic: bool) -> None:
        """Make a subscriber the holder, unless another one has claimed the subscription after :meth:`enter`."""
        number = subscription.id
        if self._turns.get(number) != subscription.turn:
            stream.stop(Superseded())
            return
        self._streams[number] = stream
        self._reads[number] = subscription.reads
        if automatic:
            self._automatic[number] = stream.sends
        elif subscription.selector.filter or stream.ahead:
            self._filtered[number] = subscription.cursor

    def resumed(self, subscription: Subscription, position: int) -> None:
        """Save the position at which a subscriber with explicit acks resumes: it counts as an ack."""
        if self._turns.get(subscription.id) == subscription.turn:
            self._batcher.move_cursor(subscription.id, Save(self._claims[subscription.id], position))

    def leave(self, subscription: Subscription, stream: Subscriber | None) -> None:
        """Free the subscription of a subscriber that has ended, or never began (``None``), and save its cursor."""
        number = subscription.id
        if self._streams.get(number) is not stream or number not in self._claims:
            return
        if stream is None and self._turns[number] != subscription.turn:
            return
        arrived = 0
        if stream is not None and number in self._automatic:
            arrived = stream.finished()[0]
        elif stream is not None and number in self._filtered:
            arrived = stream.passed
        claim = self._claims[number]
        self._forget(number)
        self._batcher.move_cursor(number, Save(claim, arrived, release=True))

    def drop(self, number: int) -> None:
        """End the subscriber of a subscription that was deleted or claimed elsewhere; its cursor is not saved."""
        self._batcher.forget_cursor(number)
        stream = self._streams.get(number)
        self._forget(number)
        if stream is not None:
            stream.stop(Superseded())

    def _forget(self, number: int) -> None:
        for known in (
            self._streams,
            self._claims,
            self._turns,
            self._waiting,
            self._reads,
            self._automatic,
            self._filtered,
            self._states,
        ):
            known.pop(number, None)

    def acknowledged(self, number: int, cursor: int) -> None:
        """Tell the subscriber that every message up to this cursor is acknowledged."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.acknowledged(cursor)

    def save(self) -> None:
        """Save the automatic cursors of subscribers that were sent something since the last save.

        It also saves those of subscribers that had not received everything then. The others need no save: there is no
        message for them after their saved cursor.
        """
        for number, before in self._automatic.items():
            stream = self._streams[number]
            if stream.sends != before:
                sends = stream.sends
                finished, everything = stream.finished()
                self._automatic[number] = sends if everything else -1
                self._batcher.move_cursor(number, Save(self._claims[number], finished))
        for number, saved in self._filtered.items():
            # Nobody acknowledges what a filter has left out, or what the subscriber has had from another copy.
            passed = self._streams[number].passed
            if passed > saved:
                self._filtered[number] = passed
                self._batcher.move_cursor(number, Save(self._claims[number], passed))

    def save_quiet(self, numbers: Collection[int]) -> None:
        """Save those of these cursors that are automatic, even though nothing was sent."""
        for number in numbers:
            if number in self._automatic:
                self._batcher.move_cursor(number, Save(self._claims[number], self._streams[number].finished()[0]))

    def see(self, newest: int, claims: Iterable[Claim]) -> None:
        """Process new claims, and the number of the newest: end subscribers that other processes have superseded."""
        if newest < self.seen:
            # The file was restored from a backup, which has no claims of these subscribers.
            self._waiting.update(dict.fromkeys(self._streams))
        self.seen = newest
        for claim in claims:
            self.see_one(claim)

    def see_one(self, claim: Claim) -> None:
        """Process the newest claim of one subscription."""
        number = claim.number
        if claim.claim <= self._claims.get(number, claim.claim) or self._waiting.get(number, 0) is None:
            return
        if claim.holder != self.name:
            self.drop(number)
        elif number in self._waiting:
            # The claim was written, although the write was reported as failed.
            self.claimed({number: self._waiting[number]}, {number: claim.claim})
        elif number in self._streams:
            # A newer subscriber of this process has claimed it; :meth:`enter` is about to be called.
            self._streams[number].stop(Superseded())

    def claimed(self, asked: Mapping[int, int | None], done: Mapping[int, int]) -> None:
        """Process the claims that were written for :attr:`waiting`. If one is missing, a newer claim came first."""
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
            if number in self._filtered:
                self._filtered[number] = 0

    def learn(self, asked: Collection[int], states: Mapping[str, str]) -> None:
        """Process changes that SQL made to the rows: moved cursors, other channels, deleted rows."""
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
        """Act if the row does not name this subscriber as the holder. ``again``: it did not at the last look either."""
        mine = self._claims[number]
        if number in self._waiting or (state.claim, state.holder) == (mine, self.name):
            return
        if state.holder != self.name and state.claim > mine:
            self.drop(number)
        elif not again:
            # It was written a moment ago; its effect may be on the way to this method.
            self._differing.add(stream)
        else:
            self._waiting[number] = state.claim
