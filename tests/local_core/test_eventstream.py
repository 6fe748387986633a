"""Framing of event-stream messages."""

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from local_core.eventstream import Decoder, Frame, FramingError, HeaderValue, encode

_NAMES = st.text(min_size=1, max_size=40)
_VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**31 - 1), st.binary(max_size=99), st.text(max_size=99)
)
_FRAMES = st.builds(Frame, st.dictionaries(_NAMES, _VALUES, max_size=5), st.binary(max_size=999))


@given(st.lists(_FRAMES, max_size=4), st.integers(1, 50))
def test_frames_survive_the_wire_in_any_pieces(frames: list[Frame], piece: int) -> None:
    """What is encoded is decoded again, however the bytes are cut."""
    wire = b"".join(map(encode, frames))
    decoder = Decoder()
    received = [frame for at in range(0, len(wire), piece) for frame in decoder.feed(wire[at : at + piece])]
    assert received == frames


def test_another_decoder_reads_our_frames() -> None:
    """The framing is the one that botocore reads."""
    frame = Frame({":message-type": 5, "operation": "x", "raw": b"\x01", "yes": True}, b"{}")
    buffer = EventStreamBuffer()
    buffer.add_data(encode(frame))
    (event,) = list(buffer)
    assert (event.headers, event.payload) == (frame.headers, frame.payload)


@pytest.mark.parametrize("position", [0, 5, 9, 13, 30, -5, -1])
def test_a_flipped_bit_is_refused(position: int) -> None:
    """A damaged length, header, payload or checksum raises an error."""
    wire = bytearray(encode(Frame({"name": "value", "number": 7}, b"payload")))
    wire[position] ^= 1
    with pytest.raises(FramingError):
        list(Decoder().feed(bytes(wire)))


@pytest.mark.parametrize("headers", [b"\x09short", b"\x01a\x7f", b"\x01a\x07\x00\x09x", b"\x01\xff\x00"])
def test_headers_that_cannot_be_read_are_refused(headers: bytes) -> None:
    """Cut-off, unknown and undecodable headers raise an error, even with good checksums."""
    import struct
    from binascii import crc32

    lengths = struct.pack("!II", 16 + len(headers), len(headers))
    body = lengths + struct.pack("!I", crc32(lengths)) + headers
    with pytest.raises(FramingError):
        list(Decoder().feed(body + struct.pack("!I", crc32(body))))
