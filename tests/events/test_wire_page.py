"""The page about the native wire says what the code does: its bytes, bounds and reasons are read and compared."""

import re
from pathlib import Path

import pytest

from kvrouter.blocks import sequence_hashes
from kvrouter.errors import WireError
from kvrouter.events import BlockStored, decode, decode_batch, envelope
from kvrouter.events.envelope import decode_envelope
from tests.events.native_vectors import ACCEPTED, OLD, REFUSED, WRITTEN, envelope_of

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "wire.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n; (vector|refused): (.+)\n([^`]+)```", PAGE)


def _bytes(block: str) -> bytes:
    return bytes.fromhex(" ".join(line.partition(";")[0] for line in block.splitlines()))


def _table(heading: str) -> dict[str, str]:
    """The first table after a heading: first column to second."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in rows[2:]}


@pytest.mark.parametrize(("name", "block"), [(name, block) for kind, name, block in BLOCKS if kind == "vector"])
def test_the_vectors_of_the_page_mean_what_it_says(name: str, block: str) -> None:
    """They are the golden ones, byte for byte."""
    frame, stated = (ACCEPTED | {key.removeprefix("1.0 "): vector for key, vector in OLD.items()} | WRITTEN)[name]

    assert _bytes(block) == frame
    assert decode_envelope(_bytes(block)) == envelope_of(stated)


@pytest.mark.parametrize(("name", "block"), [(name, block) for kind, name, block in BLOCKS if kind == "refused"])
def test_the_refusals_of_the_page_are_refused(name: str, block: str) -> None:
    """With the reason that the golden vector has."""
    frame, reason = REFUSED[name]

    with pytest.raises(WireError) as refusal:
        decode_envelope(_bytes(block))

    assert _bytes(block) == frame
    assert refusal.value.reason == reason


def test_the_page_shows_both_kinds() -> None:
    """The pattern that finds its vectors finds them."""
    assert [kind for kind, _, _ in BLOCKS].count("vector") == 6
    assert [kind for kind, _, _ in BLOCKS].count("refused") == 1


def test_every_reason_is_on_the_page_and_no_other() -> None:
    """Collected from the code that gives them."""
    source = Path(str(envelope.__file__)).read_text(encoding="utf-8")
    given = set(re.findall(r'reason="(\w+)"', source))
    given |= {f"bad_{name}" for name in re.findall(r'_number\(fields, "(\w+)"', source)}

    listed = {reason for row in _table("Refusals") for reason in re.findall(r"`(\w+)`", row)}

    assert listed == given
    assert {reason for _, reason in REFUSED.values()} == given - {"too_large"}


def test_the_bounds_of_the_page_are_the_codes() -> None:
    """Numbers that are written in two places."""
    assert _table("Batch and events") == {
        "bytes of a batch": str(decode.PAYLOAD_BYTES_MAX),
        "events in a batch": str(decode.EVENTS_PER_BATCH_MAX),
        "hashes in an event": str(decode.HASHES_PER_EVENT_MAX),
        "tokens in an event": str(decode.TOKENS_PER_EVENT_MAX),
        "tokens in a block": str(decode.BLOCK_TOKENS_MAX),
    }
    for sentence in (
        f"a msgpack map, at most {envelope.HEADER_BYTES_MAX} bytes",
        f"0 to {envelope.VERSION_NUMBER_MAX} each",
        f"1 to {envelope.WORKER_ID_BYTES_MAX} bytes of UTF-8",
        f"1 to {decode.PAYLOAD_BYTES_MAX}",
        f"exceeds {envelope.ENVELOPE_BYTES_MAX} bytes",
        f"more than {envelope.HEADER_FIELDS_MAX} fields",
        f"parts 1 to {envelope.SNAPSHOT_PARTS_MAX} ",
        f"at most {envelope.DIGEST_ROWS_MAX} rows",
    ):
        assert sentence in PAGE
    assert (envelope.RANK_MAX, envelope.INCARNATION_MAX) == (2**32 - 1, 2**64 - 1)
    assert (envelope.SEQUENCE_MAX, envelope.TIME_SECONDS_MAX) == (2**64 - 2, 2**53)


def test_the_fields_of_the_page_are_the_headers() -> None:
    """In the order in which they are written."""
    frame, _ = ACCEPTED["snapshot-part"]
    positions = [frame.index(field.strip("`").encode()) for field in _table("Header")]

    assert positions == sorted(positions)
    assert len(positions) == 9


def test_the_hash_only_vector_has_the_hashes_of_its_prompt() -> None:
    """Anybody can compute them from the description."""
    frame, _ = ACCEPTED["hash-only"]
    (event,) = decode_batch(decode_envelope(frame).payload).events

    assert isinstance(event, BlockStored)
    assert event.sequence_hashes == tuple(sequence_hashes(list(range(1, 9)), 4).tolist())
    assert event.token_ids == ()
