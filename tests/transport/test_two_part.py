"""Two-part messages: the layout byte for byte, limits before bytes, damage, pieces of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.transport.two_part import PREFIX_BYTES, TwoPart, TwoPartReader, decode_two_part, encode_two_part

MESSAGES = st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=200)), max_size=8)


def test_the_published_vectors_hold() -> None:
    """B.1: byte for byte what other implementations write."""
    assert encode_two_part(b"header", b"body").hex() == (
        "00000000000000060000000000000004261ce44d1a368787686561646572626f6479"
    )
    assert encode_two_part(b"", b"", checksum="always").hex() == "00" * 16 + "2d06800538d394c2"
    assert encode_two_part(b"", b"", checksum="never") == bytes(24)


@given(MESSAGES, st.integers(1, 64), st.sampled_from(["auto", "always", "never"]))
def test_messages_survive_any_cut(messages: list[tuple[bytes, bytes]], step: int, checksum: str) -> None:
    """A stream gives back what was put in, however it is cut into pieces."""
    stream = b"".join(encode_two_part(header, body, checksum=checksum) for header, body in messages)  # type: ignore[arg-type]
    reader = TwoPartReader()

    got = [part for at in range(0, len(stream), step) for part in reader.feed(stream[at : at + step])]

    assert [(bytes(header), bytes(body)) for header, body in got] == messages
    assert reader.waiting_bytes == 0


def test_a_limit_is_checked_before_the_bytes_are_there() -> None:
    """24 bytes are enough to refuse a message of exabytes; equality is allowed."""
    reader = TwoPartReader(bytes_max=100)
    exact = encode_two_part(b"h" * 30, b"b" * 46, bytes_max=100)
    assert len(exact) == 100
    assert len(list(reader.feed(exact))) == 1

    with pytest.raises(WireError, match="exceeds the limit of 100") as error:
        list(reader.feed(b"\xff" * PREFIX_BYTES))

    assert error.value.reason == "too_large"
    with pytest.raises(WireError, match="101 bytes"):
        encode_two_part(b"h" * 30, b"b" * 47, bytes_max=100)


def test_damage_is_found_where_there_is_a_checksum() -> None:
    """A flipped bit is an error of its own; without a checksum nobody can know."""
    message = bytearray(encode_two_part(b"header", b"body"))
    message[-1] ^= 1
    with pytest.raises(WireError, match="checksum") as error:
        decode_two_part(bytes(message))
    assert error.value.reason == "checksum"

    message[16:24] = bytes(8)
    assert bytes(decode_two_part(bytes(message)).body) == b"bodx"


@given(st.binary(max_size=60), st.binary(max_size=60), st.data())
def test_every_truncation_is_refused(header: bytes, body: bytes, data: st.DataObject) -> None:
    """A-134: what is no whole message is told so in the words of the codec."""
    message = encode_two_part(header, body)
    cut = data.draw(st.integers(0, len(message) - 1))

    with pytest.raises(WireError, match="No message decoded"):
        decode_two_part(message[:cut])
    with pytest.raises(WireError, match="Invalid message"):
        decode_two_part(message + b"x")


def test_what_is_empty_tells_the_kind() -> None:
    """Header without a body: control."""
    assert TwoPart(b"stop", b"").is_control
    assert not TwoPart(b"", b"data").is_control
    assert not TwoPart(b"request", b"data").is_control
