"""Compressed requests over Connect, unpacked within a limit.

The law of this module: what it unpacks costs time and memory in proportion to
what was sent and to the limit, whatever was sent.
"""

from __future__ import annotations

import zlib

from connectrpc.code import Code
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError

#: A gzip member with its header and checksum (zlib's own number for it).
_GZIP = 31


class Gzip(GzipCompression):
    """gzip, as one member: the library's own also takes millions of empty ones, and copies the rest for each.

    ``limit`` is the most that is unpacked, in bytes, and ``named`` what sets it, for the error.
    """

    def __init__(self, limit: int, named: str) -> None:
        super().__init__()
        self._limit = limit
        self._named = named

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        """The unpacked bytes. Raises :class:`ConnectError` for more than the limit, and for no gzip."""
        limit = self._limit
        unpacker = zlib.decompressobj(wbits=_GZIP)
        try:
            # One more than the limit, since 0 would be none.
            found = unpacker.decompress(data, limit + 1)
        except zlib.error:
            raise ConnectError(Code.INVALID_ARGUMENT, "the message is not compressed with gzip, as it says") from None
        if len(found) > limit:
            raise ConnectError(
                Code.RESOURCE_EXHAUSTED, f"the unpacked message is over the limit of {limit} bytes ({self._named})"
            )
        if not unpacker.eof or unpacker.unused_data:
            raise ConnectError(Code.INVALID_ARGUMENT, "the compressed message is not one whole gzip member")
        return found
