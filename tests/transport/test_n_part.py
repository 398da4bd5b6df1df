"""N-part messages: any number of parts in one blob (A-385, A-386)."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.transport.n_part import PARTS_MAX, NPart, decode_n_part, encode_n_part, from_two_part, to_two_part
from kvrouter.transport.two_part import TwoPart

PARTS = st.lists(st.binary(max_size=100), min_size=1, max_size=20)


@given(PARTS, st.booleans(), st.booleans(), st.booleans())
def test_parts_come_back(parts: list[bytes], control: bool, error: bool, checksum: bool) -> None:
    """A-385: headers, body parts, control and error signals."""
    decoded = decode_n_part(encode_n_part(NPart(tuple(parts), control, error), checksum=checksum))

    assert [bytes(part) for part in decoded.parts] == parts
    assert (decoded.control, decoded.error) == (control, error)


def test_the_layout_is_as_written() -> None:
    """B.2, byte for byte."""
    message = encode_n_part(NPart((b"ab", b"c"), control=True), checksum=False)

    assert message == pack(">BBHIQ", 1, 2, 2, 0, 0) + pack(">QQ", 2, 1) + b"abc"


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_two_parts_are_a_case_of_it(header: bytes, body: bytes) -> None:
    """There and back without loss."""
    there = from_two_part(TwoPart(header, body))

    assert to_two_part(there) == (header, body)
    with pytest.raises(WireError, match="3 parts"):
        to_two_part(NPart((b"1", b"2", b"3")))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda blob: b"\2" + blob[1:], "version"),
        (lambda blob: blob[:1] + b"\x80" + blob[2:], "malformed"),
        (lambda blob: blob[:2] + b"\0\0" + blob[4:], "malformed"),
        (lambda blob: blob[:4] + b"\0\0\0\1" + blob[8:], "malformed"),
        (lambda blob: blob[:-1] + b"?", "checksum"),
        (lambda blob: blob[:-1], "malformed"),
        (lambda blob: blob + b"?", "malformed"),
        (lambda blob: blob[:10], "malformed"),
        (lambda blob: blob[:20], "malformed"),
        (lambda blob: blob[:16] + b"\xff" * 8 + blob[24:], "malformed"),
    ],
)
def test_damage_is_told(damage: object, reason: str) -> None:
    """Each kind by its reason, and never by another exception."""
    blob = encode_n_part(NPart((b"envelope", b"body")))

    with pytest.raises(WireError) as error:
        decode_n_part(damage(blob))  # type: ignore[operator]

    assert error.value.reason == reason


def test_counts_and_lengths_are_bounded() -> None:
    """1 to 1024 parts, and a limit on all of it."""
    with pytest.raises(WireError, match="0 parts"):
        encode_n_part(NPart(()))
    with pytest.raises(WireError, match="1025 parts"):
        encode_n_part(NPart((b"",) * (PARTS_MAX + 1)))
    with pytest.raises(WireError, match="limit of 50"):
        encode_n_part(NPart((bytes(40),)), bytes_max=50)
    with pytest.raises(WireError, match="limit of 50"):
        decode_n_part(bytes(51), bytes_max=50)
