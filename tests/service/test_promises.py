"""A source whose promises fail is doubted and asked for its state; what engines leave out is read as they mean it."""

from kvrouter.events import Source
from kvrouter.service.promises import RESYNC_SECONDS, SILENT_MAX, CachedReports, PromiseKeeper
from kvrouter.service.proxy import Usage

SOURCE, OTHER = Source("a", 0), Source("b", 0)


class Records:
    """Who is told of doubts and asked for states."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def doubt(self, source: Source, *, reason: str, now: float) -> None:
        """Note it."""
        self.told.append(f"doubt {source.worker_id}")

    def trust(self, source: Source, *, now: float) -> None:
        """Note it."""
        self.told.append(f"trust {source.worker_id}")

    def resync(self, source: Source) -> bool:
        """Note it."""
        self.told.append(f"resync {source.worker_id}")
        return True


def test_a_broken_source_is_doubted_and_asked_for_its_state_but_not_all_the_time() -> None:
    """An engine that counts differently would be asked with every answer."""
    records = Records()
    keeper = PromiseKeeper(records, resync=records.resync)

    for now in (0.0, 1.0, RESYNC_SECONDS - 1.0, RESYNC_SECONDS):
        keeper.judged(SOURCE, "broken", now)

    assert records.told == ["doubt a", "resync a", "doubt a", "resync a"]


def test_a_source_that_keeps_its_promises_again_is_believed_again() -> None:
    """Also where nothing else could have told: an engine whose wire has neither digests nor replays."""
    records = Records()
    keeper = PromiseKeeper(records, resync=records.resync)

    keeper.judged(SOURCE, "broken", 0.0)
    keeper.judged(SOURCE, "kept", 1.0)
    keeper.judged(SOURCE, "broken", 2.0)

    assert records.told == ["doubt a", "resync a", "trust a", "doubt a", "resync a"]


def test_workers_that_are_gone_are_forgotten() -> None:
    """One that comes back under the same name is asked at once."""
    records = Records()
    keeper = PromiseKeeper(records, resync=records.resync)
    keeper.judged(SOURCE, "broken", 0.0)
    keeper.judged(OTHER, "broken", 0.0)

    keeper.retain({"b"})
    keeper.judged(SOURCE, "broken", 1.0)
    keeper.judged(OTHER, "broken", 1.0)

    assert records.told == ["doubt a", "resync a", "doubt b", "resync b", "doubt a", "resync a"]


def test_an_engine_that_tells_hits_says_none_by_saying_nothing() -> None:
    """Like vLLM, which leaves the field out of answers without hits, and without its flag out of all."""
    reports = CachedReports()

    before = reports.read(Usage(100, 5, None))
    told = reports.read(Usage(100, 5, 96))
    after = reports.read(Usage(100, 5, None))

    assert (before, told, after) == (None, 96, 0)


def test_an_engine_that_tells_no_hits_any_more_is_not_taken_to_have_none_for_ever() -> None:
    """It may have been started again without the flag."""
    reports = CachedReports()
    reports.read(Usage(100, 5, 96))

    silent = [reports.read(Usage(100, 5, None)) for _ in range(SILENT_MAX + 20)]

    assert silent == [0] * SILENT_MAX + [None] * 20


def test_an_answer_without_numbers_says_nothing() -> None:
    """Some tell only what they wrote."""
    reports = CachedReports()
    reports.read(Usage(100, 5, 96))

    assert reports.read(Usage(None, 5, None)) is None
