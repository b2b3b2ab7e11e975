"""Decodes messages to publish from JSON.

msgspec decodes ordinary messages without running Python code; other messages are decoded field by field, so that an
error names the field.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import msgspec

from ..core.errors import InvalidArgument
from ..core.validation import check_message_id, check_unicode, not_finite
from ..core.values import Item

_ITEM_FIELDS = {"channel", "payload", "blob", "key", "expected_last_id"}

#: Encodes JSON without spaces, as text. Raises ``ValueError`` for NaN and infinities, which JSON cannot express.
_strict_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class _Items(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    items: list[Item]


_ITEM = msgspec.json.Decoder(Item)
_ITEMS = msgspec.json.Decoder(_Items)

#: The exceptions of the decoders for JSON that is invalid or not ordinary; the last is for hundreds of brackets.
NOT_ORDINARY = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def items_of_json(body: bytes, what: str) -> list[Item]:
    """The messages of one JSON object: one message, or a list of them under ``items``.

    If the body is not ordinary, it is decoded a second time, field by field, so
    that an error names the field; ``what`` is the name of the body in errors.
    Raises :class:`InvalidArgument`.
    """
    try:
        items = [_ITEM.decode(body)]
    except NOT_ORDINARY:
        try:
            items = _ITEMS.decode(body).items
        except NOT_ORDINARY:
            return _items_by_field(body, what)
    if all(type(item.payload) is str for item in items):
        return items
    if any(item.payload is None for item in items):
        return _items_by_field(body, what)
    # Decoded values contain neither halves of surrogate pairs nor numbers that JSON cannot express.
    return [Item(item.channel, _stored(item.payload, "payload"), item.key, item.expected_last_id) for item in items]


def _items_by_field(body: bytes, what: str) -> list[Item]:
    data = object_of_json(body, what)
    if "items" not in data:
        return [item_of_fields(data, "")]
    if set(data) != {"items"} or not isinstance(data["items"], list):
        raise InvalidArgument("items must be a list of messages, with no other field beside it")
    return [item_of_fields(entry, f"items[{n}].") for n, entry in enumerate(data["items"])]


def object_of_json(body: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object; ``what`` is the name of the body in errors. Raises :class:`InvalidArgument`."""
    try:
        data = json.loads(body)
    except RecursionError:
        raise InvalidArgument(f"{what} is nested too deeply") from None
    except ValueError as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidArgument(f"{what} is not valid JSON{where}") from None
    if not isinstance(data, dict):
        raise InvalidArgument(f"{what} must be a JSON object")
    return data


def _stored(payload: Any, field: str) -> Any:
    """A JSON value as the log stores it: objects and lists as JSON text, true and false as text.

    Raises :class:`InvalidArgument`, naming ``field``, for a number that JSON cannot express.
    """
    if isinstance(payload, bool):
        return "true" if payload else "false"
    if isinstance(payload, (dict, list)):
        try:
            return _strict_json(payload)
        except RecursionError:
            raise InvalidArgument(f"{field} is nested too deeply", field=field) from None
        except ValueError:
            raise not_finite(field) from None
    if isinstance(payload, float) and not math.isfinite(payload):
        raise not_finite(field)
    return payload


def item_of_fields(entry: Any, field: str) -> Item:
    """One message from a JSON object; ``field`` is the prefix of a field's name in an error.

    Raises :class:`InvalidArgument` for a field that is missing, unknown or of a wrong type.
    """
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{field.rstrip('.')} must be an object with channel and payload")
    unknown = sorted(set(entry) - _ITEM_FIELDS)
    if unknown:
        name = field + unknown[0].encode(errors="backslashreplace").decode()
        raise InvalidArgument(
            f"{name} is not a field of a message; it has {', '.join(sorted(_ITEM_FIELDS))}", field=name
        )
    if not isinstance(entry.get("channel"), str):
        raise InvalidArgument(f"{field}channel is required, as text", field=f"{field}channel")
    check_unicode(entry["channel"], f"{field}channel")
    key = entry.get("key")
    if key is not None and not isinstance(key, str):
        raise InvalidArgument(f"{field}key must be text", field=f"{field}key")
    if key is not None:
        check_unicode(key, f"{field}key")
    expected = entry.get("expected_last_id")
    if expected is not None:
        expected = check_message_id(expected, f"{field}expected_last_id")
    if "blob" in entry:
        if "payload" in entry:
            raise InvalidArgument(f"{field}payload and {field}blob exclude each other")
        try:
            return Item(entry["channel"], base64.b64decode(entry["blob"], validate=True), key, expected)
        except (TypeError, ValueError, binascii.Error):
            raise InvalidArgument(f"{field}blob must be base64 text", field=f"{field}blob") from None
    payload = entry.get("payload")
    if payload is None:
        raise InvalidArgument(f"{field}payload is required and must not be null", field=f"{field}payload")
    stored = _stored(payload, f"{field}payload")
    if isinstance(stored, str):
        check_unicode(stored, f"{field}payload")
    return Item(entry["channel"], stored, key, expected)
