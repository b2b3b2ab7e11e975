"""The latency of single publishes: until they are acknowledged, and until a subscriber has them."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import time
from collections import deque
from dataclasses import dataclass

from loading import SETTLE_SECONDS, RunFailed
from targets import CONNECTION_NUMBER, PAYLOAD, STAMP_FORMAT, Target, stamped_payload

LATENCY_PUBLISHERS = 8  # connections; a request waits for a free one
LATENCY_GRACE = 2.0  # seconds to wait for the last messages
LATENCY_WARMUP = 10  # messages not counted, per repeat


@dataclass
class Publisher:
    connection: socket.socket
    number: int
    answer: bytes = b""
    stamp: int | None = None  # the time at which its outstanding request was due; None while it has none


def describe_percentiles(ordered: list[float]) -> str:
    def at(fraction: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]

    return f"pooled p50 {at(0.5):.2f}  p90 {at(0.9):.2f}  p99 {at(0.99):.2f}  max {ordered[-1]:.2f}  n {len(ordered)}"


def measure_latency(target: Target, rate: int, seconds: float) -> tuple[list[float], list[float], int]:
    """Milliseconds from publish to receive and from publish to ack, and the number of lost messages.

    One thread sends, receives and reads the clock, for every system alike. The time of
    a message that had to wait for a free connection begins when the message was due.
    """
    total = int(rate * seconds)
    with contextlib.ExitStack() as stack:

        def connect(preamble: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", target.port), 5)
            stack.enter_context(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(preamble)
            return connection

        subscriber = connect(target.subscribe("live").replace(CONNECTION_NUMBER.encode(), b"0000"))
        subscriber.recv(1 << 16)  # the server has answered
        sample = target.publish("live", [PAYLOAD], push=True)

        def numbered(request: bytes, number: int) -> bytes:
            return request.replace(CONNECTION_NUMBER.encode(), b"%04d" % number)

        publishers = []
        for number in range(LATENCY_PUBLISHERS):
            connection = connect(numbered(sample.preamble, number))
            publishers.append(Publisher(connection, number))
        time.sleep(SETTLE_SECONDS)
        for connection in (subscriber, *(p.connection for p in publishers)):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.recv(1 << 16)
            connection.setblocking(True)

        by_socket = {p.connection: p for p in publishers}
        free, overdue = deque(publishers), deque[int]()
        received: list[float] = []
        acked: list[float] = []
        pending = b""
        stamp_length = len(STAMP_FORMAT % 0)

        def send(publisher: Publisher, stamp: int) -> None:
            publisher.stamp = stamp
            request = target.publish("live", [stamped_payload(stamp)], push=True).request
            publisher.connection.sendall(numbered(request, publisher.number))

        begin = time.perf_counter_ns() + 50_000_000
        interval = 1_000_000_000 // rate
        sent = 0
        deadline = begin + int((seconds + LATENCY_GRACE) * 1e9)
        sockets = [subscriber, *by_socket]
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        while (len(received) < total or len(acked) < total) and (clock := time.perf_counter_ns()) < deadline:
            due = begin + sent * interval
            if sent < total and clock >= due:
                sent += 1
                if free:
                    send(free.popleft(), time.perf_counter_ns())
                else:
                    overdue.append(due)
                continue
            wait = (due - clock) / 1e9 if sent < total else 0.1
            readable, _, _ = select.select(sockets, [], [], max(0.0, wait))
            for connection in readable:
                data = connection.recv(1 << 16)
                clock = time.perf_counter_ns()
                if not data:
                    raise RunFailed("the server closed a connection")
                if connection is subscriber:
                    pending += data
                    # A stamp is T, 20 digits, E; no other T starts one.
                    at = pending.find(b"T0")
                    while at >= 0 and len(pending) >= at + stamp_length:
                        stamp = pending[at + 1 : at + stamp_length - 1]
                        if stamp.isdigit():
                            received.append((clock - int(stamp)) / 1e6)
                        at = pending.find(b"T0", at + stamp_length)
                    pending = pending[at:] if at >= 0 else pending[-1:]
                    continue
                publisher = by_socket[connection]
                publisher.answer += data
                if publisher.stamp is None or sample.token not in publisher.answer:
                    continue
                acked.append((clock - publisher.stamp) / 1e6)
                publisher.answer, publisher.stamp = b"", None
                if overdue:
                    send(publisher, overdue.popleft())
                else:
                    free.append(publisher)
    return received[LATENCY_WARMUP:], acked[LATENCY_WARMUP:], total - len(received)
