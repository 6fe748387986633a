"""Framing of event-stream messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_core.eventstream import Decoder, Frame, FramingError, HeaderValue, encode

_VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**31 - 1), st.binary(max_size=99), st.text(max_size=99)
)
_FRAMES = st.builds(Frame, st.dictionaries(st.text(min_size=1, max_size=40), _VALUES, max_size=5), st.binary())


@given(st.lists(_FRAMES, max_size=4), st.integers(1, 50))
def test_frames_survive_the_wire_in_any_pieces(frames: list[Frame], piece: int) -> None:
    """What is encoded is decoded again, by botocore, however the bytes are cut."""
    wire = b"".join(map(encode, frames))
    decoder = Decoder()
    received = [frame for at in range(0, len(wire), piece) for frame in decoder.feed(wire[at : at + piece])]
    assert received == frames


@pytest.mark.parametrize("position", [0, 5, 9, 13, 30, -5, -1])
def test_a_flipped_bit_is_refused(position: int) -> None:
    """A damaged length, header, payload or checksum raises an error."""
    wire = bytearray(encode(Frame({"name": "value", "number": 7}, b"payload")))
    wire[position] ^= 1
    with pytest.raises(FramingError):
        list(Decoder().feed(bytes(wire)))
