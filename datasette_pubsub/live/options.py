"""The options of one live subscriber; see :mod:`.live.subscriber`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberOptions:
    """Options of one subscriber. ``send_bytes``: the most bytes of one send.

    ``heartbeat_seconds``: the silence after which a heartbeat is sent. ``automatic``: the cursor follows the bytes that
    the subscriber's machine has acknowledged. ``ahead``: its position was ahead of the head, which a gap reports.
    ``floor``: its position is ahead of the head of a copy, and is awaited; if it is not reached, the subscriber begins
    here (``None``: it is not ahead). ``await_seconds``: the longest wait for that (0: it never waits). ``max_unacked``:
    the most messages that are sent before they are acknowledged (``None``: no limit). ``allowed`` is called every
    ``recheck_seconds``, and after ``expires_in`` seconds, to re-check permissions (``None``: never). ``direct_send``:
    the hub may send for it. ``read_to``: up to this id, the tail is not used.
    """

    send_bytes: int
    heartbeat_seconds: float
    automatic: bool = False
    ahead: bool = False
    floor: int | None = None
    await_seconds: float = 0.0
    max_unacked: int | None = None
    allowed: Callable[[], Awaitable[bool]] | None = None
    recheck_seconds: float = 60.0
    expires_in: float | None = None
    direct_send: bool = True
    read_to: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """A subscriber awaits the head of a copy until this time on the loop's clock, or else goes back to ``floor``."""

    floor: int
    until: float
