"""Framing of ``application/vnd.amazon.eventstream`` messages.

A message is a prelude (total length, length of the headers, CRC-32 of both), the headers, the payload, and
a CRC-32 of all that came before; numbers are big-endian.
"""

from __future__ import annotations

import struct
from binascii import crc32
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HeaderValue = bool | int | bytes | str

_PRELUDE = struct.Struct("!III")
_OVERHEAD_BYTES = _PRELUDE.size + 4
_MAX_MESSAGE_BYTES = 24 * 1024 * 1024
_TRUE, _FALSE, _INT32, _BYTES, _STRING, _UUID = 0, 1, 4, 6, 7, 9
_NUMBERS = {2: struct.Struct("!b"), 3: struct.Struct("!h"), 4: struct.Struct("!i"), 5: struct.Struct("!q")}
_NUMBERS[8] = _NUMBERS[5]  # a timestamp: milliseconds since 1970


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
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame that these bytes complete.

        Raises:
            FramingError: If a checksum or a length is wrong.
        """
        self._buffer += data
        while len(self._buffer) >= _PRELUDE.size:
            total, header_bytes, prelude_crc = _PRELUDE.unpack_from(self._buffer)
            if crc32(self._buffer[:8]) != prelude_crc:
                raise FramingError("the prelude's checksum is wrong")
            if not _OVERHEAD_BYTES + header_bytes <= total <= _MAX_MESSAGE_BYTES:
                raise FramingError(f"a message of {total} bytes with {header_bytes} of headers is none")
            if len(self._buffer) < total:
                return
            message = bytes(self._buffer[:total])
            del self._buffer[:total]
            if crc32(message[:-4]) != int.from_bytes(message[-4:], "big"):
                raise FramingError("the message's checksum is wrong")
            payload_start = _PRELUDE.size + header_bytes
            try:
                headers = dict(_decode_headers(message[_PRELUDE.size : payload_start]))
            except (IndexError, struct.error, UnicodeDecodeError) as error:
                raise FramingError(f"the headers cannot be read: {error}") from error
            yield Frame(headers, message[payload_start:-4])


def _encode_header(name: str, value: HeaderValue) -> bytes:
    encoded_name = name.encode()
    start = bytes([len(encoded_name)]) + encoded_name
    if isinstance(value, bool):
        return start + bytes([_TRUE if value else _FALSE])
    if isinstance(value, int):
        return start + struct.pack("!Bi", _INT32, value)
    kind, raw = (_STRING, value.encode()) if isinstance(value, str) else (_BYTES, value)
    return start + struct.pack("!BH", kind, len(raw)) + raw


def _decode_headers(data: bytes) -> Iterator[tuple[str, HeaderValue]]:
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        taken = data[at : at + size]
        if len(taken) < size:
            raise IndexError("a header is cut short")
        at += size
        return taken

    while at < len(data):
        name = take(take(1)[0]).decode()
        kind = take(1)[0]
        if kind in {_TRUE, _FALSE}:
            yield name, kind == _TRUE
        elif kind in _NUMBERS:
            number = _NUMBERS[kind]
            yield name, int(number.unpack(take(number.size))[0])
        elif kind in {_BYTES, _STRING}:
            raw = take(int.from_bytes(take(2), "big"))
            yield name, raw.decode() if kind == _STRING else raw
        elif kind == _UUID:
            yield name, take(16)
        else:
            raise FramingError(f"header {name} has the unknown type {kind}")
