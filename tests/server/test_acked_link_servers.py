"""A link that goes down without a word, on other loops and parsers, and for longer than the server waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from connect_streams import options
from links import Links, cleanup, links, needs_namespaces, run
from servers import Server
from uvicorn_servers import SERVERS, serve_as

__all__ = ["cleanup", "links", "serve_as"]


@needs_namespaces
@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
@pytest.mark.parametrize("edge", ["sse", "connect"])
@pytest.mark.parametrize("kind", SERVERS[1:])
def test_on_other_loops_and_parsers(
    serve_as: Callable[..., Server],
    links: Links,
    cleanup: contextlib.ExitStack,
    tmp_path: Path,
    kind: str,
    edge: str,
    killed: bool,
) -> None:
    server = serve_as(kind, options(), "0.0.0.0")
    told = run(
        links, cleanup, server, tmp_path, edge=edge, rate=2000, seconds=2.0, comes_back=not killed, killed=killed
    )
    print(told)


@needs_namespaces
@pytest.mark.parametrize("killed", [False, True], ids=["lives", "killed"])
def test_a_reader_that_is_cut_off_while_the_link_is_down(
    serve_as: Callable[..., Server],
    links: Links,
    cleanup: contextlib.ExitStack,
    tmp_path: Path,
    killed: bool,
) -> None:
    """The buffers are full before the link is back; the server gives the connection up."""
    server = serve_as("datasette", options(send_timeout_seconds=1), "0.0.0.0")
    told = run(links, cleanup, server, tmp_path, edge="sse", rate=10_000, seconds=8.0, comes_back=True, killed=killed)
    print(told)
