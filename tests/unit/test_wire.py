"""Frames that are written by hand say what the libraries would have written."""

from __future__ import annotations

import json
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from datasette_pubsub.core.values import Message
from datasette_pubsub.gen.db_pb2 import SubscribeResponse
from datasette_pubsub.protocol.connect_frames import ConnectEncoder
from datasette_pubsub.protocol.frames import SseEncoder, message_fields

texts = st.text(st.characters(exclude_categories=["Cs"]))
payloads = st.one_of(texts, st.binary(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
messages = st.builds(Message, st.integers(1, 2**63 - 1), texts, payloads, st.just("2030-01-31T12:00:00.125Z"))


@given(messages, st.integers(0, 300))
@example(Message(127, "é", 'a"\\\n\r\u2028\x7f\x00😀', "2030-01-31T12:00:00.125Z"), 0)
@example(Message(128, "c", "x" * 16384, "2030-01-31T12:00:00.125Z"), 0)
def test_frames_say_what_the_message_is(message: Message, missed: int) -> None:
    fields = message_fields(message, missed)
    lines = SseEncoder().message(message, missed).decode().split("\n")
    assert lines[0] == f"id: {message.id}"
    assert json.loads(lines[1].removeprefix("data: ")) == fields
    assert lines[2:] == ["", ""]

    flag, length = struct.unpack_from(">BI", frame := ConnectEncoder(as_json=True).message(message, missed))
    assert (flag, length) == (0, len(frame) - 5)
    assert json.loads(frame[5:]) == fields

    flag, length = struct.unpack_from(">BI", frame := ConnectEncoder(as_json=False).message(message, missed))
    assert (flag, length) == (0, len(frame) - 5)
    found = SubscribeResponse.FromString(frame[5:])
    wanted = SubscribeResponse(message_id=message.id, channel=message.channel, missed=missed)
    if isinstance(message.payload, bytes):
        wanted.blob = message.payload
    else:
        wanted.payload = fields["payload"]
    wanted.created_at.FromJsonString(message.created_at)
    assert found == wanted


LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"


@given(messages, st.integers(0, 300), st.sampled_from(LINE_ENDS), st.sampled_from(["payload", "channel", "created_at"]))
def test_a_frame_of_json_is_one_line_to_everybody(message: Message, missed: int, end: str, field: str) -> None:
    """To readers that divide at what Unicode calls the end of a line, as Python's ``splitlines`` does."""
    if field == "payload":
        message = Message(message.id, message.channel, f"a{end}b{end}", message.created_at)
    elif field == "channel":
        message = Message(message.id, f"a{end}b{end}", message.payload, message.created_at)
    else:
        message = Message(message.id, message.channel, message.payload, f"a{end}b{end}")
    text = SseEncoder().message(message, missed).decode()
    assert text.splitlines() == text[:-1].split("\n")
    assert len(text.splitlines()) == 3
    assert json.loads(text.splitlines()[1].removeprefix("data: ")) == message_fields(message, missed)
    frame = ConnectEncoder(as_json=True).message(message, missed)
    assert len(frame[5:].decode().splitlines()) == 1
    assert json.loads(frame[5:]) == message_fields(message, missed)
