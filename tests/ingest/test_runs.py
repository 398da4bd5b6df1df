"""Batches that are handed over as a run bring about what they would one by one, whatever is among them."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt
from kvrouter.ingest.fingerprints import REACH, Fingerprints
from tests.ingest.engines import CLEARED, RANK, SOURCE, payload, removed, stored, tokens
from tests.ingest.random_wires import RandomEngine
from tests.subscribers.zmtp_peer import batch


def opened(limits: IngestLimits) -> Ingest:
    """An ingest that follows one connected source."""
    ingest = Ingest(PrefixIndex(), limits=limits)
    ingest.open(SOURCE, RANK, block_size=4, now=0.0)
    return ingest


def one_by_one(ingest: Ingest, first: int, payloads: list[bytes]) -> list[Receipt]:
    """What `receive` answers."""
    return [ingest.receive(SOURCE, number, each, now=1.0) for number, each in enumerate(payloads, first)]


def as_cut(first: int, payloads: Sequence[bytes]) -> Sequence[bytes]:
    """The batches as the native core cuts them out of what a connection brings, where they are one run of it."""
    if not native_core.present:
        return payloads
    data = b"".join(batch(number, payload) for number, payload in enumerate(payloads, first))
    items, _, _ = native_core.native.cut_messages(data, len(data), b"", b"", 1 << 20, len(payloads))
    return items[0][2] if len(items) == 1 and isinstance(items[0], tuple) else payloads


def in_runs(ingest: Ingest, first: int, payloads: list[bytes]) -> list[Receipt]:
    """What `receive_run` answers, with those before the last of a run spelt out."""
    receipts: list[Receipt] = []
    while len(receipts) < len(payloads):
        number = first + len(receipts)
        taken, receipt = ingest.receive_run(SOURCE, number, as_cut(number, payloads[len(receipts) :]), now=1.0)
        receipts += [Receipt("applied")] * (taken - 1) + [receipt]
    return receipts


def known(ingest: Ingest) -> dict[str, Any]:
    """Everything that can be told of the source."""
    (status,) = ingest.status(now=2.0)
    return {"status": asdict(status), "copies": ingest.copies(SOURCE), "state": ingest.is_trusted(RANK)}


@pytest.mark.parametrize("seed", range(60))
def test_a_run_is_its_batches(seed: int) -> None:
    """Random engines, damaged batches, gaps, repetitions, restarts and replays between runs of any length."""
    choose = random.Random(seed)
    limits = IngestLimits(
        idle_hashes_max=choose.choice([3, 1000]), unresolved_hashes_max=choose.choice([3, 50]), orphan_blocks_max=20
    )
    sides, engine = [opened(limits), opened(limits)], RandomEngine(choose)
    number = 0
    for _ in range(25):
        batches = [engine.batch() for _ in range(choose.randint(1, 8))]
        batches = [engine.damaged(each) if choose.random() < 0.05 else each for each in batches]
        number = max(0, number + choose.choice([0] * 12 + [1, -1, -number]))

        answers = [one_by_one(sides[0], number, batches), in_runs(sides[1], number, batches)]

        assert answers[0] == answers[1]
        if choose.random() < 0.2:
            for side in sides:
                side.connected(SOURCE, now=1.0)
                side.receive(SOURCE, max(0, number - 1), batches[-1], now=1.0, replayed=True)
                side.replay_finished(SOURCE, now=1.0, complete=True)
        assert known(sides[0]) == known(sides[1])
        number += len(batches)


def test_a_run_is_taken_at_once() -> None:
    """The core needs one call for what an engine usually sends, from the second on; the reference takes one by one."""
    ingest = opened(IngestLimits())
    batches = [payload(stored([number], tokens(1, start=number))) for number in range(10)]
    ingest.receive(SOURCE, 0, batches[0], now=1.0)

    at_once = 9 if native_core.present else 1
    assert ingest.receive_run(SOURCE, 1, batches[1:], now=1.0) == (at_once, Receipt("applied"))


def test_a_batch_that_is_not_understood_ends_its_run() -> None:
    """Its receipt may ask for something, which must not wait for the others."""
    ingest = opened(IngestLimits())
    batches = [payload(stored([number], tokens(1, start=number))) for number in range(4)]
    ingest.receive(SOURCE, 0, batches[0], now=1.0)

    taken, receipt = ingest.receive_run(SOURCE, 1, [b"\xc1", batches[2]], now=1.0)
    assert (taken, receipt.outcome, receipt.snapshot_wanted) == (1, "quarantined", True)

    receipts = in_runs(ingest, 2, [batches[2], b"\xc1"])

    assert [receipt.outcome for receipt in receipts] == ["applied", "quarantined"]
    assert known(ingest)["status"]["applied_sequence"] == 3


def test_a_reset_and_a_removal_in_a_run_are_applied_in_order() -> None:
    """What is said about blocks counts from where it is said."""
    ingest = opened(IngestLimits())
    first = payload(stored([1], tokens(1)))
    ingest.receive(SOURCE, 0, first, now=1.0)

    receipts = in_runs(
        ingest, 1, [payload(stored([2], tokens(1, start=1))), payload(CLEARED), first, payload(removed(2)), first]
    )

    assert {receipt.outcome for receipt in receipts} == {"applied"}
    assert ingest.copies(SOURCE) == {("gpu", 0): {1: 2}}


def test_a_run_of_nobody_is_taken_whole() -> None:
    """A source that was closed meanwhile has nothing more to say."""
    ingest = opened(IngestLimits())

    assert ingest.receive_run(Source("other", 0), 7, [b"", b""], now=1.0) == (2, Receipt("unknown_source"))


def test_digests_of_a_run_are_those_of_its_batches() -> None:
    """Across the end of the memory as well, where it begins anew."""
    one, run = Fingerprints(), Fingerprints()
    batches = [bytes([number % 251]) * (number % 700) for number in range(600)]
    for sequence, each in enumerate(batches, REACH - 300):
        one.note(sequence, each)

    run.note_run(REACH - 300, batches)

    assert run.dump(REACH + 300) == one.dump(REACH + 300)
