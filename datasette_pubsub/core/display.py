"""How payloads and names look as text on a page; ui/text.js does the same for what arrives there.

The law of this module: texts in, texts out; it knows no page. What it gives
back is bounded, whatever it was given.
"""

from __future__ import annotations

import json
import re

#: Payloads longer than this are folded, in characters and in lines; this and what follows is as in ui/text.js.
PLAIN_CHARACTERS = 500
PLAIN_LINES = 10

#: What a folded payload shows of itself, in characters.
SUMMARY_CHARACTERS = 160

#: Most that a page shows of one payload, in characters; JSON may take twice that with its indentation.
#: So 100 rows make a page of a few MB at worst.
SHOWN_CHARACTERS = 10_000

#: Deepest indentation of a JSON payload, in levels: without it the spaces grow with the square of the depth.
MAX_INDENT = 20

#: Control characters that show nothing, and those that turn the direction of the text around them.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def present(payload: str) -> dict[str, str | None]:
    """How a payload is shown: as it is (``full``), or folded behind a ``summary``; ``note`` says what is left out."""
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
    """The text with every character that shows nothing, or turns its neighbours, replaced by one that is seen."""
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
    """Valid JSON with a line for each member; numbers and texts stay as they were written."""
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
