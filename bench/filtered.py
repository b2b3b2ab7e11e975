"""Filtered subscribers: filters of the server, against the same filtered by each subscriber itself."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from measures import Sizes, Values, server_of_new_file, wait_idle
from server import Server
from subscribers import connect, wait_ready
from targets import http_request

#: Every subscriber wants one of so many kinds of messages; so many different filters there are.
KINDS = 100

#: Messages in one publish.
BATCH = 100

#: How often the subscribers' own filtering is timed, in messages.
TIMED_MESSAGES = 20_000

#: In the last message, which all filters let through; as JSON writes it in JSON.
LAST = b'\\"last\\"'


def payload(number: int) -> str:
    """One message, of about 100 bytes."""
    return json.dumps({"kind": number % KINDS, "number": number, "text": "x" * 60}, separators=(",", ":"))


def wants(kind: int) -> Callable[[dict[str, Any]], bool]:
    """What a subscriber that filters for itself does with each message."""

    def passes(message: dict[str, Any]) -> bool:
        found = json.loads(message["payload"])
        return found.get("kind") == kind or "last" in found

    return passes


def request(database: str, kind: int | None) -> bytes:
    """A subscriber's request, with its filter, or for everything."""
    path = f"/{database}/-/pubsub/-/stream?channel=c"
    if kind is not None:
        path += "&filter=" + quote(f"payload ->> '$.kind' = {kind} OR payload ->> '$.last'")
    return http_request("GET", path, {"Accept": "text/event-stream"})


@dataclass
class Subscriber:
    """One socket: how many bytes came, and of the first subscribers the bytes themselves."""

    sock: Any
    keep: bool
    size: int = 0
    end: bytes = b""
    parts: list[bytes] = field(default_factory=list)

    def take(self, data: bytes) -> bool:
        """Whether the last message has come."""
        self.size += len(data)
        if self.keep:
            self.parts.append(data)
        if self.size and not data:
            raise RuntimeError("the stream ended")
        before, self.end = self.end, data[-64:] if len(data) >= 64 else (self.end + data)[-64:]
        return LAST in data or LAST in before + data[:64]

    @property
    def messages(self) -> list[dict[str, Any]]:
        lines = b"".join(self.parts).split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b'data: {"messageId"')]


def deliver(server: Server, count: int, messages: int, filtered: bool) -> tuple[float, int, list[Subscriber]]:
    """CPU seconds of the server, bytes to all subscribers, and the subscribers, of one run."""
    with ExitStack() as stack:
        subscribers: list[Subscriber] = []
        for number in range(count):
            sock = stack.enter_context(
                connect(server.port, request(server.database, number % KINDS if filtered else None))
            )
            # What must be equal is compared for one subscriber of each kind, and of those who get everything for one.
            subscribers.append(Subscriber(sock, number < (KINDS if filtered else 1)))
        wait_ready([subscriber.sock for subscriber in subscribers])
        wait_idle(server)
        before = server.cpu_seconds()
        publisher = threading.Thread(target=publish_all, args=(server, messages))
        publisher.start()
        poll = select.epoll()
        waiting = {subscriber.sock.fileno(): subscriber for subscriber in subscribers}
        for number in waiting:
            poll.register(number, select.EPOLLIN)
        end = time.monotonic() + 3_600
        while waiting:
            if time.monotonic() > end:
                raise RuntimeError(f"{len(waiting)} subscribers have not received everything")
            for number, _ in poll.poll(1):
                if number in waiting and waiting[number].take(waiting[number].sock.recv(1 << 20)):
                    poll.unregister(number)
                    del waiting[number]
        poll.close()
        publisher.join()
        return server.cpu_seconds() - before, sum(subscriber.size for subscriber in subscribers), subscribers


def publish_all(server: Server, messages: int) -> None:
    for start in range(0, messages, BATCH):
        server.publish("c", *(payload(number) for number in range(start, min(start + BATCH, messages))))
    server.publish("c", json.dumps({"last": True}))


def filtered(folder: Path, sizes: Sizes) -> Values:
    """CPU seconds of the server, and of it and its subscribers together, and MB to these; with filters and without.

    A subscriber decodes what it receives; without a filter of the server, it decodes the payload as well, and decides.

    Raises if a subscriber with a filter received anything else than one that has filtered for itself.
    """
    values: Values = {
        name: [] for name in ("cpu_filtered", "cpu_all", "both_filtered", "both_all", "mb_filtered", "mb_all")
    }
    for repeat in range(sizes.filtered_repeats):
        by: dict[bool, list[Subscriber]] = {}
        for with_filters in (True, False) if repeat % 2 else (False, True):
            with server_of_new_file(folder, "filtered") as server:
                server.publish("other", "x")  # installs the log
                cpu, size, by[with_filters] = deliver(
                    server, sizes.filtered_subscribers, sizes.filtered_messages, with_filters
                )
            name = "filtered" if with_filters else "all"
            values[f"cpu_{name}"].append(cpu)
            values[f"mb_{name}"].append(size / 1e6)
        everything = by[False][0].messages
        for kind, subscriber in enumerate(by[True][:KINDS]):
            wanted = (
                [message for message in everything if wants(kind)(message)] if kind < 3 or kind == KINDS - 1 else None
            )
            if wanted is not None and [_content(each) for each in subscriber.messages] != [
                _content(each) for each in wanted
            ]:
                raise RuntimeError(f"a filter of the server and the subscriber's own differ, for kind {kind}")
        lines = [json.dumps(message) for message in everything[:TIMED_MESSAGES]]
        began = time.process_time()
        for line in lines:
            wants(0)(json.loads(line))
        each = (time.process_time() - began) / len(lines)
        clients = sizes.filtered_subscribers * len(everything) * each
        values["both_all"].append(values["cpu_all"][-1] + clients)
        values["both_filtered"].append(values["cpu_filtered"][-1] + clients / KINDS)
    return values


def _content(message: dict[str, Any]) -> tuple[str, str]:
    return message["messageId"], message["payload"]
