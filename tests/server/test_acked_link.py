"""A link that goes down without a word: no FIN, no RST, and neither end's own interface says anything.

The reader is a process in a network namespace of its own, behind a bridge in another one; the link is down while its
port is taken out of the bridge. What is published goes on. Whether the link comes back, whether the reader is killed
meanwhile, and whether the server has noticed: every message is received, in order, and what comes again is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from connect_streams import options
from links import Links, cleanup, links, needs_namespaces, run
from servers import Server
from uvicorn_servers import serve_as

__all__ = ["cleanup", "links", "serve_as"]

WAYS = [
    pytest.param(seconds, comes_back, id=name, marks=[pytest.mark.slow] if seconds > 10 else [])
    for name, seconds, comes_back in (("2.5 s", 2.5, True), ("60 s", 60.0, True), ("for ever", 2.5, False))
]


@needs_namespaces
@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
@pytest.mark.parametrize("rate", [10, 10_000])
@pytest.mark.parametrize(("seconds", "comes_back"), WAYS)
@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_link_that_dies_silently(
    serve_as: Callable[..., Server],
    links: Links,
    cleanup: contextlib.ExitStack,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    edge: str,
    seconds: float,
    comes_back: bool,
    rate: int,
    killed: bool,
) -> None:
    # The default, 60 s, would end the connection just as a link comes back that was down for as long; and this reader,
    # unlike a browser's, does not notice that its connection has died.
    server = serve_as("datasette", options(send_timeout_seconds=60 + 2 * seconds), "0.0.0.0")
    story = {"edge": edge, "rate": rate, "seconds": seconds, "comes_back": comes_back, "killed": killed}
    told = run(links, cleanup, server, tmp_path, **story)  # type: ignore[arg-type]
    record_property("told", told)
    print(told)
