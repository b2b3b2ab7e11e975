"""Copies a log into a stream of NATS JetStream in which the sequence number is the message's id.

Theory of operation. Each message is published with the sequence that the stream must have before it. So the stream
takes each message once, in order, from whoever publishes it: two relays on one log are a hot standby, and there is
nothing to be kept between two runs. After a refusal, after a lost answer and at the start, the relay asks for the
stream's last sequence, compares that message with the log's, and goes on from there (:meth:`Relay._matched`).

Where ids and sequences have parted, :class:`.outcomes.Refused` says how; docs/beyond-one-machine.md has the table.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nats.aio.client import Client
from nats.js import api

from . import cursors, logfile
from .cursors import Cursors
from .logfile import LogFile
from .outcomes import AlreadyThere, Locked, Refused, Unmatched
from .record import NotOurs, Record, Trimmed, parse
from .session import Reporter, at_least, beside, version
from .stream import PAGE_BYTES, PAGE_MESSAGES, State, Stream, describe

#: What a message takes beside its payload, at most, in bytes: the server's ``max_payload`` counts the headers too.
#: Channel and key have up to 255 bytes each, three characters for each where they are percent-encoded.
HEADER_BYTES = 2048

#: How often the position is shown in the file, in seconds, while messages are relayed.
SHOW_SECONDS = 1.0

#: How often it is shown that the relay is there, in seconds, while nothing moves.
SEEN_SECONDS = 60.0

#: How long an idle relay waits for a commit before it asks the stream whether it is still as it was, in seconds.
IDLE_SECONDS = 5.0

#: How long one wait for a commit keeps the thread of the file, in seconds.
TURN_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class NewStream:
    """The settings of a stream that the relay makes. ``max_age`` is in seconds; 0 sets no limit."""

    replicas: int = 1
    max_age: float = 0.0
    max_bytes: int = -1


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What a relay does. ``create`` makes the stream if there is none. ``once`` ends at the head of the log."""

    stream: str
    max_payload_bytes: int
    create: NewStream | None = None
    publish_at: str | None = None
    once: bool = False


