"""Framing of ``application/vnd.amazon.eventstream`` messages, which botocore decodes and nobody in Python encodes.

A message is a prelude (total length, length of the headers, CRC-32 of both), the headers, the payload, and
a CRC-32 of all that came before; numbers are big-endian.
"""

from __future__ import annotations

import struct
from binascii import crc32
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botocore.eventstream import EventStreamBuffer, ParserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HeaderValue = bool | int | bytes | str

_OVERHEAD_BYTES = 16
_TRUE, _FALSE, _INT32, _BYTES, _STRING = 0, 1, 4, 6, 7


class FramingError(ValueError):
    """The bytes are no event-stream message; nothing that follows them can be trusted."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: headers by name, and a payload."""

    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return the frame's bytes; integers become int32 headers."""
    headers = b"".join(_encode_header(name, value) for name, value in frame.headers.items())
    lengths = struct.pack("!II", _OVERHEAD_BYTES + len(headers) + len(frame.payload), len(headers))
    body = lengths + struct.pack("!I", crc32(lengths)) + headers + frame.payload
    return body + struct.pack("!I", crc32(body))


class Decoder:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = EventStreamBuffer()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame that these bytes complete.

        Raises:
            FramingError: If they cannot be read.
        """
        self._buffer.add_data(data)
        try:
            for message in self._buffer:
                yield Frame(message.headers, message.payload)
        except (ParserError, LookupError, struct.error, UnicodeDecodeError) as error:
            raise FramingError(f"no event-stream message: {error!r}") from error


def _encode_header(name: str, value: HeaderValue) -> bytes:
    start = bytes([len(name.encode())]) + name.encode()
    if isinstance(value, bool):
        return start + bytes([_TRUE if value else _FALSE])
    if isinstance(value, int):
        return start + struct.pack("!Bi", _INT32, value)
    kind, raw = (_STRING, value.encode()) if isinstance(value, str) else (_BYTES, value)
    return start + struct.pack("!BH", kind, len(raw)) + raw
