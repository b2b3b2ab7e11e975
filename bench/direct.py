"""The direct send: the server's CPU time with it and without."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measures import Sizes, Values, alternate, server_of_new_file, wait_idle
from server import Server
from subscribers import PAYLOAD, connect, subscribe_request, wait_ready


def direct_send(folder: Path, sizes: Sizes) -> Values:
    """The server's CPU time for each delivery, in microseconds, with the direct send and without.

    The messages are published one by one to many subscribers of one channel. Each message reaches all subscribers
    before the next one is published.
    """
    with ExitStack() as stack:
        measures = []
        for name, on in (("direct", "true"), ("tasks", "false")):
            server = stack.enter_context(server_of_new_file(folder, name, direct_send=on))
            server.publish("all", PAYLOAD)
            request = subscribe_request(server.database, "all", "sse")
            socks = [stack.enter_context(connect(server.port, request)) for _ in range(sizes.direct_subscribers)]
            wait_ready(socks)
            measures.append(_cpu_per_delivery(server, socks, sizes.direct_messages))
        direct, tasks = alternate(sizes.repeats * 2, *measures)
    return {"direct": direct, "tasks": tasks}


def _cpu_per_delivery(server: Server, socks: list[Any], messages: int) -> Callable[[], float]:
    """A measure: the server's CPU time for each delivery, in microseconds."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    by_number = {sock.fileno(): sock for sock in socks}

    def measure() -> float:
        wait_idle(server)
        before = server.cpu_seconds()
        for _ in range(messages):
            server.publish("all", PAYLOAD)
            waiting = set(by_number)
            while waiting:
                for number, _ in poll.poll(20_000):
                    if b"~" in by_number[number].recv(1 << 16):
                        waiting.discard(number)
        return (server.cpu_seconds() - before) / messages / len(socks) * 1e6

    return measure
