"""Our Server-Sent Events are, byte for byte, those of an independent library: sse-starlette.

The library is an oracle here, and no part of the server: see docs/architecture.md, "Why not". It writes the fields in
the order ``id``, ``event``, ``data``, ``retry``. Our ``bye`` begins with its ``retry``: that line is moved before the
comparison. To a reader the order of these fields means nothing.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from datasette_pubsub.core.events import AHEAD, Bye, Changed, Event, Gap, Heartbeat, Ready, Revoked, Superseded
from datasette_pubsub.core.values import Message
from datasette_pubsub.protocol.frames import SseEncoder, message_json


def library() -> ModuleType:
    """The library's module of events, from its file: ``import sse_starlette`` would patch uvicorn in this process."""
    package = importlib.util.find_spec("sse_starlette")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "event.py"
    spec = importlib.util.spec_from_file_location("sse_starlette_event", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ServerSentEvent = library().ServerSentEvent

IDS = st.integers(min_value=1, max_value=2**63 - 1)
#: What SQLite stores, and the log lets in: no halves of surrogate pairs. Often with line ends, and with characters that
#: some readers take for line ends.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from(["\r\n", *"a:\r\n \x00\x0b\x0c\x1c\x85\u2028\u2029é😀\ufeff"])).map("".join),
)
PAYLOADS = st.one_of(TEXTS, st.binary(max_size=50), st.integers(-(2**63), 2**63 - 1))
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Ready, IDS),
    st.builds(Heartbeat, IDS),
    st.builds(Gap, st.one_of(IDS, st.just(AHEAD)), IDS),
    st.sampled_from([Superseded(), Bye(), Revoked(), Changed()]),
)
NAMES: dict[type[Any], str] = {
    Ready: "ready",
    Heartbeat: "heartbeat",
    Gap: "gap",
    Superseded: "superseded",
    Bye: "bye",
    Revoked: "bye",
    Changed: "bye",
}


def retry_last(frame: bytes) -> tuple[bytes, int | None]:
    """A frame with its ``retry`` where the library has it, and the milliseconds."""
    found = re.fullmatch(rb"(retry: (\d+)\n)(.*\n)\n", frame, re.DOTALL)
    return (frame, None) if found is None else (found[3] + found[1] + b"\n", int(found[2]))


def as_text(payload: str | bytes | int) -> str:
    return base64.b64encode(payload).decode() if isinstance(payload, bytes) else str(payload)


@given(IDS, TEXTS, PAYLOADS)
def test_a_raw_message(number: int, channel: str, payload: str | bytes | int) -> None:
    frame = SseEncoder(raw=True).message(Message(number, channel, payload, "2026-01-31T12:00:00.000Z"))
    assert frame == ServerSentEvent(data=as_text(payload), id=str(number), sep="\n").encode()


@given(IDS, TEXTS, PAYLOADS, st.integers(0, 3))
def test_a_message(number: int, channel: str, payload: str | bytes | int, missed: int) -> None:
    message = Message(number, channel, payload, "2026-01-31T12:00:00.000Z")
    data = message_json(message, missed).decode()
    assert SseEncoder().message(message, missed) == ServerSentEvent(data=data, id=str(number), sep="\n").encode()
    fields = json.loads(data)
    assert (fields["messageId"], fields["channel"]) == (str(number), channel)
    assert fields["blob" if isinstance(payload, bytes) else "payload"] == as_text(payload)


@given(EVENTS)
def test_an_event(event: Event) -> None:
    frame, retry = retry_last(SseEncoder().event(event))
    (data,) = re.findall(rb"^data: (.*)$", frame, re.MULTILINE)
    assert frame == ServerSentEvent(data=data.decode(), event=NAMES[type(event)], retry=retry, sep="\n").encode()
    assert (retry is not None) == isinstance(event, Bye)


def test_the_beginning() -> None:
    frame = SseEncoder().beginning()
    assert frame == ServerSentEvent(retry=int(frame.split()[1]), sep="\n").encode()


def test_it_is_no_part_of_the_server() -> None:
    """Why not: whoever imports it has another signal handler in every uvicorn of the process. And we do not."""
    script = (
        "import sys, uvicorn, datasette_pubsub.lazy, datasette_pubsub.hooks\n"
        "datasette_pubsub.lazy.load()\n"
        "assert not {'starlette', 'sse_starlette'} & set(sys.modules)\n"
        "before = uvicorn.Server.handle_exit\n"
        "import sse_starlette\n"
        "print(uvicorn.Server.handle_exit is before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "False\n", run.stderr
