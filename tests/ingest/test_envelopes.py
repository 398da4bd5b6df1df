"""Envelopes and ingest together: what a subscriber of the native wire does with each frame."""

import pytest

from kvrouter.blocks import Prompt
from kvrouter.events import decode_envelope
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, Receipt
from tests.events.native_vectors import ACCEPTED

RANK = 0
PROMPT = Prompt(list(range(1, 20)))


def deliver(ingest: Ingest, name: str) -> Receipt:
    """Hand over one golden frame."""
    envelope = decode_envelope(ACCEPTED[name][0])
    return ingest.receive(
        envelope.source, envelope.sequence, envelope.payload, now=0.0, incarnation=envelope.incarnation
    )


@pytest.fixture
def ingest() -> Ingest:
    """Follows the vectors' source."""
    ingest = Ingest(PrefixIndex())
    ingest.open(decode_envelope(ACCEPTED["stored"][0]).source, RANK, now=0.0)
    return ingest


@pytest.mark.parametrize("first", ["stored", "hash-only"])
def test_blocks_are_claimed_with_and_without_their_tokens(ingest: Ingest, first: str) -> None:
    """The same blocks, and a child that has no tokens follows either."""
    receipts = [deliver(ingest, name) for name in (first, "hash-only-child")]
    claimed = ingest.usable_tokens(PROMPT)
    deliver(ingest, "removed-and-cleared")

    assert receipts == [Receipt("applied")] * 2
    assert claimed == {RANK: 12}
    assert ingest.usable_tokens(PROMPT) == {}


def test_one_batch_in_two_forms_is_one_batch(ingest: Ingest) -> None:
    """Number and life say so, not the bytes."""
    deliver(ingest, "stored")

    assert deliver(ingest, "hash-only") == Receipt("duplicate")
