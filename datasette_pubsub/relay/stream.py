"""One stream of NATS JetStream, over one connection: its state, its messages, and publishing in a chain.

Reading asks for messages in advance, at most ``PAGE_MESSAGES`` or ``page_bytes``, so memory is bounded whatever the
stream has. The requests are those of a pull consumer
(https://docs.nats.io/reference/reference-protocols/nats_api_reference#fetching-from-a-consumer).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from .outcomes import AlreadyThere, NoJetStream, Refused, Silent, TryAgain, Unmatched
from .record import Record, Trimmed, body, headers, parse, subject

#: The most messages that are asked for in advance, and of one page.
PAGE_MESSAGES = 1000

#: The most bytes of payload of one page, but for one message that is larger.
PAGE_BYTES = 4 * 1024 * 1024

#: How long an answer may take, in seconds.
ANSWER_SECONDS = 10.0

#: A request for messages ends after this long without one, in seconds; then the next one is made.
EXPIRES_SECONDS = 5.0

#: Error codes of JetStream (https://github.com/nats-io/nats-server/blob/main/server/errors.json).
WRONG_LAST_SEQUENCE = 10071
NAME_IN_USE = 10058
NOT_ENABLED = (10039, 10076)

#: How a stream says which log it was made from: its description is the one thing that every version keeps.
_DESCRIPTION = re.compile(r"datasette-pubsub log ([0-9a-f]{32})(?:; publish at (\S+))?")

#: What a name of a stream may be: it is also the first token of its subjects.
STREAM_NAME = re.compile(r"[^\s.*>/\\%]{1,200}")


@dataclass(frozen=True, slots=True)
class State:
    """The state of a stream: its first and last sequence, how many messages it has, and the log it was made from."""

    first: int
    last: int
    messages: int
    instance_id: str | None
    publish_at: str | None
    config: api.StreamConfig


class Raw(NamedTuple):
    """One message of a stream. ``newest`` is the newest sequence that the stream had when it was sent."""

    sequence: int
    newest: int
    nanoseconds: int
    message: Msg

    def record(self) -> Record | Trimmed:
        """The message of the log. Raises :class:`.record.NotOurs`."""
        return parse(self.sequence, self.message.headers, self.message.data)


def describe(instance_id: str, publish_at: str | None) -> str:
    """The description of a stream that is made from this log."""
    return f"datasette-pubsub log {instance_id}" + (f"; publish at {publish_at}" if publish_at else "")


class _Inbox:
    """What arrives on one subject. (``next_msg`` of nats-py starts a task for each message.)"""

    def __init__(self) -> None:
        self.messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()

    async def take(self, message: Msg) -> None:
        """Take one message; the client calls this."""
        self.messages.append(message)
        self._arrived.set()

    async def wait(self, seconds: float) -> None:
        """Wait until there is a message. Raises :class:`Silent`."""
        while not self.messages:
            self._arrived.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()
            except TimeoutError as error:
                raise Silent("the server does not answer") from error


class Stream:
    """A stream of this name, over one connection."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._js = client.jetstream(timeout=ANSWER_SECONDS)
        self._answers: _Inbox | None = None
        self._reply = client.new_inbox()

    # -- state ------------------------------------------------------------------

    async def state(self) -> State | None:
        """The state of the stream; ``None`` if there is no such stream."""
        try:
            info = await self._js.stream_info(self.name)
        except NotFoundError:
            return None
        except APIError as error:
            raise _explained(error) from error
        found = _DESCRIPTION.fullmatch(info.config.description or "")
        return State(
            info.state.first_seq,
            info.state.last_seq,
            info.state.messages,
            found[1] if found else None,
            found[2] if found else None,
            info.config,
        )

    async def create(self, config: api.StreamConfig) -> None:
        """Make the stream. Raises :class:`Refused` if the server cannot, and :class:`AlreadyThere`."""
        try:
            await self._js.add_stream(config)
        except APIError as error:
            if error.err_code == NAME_IN_USE:
                raise AlreadyThere from error
            raise _explained(error) from error

    async def update(self, config: api.StreamConfig) -> None:
        """Change the stream's settings."""
        try:
            await self._js.update_stream(config)
        except APIError as error:
            raise _explained(error) from error

    async def message(self, sequence: int) -> tuple[dict[str, str] | None, bytes] | None:
        """The headers and the body of one message; ``None`` if the stream does not have it."""
        try:
            found = await self._js.get_msg(self.name, sequence)
        except NotFoundError:
            return None
        except APIError as error:
            raise _explained(error) from error
        return found.headers, found.data or b""

    async def has_after(self, sequence: int) -> bool:
        """Whether the stream has a message after this sequence: its last ones may have been deleted."""
        try:
            await self._js.get_msg(self.name, sequence + 1, subject=">", next=True)
        except NotFoundError:
            return False
        except APIError as error:
            raise _explained(error) from error
        return True

    # -- publishing ---------------------------------------------------------------

    async def publish(self, records: Sequence[Record | Trimmed]) -> None:
        """Publish consecutive messages; only the last one asks for an answer, which proves all before it.

        Raises :class:`Unmatched` if the stream has another last sequence than the one before the first of them, and
        :class:`TryAgain` if the server cannot store them now.
        """
        if self._answers is None:
            self._answers = _Inbox()
            await self._client.subscribe(self._reply, cb=self._answers.take)
        last = records[-1]
        for each in records:
            reply = self._reply if each is last else ""
            await self._client.publish(subject(self.name, each), body(each), reply=reply, headers=headers(each))
        await self._answers.wait(ANSWER_SECONDS)
        answer = self._answers.messages.popleft()
        if answer.headers and answer.headers.get("Status") == "503":
            raise TryAgain("no stream takes the messages: was it deleted?")
        found = json.loads(answer.data)
        error = found.get("error")
        if error is None:
            if found.get("seq") != last.id:
                raise Refused(f"the server stored the message {last.id} as {found.get('seq')}")
            return
        if error.get("err_code") == WRONG_LAST_SEQUENCE:
            raise Unmatched(error.get("description", ""))
        raise TryAgain(f"the server does not store messages: {error.get('description')}")

    # -- reading ------------------------------------------------------------------

    async def pages(self, first: int, page_bytes: int = PAGE_BYTES) -> AsyncGenerator[list[Raw], None]:
        """The messages from this sequence on, in order, as they come, for ever; an empty page says: nothing new.

        Raises :class:`TryAgain` when the consumer is lost, with the connection or with the server.
        """
        page_bytes = max(page_bytes, self._client.max_payload + 64 * 1024)
        try:
            consumer = await self._js.add_consumer(
                self.name,
                config=api.ConsumerConfig(
                    deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=first,
                    ack_policy=api.AckPolicy.NONE,
                    inactive_threshold=60.0,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
        except APIError as error:
            raise _explained(error) from error
        subject, inbox = self._client.new_inbox(), _Inbox()
        subscription = await self._client.subscribe(subject, cb=inbox.take)
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{self.name}.{consumer.name}"
        request = json.dumps(
            {"batch": PAGE_MESSAGES, "max_bytes": page_bytes, "expires": int(EXPIRES_SECONDS * 1e9)}
        ).encode()
        asked = False
        left = 0
        try:
            while True:
                if not asked:
                    await self._client.publish(ask, request, reply=subject)
                    asked, left = True, PAGE_MESSAGES
                await inbox.wait(2 * EXPIRES_SECONDS)
                page: list[Raw] = []
                expired = False
                while inbox.messages and len(page) < PAGE_MESSAGES:
                    message = inbox.messages.popleft()
                    if message.headers and "Status" in message.headers and not message.reply:
                        expired = _check_status(message)
                        asked = False
                    else:
                        page.append(_raw(message))
                        left -= 1
                asked = asked and left > 0
                if page or expired:
                    yield page
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()


def _raw(message: Msg) -> Raw:
    """Read the place of a message from its reply subject, which has 9 tokens, or 11 and more with a domain."""
    tokens = message.reply.split(".")
    base = 5 if len(tokens) == 9 else 7
    sequence = int(tokens[base])
    return Raw(sequence, sequence + int(tokens[base + 3]), int(tokens[base + 2]), message)


def _check_status(message: Msg) -> bool:
    """Whether a request for messages has ended since there are no more. Raises :class:`TryAgain` if it failed."""
    assert message.headers
    status, text = message.headers["Status"], message.headers.get("Description", "")
    if status in ("404", "408"):
        return True
    if status == "409" and ("MaxBytes" in text or "Batch Completed" in text):
        return False
    raise TryAgain(f"the server ends the reading: {status} {text}")


def _explained(error: APIError) -> Exception:
    """What an error of JetStream means for the command."""
    text = error.description or str(error)
    if error.err_code in NOT_ENABLED:
        return Refused("JetStream is turned off for this account: turn it on (jetstream {} in the server's file)")
    if isinstance(error, ServiceUnavailableError) and error.err_code is None:
        # The server's own answer when nobody has subscribed to the subject of a request.
        return NoJetStream("JetStream does not answer: turn it on (jetstream {} in the server's file)")
    if isinstance(error, ServiceUnavailableError) or (error.code or 0) >= 500:
        return TryAgain(f"JetStream: {text}")
    return Refused(f"JetStream: {text}")
