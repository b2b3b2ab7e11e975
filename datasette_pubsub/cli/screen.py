"""Draws a result as a table on a terminal, and again whenever it or the size of the terminal changes.

Nothing of a value controls the terminal: control and bidirectional characters are escaped. A line is never wider than
the terminal, and a table never higher.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Sequence
from types import FrameType
from typing import Any

import msgspec

from ..core.result import Change, Result
from .common import counted, print_table, visible

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

#: The narrowest column, in characters; what does not fit beside others of this width is left out.
MIN_WIDTH = 4

#: At most this many characters of a value are looked at.
MAX_CHARACTERS = 500

_GAP = "  "
_row = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Screen:
    """The terminal's alternate screen, from entering the block until it ends."""

    def __init__(self) -> None:
        #: Whether the table has to be drawn again, because the terminal was used by others.
        self.stale = False
        self.colours = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._echo: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Screen:
        self._enter()
        number = getattr(signal, "SIGTSTP", None)
        if number is not None:
            self._handlers[number] = signal.signal(number, self._stopped)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._leave()

    def _enter(self) -> None:
        self._write("\x1b[?1049h\x1b[?25l")
        if termios is not None and sys.stdin.isatty():
            # What is typed would stand in the table.
            self._echo = termios.tcgetattr(sys.stdin)
            silent = list(self._echo)
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)

    def _leave(self) -> None:
        if self._echo is not None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._echo)
            self._echo = None
        self._write("\x1b[?25h\x1b[?1049l")

    def _stopped(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl+Z: give the terminal back, and take it again when the command goes on."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self.stale = True

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what is on the screen, without a moment in which it is empty."""
        # A line is cleared before it is written: after a line as wide as the terminal, its last character would go.
        self._write("\x1b[H" + "".join(f"\x1b[K{line}\r\n" for line in lines[:-1]) + f"\x1b[J{lines[-1]}")


class Table:
    """Shows a result on a screen; rows that came or changed with the last change are marked."""

    def __init__(self, screen: Screen, file: str) -> None:
        self._screen = screen
        self._file = visible(file)
        self._result: Result | None = None
        self._marks: dict[int, str] = {}
        self._status = ""
        self._problem: str | None = None
        #: The size of the terminal when the table was drawn.
        self._size: os.terminal_size | None = None

    def whole(self, result: Result) -> None:
        self._show(result, {}, "")

    def changed(self, result: Result, change: Change) -> None:
        marks = {placed.at: "+" for placed in change.inserted} | {placed.at: "~" for placed in change.changed}
        parts = (("+", change.inserted), ("~", change.changed), ("-", change.removed))
        self._show(result, marks, " ".join(f"{sign}{len(rows)}" for sign, rows in parts if rows))

    def problem(self, text: str | None) -> bool:
        if text != self._problem:
            self._problem = text
            self._draw()
        return True

    def idle(self) -> None:
        """Draw again if the terminal has another size. Asking for it costs less than a signal that may be missed."""
        if self._screen.stale or size() != self._size:
            self._draw()

    def _show(self, result: Result, marks: dict[int, str], status: str) -> None:
        self._result, self._marks, self._status = result, marks, f"{time.strftime('%H:%M:%S')}  {status}"
        self._draw()

    def _draw(self) -> None:
        if self._result is None:
            return
        self._screen.stale = False
        self._size = width, height = size()
        status = f"{self._file}  {counted(len(self._result.rows), 'row')}  {self._status}"
        if self._problem is not None:
            status = f"Error: {visible(self._problem)}"
        head = styled(cut(status, width), "7", self._screen.colours)
        table = lines(self._result, self._marks, width, height - 1, self._screen.colours)
        self._screen.draw([head, *table][:height])

    @staticmethod
    def print_plain(result: Result) -> None:
        """Print the whole result, as the other commands print tables."""
        print_table(result.columns, [cells(row) for row in result.rows])


def size() -> os.terminal_size:
    """The size of the terminal now. The variables ``COLUMNS`` and ``LINES`` do not follow it, so they do not count."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return shutil.get_terminal_size()


def lines(result: Result, marks: dict[int, str], width: int, height: int, colours: bool) -> list[str]:
    """The lines of a table that fits into so many columns and lines of a terminal."""
    rows = result.rows
    left_out = max(0, len(rows) - max(0, height - 1))
    if left_out:
        left_out += 1
        rows = rows[: len(rows) - left_out]
    shown = [[visible(cell[:MAX_CHARACTERS]) for cell in cells(row)] for row in rows]
    heads = [visible(name[:MAX_CHARACTERS]) for name in result.columns]
    numbers = [
        bool(shown) and all(_is_number(values[place]) for values in map(_row, rows)) for place in range(len(heads))
    ]
    wanted = [max(map(width_of, column)) for column in zip(heads, *shown, strict=True)]
    given = fit(wanted, width - 2)

    def line(values: Sequence[str]) -> str:
        parts = [
            padded(cut(value, size), size, right) for value, size, right in zip(values, given, numbers, strict=False)
        ]
        return _GAP.join(parts) + (" …" if len(given) < len(wanted) else "")

    found = [styled(f"  {line(heads)}".rstrip(), "1", colours)]
    for at, values in enumerate(shown):
        mark = marks.get(at, " ")
        text = f"{mark} {line(values)}".rstrip()
        found.append(styled(text, {"+": "32", "~": "33"}.get(mark, ""), colours))
    if left_out:
        found.append(cut(f"  … {counted(left_out, 'more row')}", width))
    return found[:height]


def cells(row: bytes) -> list[str]:
    """The values of a row as texts: of bytes, only their number."""
    return [_text(bytes(raw)) for raw in _row(row)]


def _text(raw: bytes) -> str:
    if raw == b"null":
        return ""
    if raw.startswith(b'"'):
        return str(msgspec.json.decode(raw))
    if raw.startswith(b"{"):
        encoded = msgspec.json.decode(raw)["encoded"]
        return f"({counted(len(encoded) * 3 // 4 - encoded.count('='), 'byte')})"
    return raw.decode()


def _is_number(raw: msgspec.Raw) -> bool:
    return bytes(raw)[:1] not in (b'"', b"{")


def fit(wanted: Sequence[int], width: int) -> list[int]:
    """The widths of as many columns as fit: narrow ones get what they want, and wide ones share the rest.

    >>> fit([3, 50, 20], 40)
    [3, 17, 16]
    """
    count = len(wanted)
    while count > 1 and sum(min(MIN_WIDTH, each) + len(_GAP) for each in wanted[:count]) - len(_GAP) > width - (
        2 if count < len(wanted) else 0
    ):
        count -= 1
    left = width - len(_GAP) * (count - 1) - (2 if count < len(wanted) else 0)
    found = [0] * count
    for rest, place in enumerate(sorted(range(count), key=wanted.__getitem__)):
        found[place] = max(1, min(wanted[place], left // (count - rest)))
        left -= found[place]
    return found


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The text, cut to so many columns of a terminal."""
    if width_of(text) <= width:
        return text
    size, found = 1, []
    for character in text:
        size += _width(character)
        if size > width:
            break
        found.append(character)
    return "".join(found) + "…" if width > 0 else ""


def padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def styled(text: str, style: str, colours: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colours and style else text
