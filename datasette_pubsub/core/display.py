"""Formats payloads and names for display on a page, within bounds for any input.

``ui/text.js`` does the same in the browser, for messages that arrive over a stream.
"""

from __future__ import annotations

import json
import re

#: Payloads longer than this are folded, in characters and in lines. ui/text.js has the same constants.
PLAIN_CHARACTERS = 500
PLAIN_LINES = 10

#: The length of a folded payload's summary, in characters.
SUMMARY_CHARACTERS = 160

#: A page shows at most this many characters of one payload, or twice as many of indented JSON. So a page of 100 rows
#: has a few MB at worst.
SHOWN_CHARACTERS = 10_000

#: The deepest indentation of a JSON payload, in levels: without a limit, the spaces grow with the square of the depth.
MAX_INDENT = 20

#: Invisible control characters, and bidirectional control characters, which reorder the text around them.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def present(payload: str) -> dict[str, str | None]:
    """A payload for display: whole (``full``), or folded behind a ``summary``; ``note`` says what is left out."""
    if len(payload) > SHOWN_CHARACTERS:
        return {
            "summary": visible(payload[:SUMMARY_CHARACTERS]) + "…",
            "full": visible(payload[:SHOWN_CHARACTERS]),
            "note": f"the first {SHOWN_CHARACTERS:,} of {len(payload):,} characters",
        }
    is_json = _is_json(payload)
    full = indented(payload) if is_json else payload
    if len(full) > 2 * SHOWN_CHARACTERS:
        full = payload
    if not is_json and len(payload) <= PLAIN_CHARACTERS and payload.count("\n") < PLAIN_LINES:
        return {"summary": None, "full": visible(payload), "note": None}
    more = "…" if len(payload) > SUMMARY_CHARACTERS else ""
    return {
        "summary": visible(payload[:SUMMARY_CHARACTERS]) + more,
        "full": visible(full),
        "note": None,
    }


def visible(text: str) -> str:
    """The text with every invisible or bidirectional control character replaced by a visible one."""
    return _HIDDEN.sub(_name_hidden, text)


def _name_hidden(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def indented(text: str) -> str:
    """Valid JSON, reformatted with one line for each member; numbers and strings stay as they were written."""
    tokens = _JSON_TOKEN.findall(text)
    out: list[str] = []
    depth = 0

    def line() -> str:
        return "\n" + "  " * min(depth, MAX_INDENT)

    for index, token in enumerate(tokens):
        if token in ("{", "["):
            depth += 1
            out.append(token if tokens[index + 1] in ("}", "]") else token + line())
        elif token in ("}", "]"):
            depth -= 1
            out.append(token if tokens[index - 1] in ("{", "[") else line() + token)
        elif token == ",":
            out.append(token + line())
        else:
            out.append(": " if token == ":" else token)
    return "".join(out)
