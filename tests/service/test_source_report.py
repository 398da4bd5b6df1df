"""What `GET /sources` tells beyond what ingest and transport say by themselves."""

import pytest

from kvrouter.events import AllBlocksCleared, EventBatch, Source, encode_batch
from tests.service.inprocess import InProcess


@pytest.mark.parametrize(
    ("ranks", "announced", "told"),
    [(2, 1, True), (2, 0, False), (2, None, False), (1, 1, False)],
    ids=["mixed-up", "right", "silent", "slice-of-an-engine"],
)
def test_event_endpoints_in_the_wrong_order_are_told(ranks: int, announced: int | None, told: bool) -> None:
    """The batches name their rank, and nothing else would show that they are another one's."""
    service = InProcess()
    service.add(url="http://h:1", id="w", model="m", ranks=ranks)
    batch = EventBatch(timestamp=0.0, events=(AllBlocksCleared(),), data_parallel_rank=announced)

    service.service.ingest.receive(Source("w", 0), 0, encode_batch(batch), now=service.clock.now)

    row = service.service.sources.rows()[0]
    assert row["announced_rank"] == announced
    assert (row["last_error"] is not None and "data-parallel rank 1" in row["last_error"]) is told
