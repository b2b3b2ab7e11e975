"""The frozen heap: Datasette's own pages and single publishes, with it and without."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from measures import Sizes, Values, alternate, publish_rate, server_of_new_file, wait_idle
from server import Server

#: The heap is frozen a second after the start.
SETTLE_SECONDS = 1.5


def freeze_heap(folder: Path, sizes: Sizes) -> Values:
    """Pages a second, one after the other, and publishes of one message a second, with the heap frozen and without."""
    values: Values = {}
    with ExitStack() as stack:
        servers = []
        for name, on in (("frozen", "true"), ("ordinary", "false")):
            server = stack.enter_context(server_of_new_file(folder, name, freeze_heap=on))
            server.publish("all", "x")
            servers.append(server)
        time.sleep(SETTLE_SECONDS)
        pages = alternate(sizes.repeats, *(_pages(server, sizes.live_pages * 3) for server in servers))
        single = alternate(sizes.repeats, *(_publishes(server, sizes.load_requests * 2) for server in servers))
    values["pages_frozen"], values["pages_ordinary"] = pages
    values["single_frozen"], values["single_ordinary"] = single
    return values


def _pages(server: Server, times: int) -> Callable[[], float]:
    """A measure: pages of the database a second."""

    def measure() -> float:
        wait_idle(server)
        begin = time.perf_counter()
        for _ in range(times):
            with urllib.request.urlopen(f"{server.url}/{server.database}.json", timeout=60) as response:
                response.read()
        return times / (time.perf_counter() - begin)

    return measure


def _publishes(server: Server, requests: int) -> Callable[[], float]:
    """A measure: publishes of one message a second, over 32 connections."""

    def measure() -> float:
        wait_idle(server)
        return publish_rate(server, "all", requests, batch=1, connections=32)

    return measure
