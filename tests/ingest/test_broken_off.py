"""A batch that cannot be finished, for want of memory: its source is in doubt, and brought to the truth again."""

from collections.abc import Callable

import pytest

from kvrouter import native_core
from kvrouter.events import Event
from kvrouter.ingest import Receipt
from tests.ingest.engines import SOURCE, Rank, payload, removed, stored, tokens
from tests.native.failing_memory import FAILURES, at_every_allocation

LIFE = 7
BEFORE: list[Event] = [stored(range(1, 41), tokens(40))]
AFTER: list[Event] = [removed(*range(11, 21)), stored(range(101, 131), tokens(30, start=200))]
HELD = dict.fromkeys((*range(1, 11), *range(21, 41), *range(101, 131)), 1)
TRUTH = [payload(stored(range(1, 11), tokens(10)), stored(range(101, 131), tokens(30, start=200)))]
TOLD = dict.fromkeys((*range(1, 11), *range(101, 131)), 1)
PAYLOADS = [payload(*BEFORE), payload(*AFTER), payload(removed(40))]

WAYS: dict[str, tuple[int | None, Callable[[Rank], object]]] = {
    "next": (None, lambda rank: rank.ingest.receive(SOURCE, 1, PAYLOADS[1], now=1.0)),
    "named": (LIFE, lambda rank: rank.ingest.receive(SOURCE, 1, PAYLOADS[1], now=1.0, incarnation=LIFE)),
    "run": (None, lambda rank: rank.ingest.receive_run(SOURCE, 1, PAYLOADS[1:2], now=1.0)),
    "snapshot": (LIFE, lambda rank: rank.ingest.snapshot(SOURCE, TRUTH, sequence=1, incarnation=LIFE, now=1.0)),
}


def prepared(life: int | None) -> Rank:
    """A source that is believed after its first batch."""
    rank = Rank()
    rank.ingest.connected(SOURCE, now=0.0)
    rank.ingest.receive(SOURCE, 0, PAYLOADS[0], now=0.0, incarnation=life)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)
    return rank


def copies(rank: Rank) -> dict[int, int]:
    """What is believed."""
    return rank.ingest.copies(SOURCE).get(("gpu", 0), {})


def is_brought_to_the_truth(rank: Rank, life: int | None) -> None:
    """The next batch asks for all that is held, and that is believed then."""
    receipt: Receipt = rank.ingest.receive(SOURCE, 2, PAYLOADS[2], now=2.0, incarnation=life)
    assert receipt.snapshot_wanted
    rank.ingest.snapshot(SOURCE, TRUTH, sequence=2, incarnation=life or LIFE, now=3.0)
    if receipt.replay_from is not None:
        rank.ingest.replay_finished(SOURCE, now=4.0, complete=True)
    assert copies(rank) == TOLD
    assert rank.status.state == "live"


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_believed_without_doubt_is_true(way: str) -> None:
    """Wherever memory ends for a moment: all of a batch was applied, or nothing, or nobody is believed."""
    life, take = WAYS[way]
    before = copies(prepared(life))
    after = TOLD if way == "snapshot" else HELD
    tried: list[Rank] = []

    def check() -> None:
        for rank in tried:
            if rank.status.state == "live":
                assert copies(rank) in (before, after)
            else:
                assert rank.ingest.is_trusted(rank.status.dense_rank) == "suspect"
                is_brought_to_the_truth(rank, life)

    def attempt() -> Callable[[], object]:
        check()
        tried[:] = [prepared(life)]
        return lambda: take(tried[0])

    last = at_every_allocation(attempt, FAILURES["once"])
    check()
    assert last > 0 or not native_core.present


def test_a_fault_in_a_batch_is_told_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to whoever handed the batch over; others who ask learn that the source is in doubt."""
    rank = prepared(None)
    followed = rank.ingest._followed[SOURCE]

    def breaks(_: bytes) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(followed, "apply", breaks)
        with pytest.raises(RuntimeError, match="a bug"):
            rank.ingest.receive(SOURCE, 1, PAYLOADS[1], now=1.0)

    assert (rank.status.state, rank.status.doubt) == ("suspect", "a batch was applied in part")
    is_brought_to_the_truth(rank, None)
