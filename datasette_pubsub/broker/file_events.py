"""File events: the kernel reports writes to files, by inotify(7) on Linux. Elsewhere nobody does, and callers poll.

One descriptor serves all files of a Datasette, since Linux gives a user few of them (``fs.inotify.max_user_instances``,
128 by default); it exists only while a file is watched. No file is opened: closing it would drop SQLite's locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import logging
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("datasette_pubsub")

#: linux/inotify.h. ``IN_ATTRIB`` comes when a file is deleted that somebody has open.
_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_GONE = _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF

#: ``struct inotify_event`` without the name, which events of files do not have.
_EVENT = struct.Struct("iIII")

#: Called after a write, with ``True``; or with ``False`` when the file is not watched any more.
Notify = Callable[[bool], None]


@functools.cache
def _libc() -> Any:
    """The C library, if it has inotify."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "inotify_init1") else None


class FileEvents:
    """Reports writes to files, on the event loop that :meth:`watch` was called on."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._watched: dict[int, list[Notify]] = {}
        self._refused = False

    def watch(self, path: str, notify: Notify) -> Callable[[], None] | None:
        """Call ``notify(True)`` after each write to a file, until the returned function is called.

        One call may stand for several writes. If the file is deleted, moved or gets other attributes,
        ``notify(False)`` is called, and nothing afterwards. Returns ``None`` if the kernel cannot report the writes:
        without inotify, for a file that does not exist, or when the user's inotify watches are used up.
        """
        libc = _libc()
        if libc is None:
            return None
        if self._fd is None and not self._open(libc):
            return None
        number = libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY | _GONE)
        if number < 0:
            self._explain(ctypes.get_errno())
            self._close_if_unused()
            return None
        self._refused = False
        # A file that is watched by two names has one number.
        self._watched.setdefault(number, []).append(notify)
        return functools.partial(self._forget, number, notify)

    def _open(self, libc: Any) -> bool:
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            self._explain(ctypes.get_errno())
            return False
        self._loop = asyncio.get_running_loop()
        try:
            self._loop.add_reader(fd, self._read)
        except NotImplementedError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def _explain(self, code: int) -> None:
        if code != errno.ENOENT and not self._refused:
            self._refused = True
            logger.info("inotify: %s; the server polls for commits of other programs", os.strerror(code))

    def _forget(self, number: int, notify: Notify) -> None:
        callbacks = self._watched.get(number, [])
        if notify not in callbacks:
            return
        callbacks.remove(notify)
        if not callbacks:
            del self._watched[number]
            _libc().inotify_rm_watch(self._fd, number)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._watched or self._fd is None:
            return
        fd, self._fd = self._fd, None
        # Its loop may have ended.
        with contextlib.suppress(Exception):
            self._loop.remove_reader(fd)
        os.close(fd)

    def _read(self) -> None:
        if self._fd is None:
            return
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        masks: dict[int, int] = {}
        for number, mask, _cookie, _length in _EVENT.iter_unpack(data):
            masks[number] = masks.get(number, 0) | mask
        if any(mask & _IN_Q_OVERFLOW for mask in masks.values()):
            masks = dict.fromkeys(self._watched, _IN_MODIFY)
        for number, mask in masks.items():
            watched = not mask & (_GONE | _IN_IGNORED)
            for notify in list(self._watched.get(number, ())):
                if not watched:
                    self._forget(number, notify)
                notify(watched)