class Relay:
    """One relay. ``progress`` is called with the position and the head."""

    def __init__(
        self,
        file: LogFile,
        options: RelayOptions,
        reporter: Reporter,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._file = file
        self._options = options
        self._reporter = reporter
        self._progress = progress
        self._shown_at = 0.0
        self._shown = 0
        #: How many messages this process has published.
        self.published = 0

    async def run(self, client: Client) -> None:
        """Relay over one connection; returns only with ``once``. Raises as :func:`.session.sessions` expects."""
        self._check_max_payload(client)
        stream = Stream(client, self._options.stream)
        position = await self._matched(stream, client)
        head = await self._file.run(logfile.head)
        self._reporter.say(f"the stream {stream.name} is at {position}, the log at {head}", about="position")
        if self._options.once:
            await self._relay(stream, client, position)
        else:
            await beside(
                self._relay(stream, client, position), Cursors(self._file, client, stream.name, self._reporter).run()
            )

    async def _relay(self, stream: Stream, client: Client, position: int) -> None:
        limit = PAGE_MESSAGES
        behind = True
        while True:
            version = await self._file.run(logfile.wait_for_commit, -1, 0)
            page = await self._file.run(logfile.page, position, limit, PAGE_BYTES)
            self._progress(position, page.head)
            if page.head < position:
                # A backup was restored into the file.
                position = await self._matched(stream, client)
            if not page.records:
                await self._show(position)
                if behind:
                    behind = False
                    self._reporter.works()
                    self._reporter.say(f"all relayed, up to {position}")
                if self._options.once:
                    return
                if not await self._commit(version):
                    state = await stream.state()
                    if state is None or state.last != position:
                        position = await self._matched(stream, client)
                continue
            self._check_sizes(page.records, client)
            try:
                await stream.publish(page.records)
            except Unmatched:
                before, position = position, await self._matched(stream, client)
                # If the server has taken none of them, the answer to the first one alone says why.
                limit = 1 if position == before else PAGE_MESSAGES
                continue
            self._reporter.works()
            limit = PAGE_MESSAGES
            # A few messages that come while it runs are no change of state.
            behind = behind or len(page.records) >= limit
            self.published += len(page.records)
            position = page.records[-1].id
            if time.monotonic() - self._shown_at > SHOW_SECONDS:
                await self._show(position)

    async def _commit(self, version: int) -> bool:
        """Wait for a commit, at most ``IDLE_SECONDS``; returns whether there was one."""
        end = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < end:
            # In short turns, since others use the file's thread, too.
            if await self._file.run(logfile.wait_for_commit, version, TURN_SECONDS) != version:
                return True
        return False

    async def _show(self, position: int) -> None:
        # A row that is not used for long would count as forgotten.
        if position > self._shown or time.monotonic() - self._shown_at > SEEN_SECONDS:
            # Relaying does not wait for a program that writes for long.
            with contextlib.suppress(Locked):
                await self._file.run_soon(logfile.save_position, self._options.stream, position)
                self._shown = position
            self._shown_at = time.monotonic()

    # -- where the stream is --------------------------------------------------------

    async def _matched(self, stream: Stream, client: Client) -> int:
        """The last sequence of the stream, which is a message of this log. Raises :class:`Refused` if it is not."""
        state = await stream.state()
        if state is None:
            await self._create(stream, client)
            state = await stream.state()
            if state is None:
                raise Refused(f"the stream {stream.name} was deleted")
        self._check_settings(state)
        own = await self._file.run(logfile.instance_id)
        if state.instance_id not in (None, own):
            raise Refused(f"the stream {stream.name} was made from another log")
        # A relay that was not told where to publish leaves what another one has said.
        wanted = describe(own, self._options.publish_at or state.publish_at)
        if self._options.create is not None and state.config.description != wanted:
            await stream.update(replace(state.config, description=wanted))
        if self._options.create is not None and await Stream(client, cursors.stream_name(stream.name)).state() is None:
            with contextlib.suppress(AlreadyThere):
                await stream.create(cursors.settings(stream.name, self._options.create.replicas))
        last = state.last
        found = await stream.message(last) if state.messages else None
        # The head is read after the stream's state: another relay may have published what was committed meanwhile.
        head = await self._file.run(logfile.head)
        theirs: Record | Trimmed | None = None
        if found is not None:
            try:
                theirs = parse(last, *found)
            except NotOurs:
                raise Refused(
                    f"somebody else has published the message {last} of the stream {stream.name}: keep others from "
                    f"it with NATS permissions, and relay to a new stream, made with --create"
                ) from None
        if last > head:
            raise Refused(
                f"the stream {stream.name} is at {last}, ahead of the log, which is at {head}: the stream was made "
                "from another log, or this file was restored from a backup"
            )
        ours = await self._file.run(logfile.row, last)
        if theirs is not None and ours is not None and ours != theirs:
            raise Refused(
                f"the stream {stream.name} was made from another log: its message {last} differs from this one's"
            )
        return last

    async def _create(self, stream: Stream, client: Client) -> None:
        new = self._options.create
        if new is None:
            raise Refused(f"there is no stream {stream.name}: give its name with --stream, or make it with --create")
        first = await self._file.run(logfile.earliest)
        if first > 1 and not at_least(client, 2, 10):
            raise Refused(
                f"retention has removed the messages before {first}, and NATS {version(client)} "
                "cannot make a stream that begins later than 1: 2.10 can"
            )
        own = await self._file.run(logfile.instance_id)
        config = api.StreamConfig(
            name=stream.name,
            description=describe(own, self._options.publish_at),
            subjects=[f"{stream.name}.>"],
            retention=api.RetentionPolicy.LIMITS,
            storage=api.StorageType.FILE,
            num_replicas=new.replicas,
            max_age=new.max_age,
            max_bytes=new.max_bytes,
            first_seq=first if first > 1 else None,
            deny_delete=True,
        )
        # Another relay may have made it meanwhile.
        with contextlib.suppress(AlreadyThere):
            await stream.create(config)
            self._reporter.say(f"made the stream {stream.name}, beginning with {first}")

    # -- what cannot work -------------------------------------------------------------

    def _check_settings(self, state: State) -> None:
        """Refuse a stream that cannot hold a log: each message once, under the sequence at which it was published."""
        config = state.config
        name = self._options.stream
        needed = self._options.max_payload_bytes + HEADER_BYTES
        wrong = None
        if config.subjects != [f"{name}.>"]:
            wrong = f"its subjects are {', '.join(config.subjects or ['none'])} instead of {name}.>"
        elif config.mirror or config.sources:
            wrong = "it copies other streams"
        elif config.retention not in (None, api.RetentionPolicy.LIMITS):
            wrong = f"its retention is {config.retention} instead of limits: it removes what was read"
        elif config.max_msgs_per_subject > 0:
            wrong = "max_msgs_per_subject removes messages from its middle"
        elif config.no_ack:
            wrong = "it answers no publisher (no_ack)"
        elif config.sealed:
            wrong = "it is sealed"
        elif 0 < (config.max_msg_size or -1) < needed:
            wrong = f"max_msg_size is {config.max_msg_size}, and must be {needed} or more"
        if wrong is not None:
            raise Refused(f"the stream {name} cannot hold a log: {wrong}")

    def _check_max_payload(self, client: Client) -> None:
        needed = self._options.max_payload_bytes + HEADER_BYTES
        if client.max_payload < needed:
            raise Refused(
                f"the server takes messages of {client.max_payload} bytes, and this log may have some of {needed}: "
                f"set max_payload: {needed} in the server's file, or a lower max_payload_bytes for this database"
            )

    def _check_sizes(self, records: list[Record | Trimmed], client: Client) -> None:
        """A file may have messages that are older than its present limit; one too large would end the connection."""
        for each in records:
            size = len(each.payload) if isinstance(each, Record) and isinstance(each.payload, bytes) else 0
            if size + HEADER_BYTES > client.max_payload:
                raise Refused(
                    f"the message {each.id} has {size} bytes, more than the server's max_payload of "
                    f"{client.max_payload} takes with its headers"
                )
