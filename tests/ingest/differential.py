"""Two ingests on the same bytes, one native and one the reference, and everything in which they could differ."""

from dataclasses import asdict
from typing import Any

from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.index.reference import PrefixIndex as ReferenceIndex
from kvrouter.ingest import Ingest, IngestLimits
from kvrouter.ingest.rank_cache import RankCache

SOURCE = Source("worker", 0)
RANK = 5
_TIERS = ("gpu", "cpu", "disk")


class Side:
    """One followed source on one implementation."""

    def __init__(self, index: Any, limits: IngestLimits) -> None:
        self.index = index
        self.ingest = Ingest(index, limits=limits)
        self.ingest.open(SOURCE, RANK, now=0.0)
        self.sequence = 0

    @property
    def cache(self) -> RankCache:
        """What is compared."""
        return self.ingest._by_rank[RANK].cache

    def send(self, payload: bytes) -> str:
        """The next batch arrives; returns its outcome."""
        receipt = self.ingest.receive(SOURCE, self.sequence, payload, now=0.0)
        self.sequence += 1
        return receipt.outcome

    def facts(self) -> dict[str, Any]:
        """All that can be told of the source."""
        cache, (status,) = self.cache, self.ingest.status(now=1.0)
        keys = cache._aliases.keys
        meanings = keys if isinstance(keys, dict) else keys.meanings()  # type: ignore[attr-defined]
        known = sorted(set(meanings.values()))
        table = cache._table
        return {
            "status": asdict(status),
            "meanings": meanings,
            "namespaces": cache._aliases._namespaces,
            "inner": cache._aliases._inner,
            "copies": cache.copies(),
            "blocks": {(tier, group): sorted(table.blocks(tier, group)) for tier in _TIERS for group in (0, 1, 2)},
            "held": {
                (tier, group): [table.holds(tier, group, key) for key in known] for tier in _TIERS for group in (0, 1)
            },
            "index": {tier: self.index.holds(RANK, known, tier).tolist() for tier in _TIERS},
            "counts": {tier: self.index.blocks(RANK, tier) for tier in _TIERS},
            "idle": (table.idle, table.idle_hashes()),
            "notes": (table.names_namespaces, table.clears_all_tiers),
            "groups": cache.profile.groups,
        }


class Pair:
    """Both sides; `send` fails where they differ."""

    def __init__(self, limits: IngestLimits | None = None, *, bytes_max: int | None = None) -> None:
        limits = limits or IngestLimits()
        self.native = Side(PrefixIndex(bytes_max=bytes_max), limits)
        self.reference = Side(ReferenceIndex(bytes_max=bytes_max), limits)

    def send(self, payload: bytes) -> None:
        """The next batch arrives at both."""
        outcomes = self.native.send(payload), self.reference.send(payload)
        assert outcomes[0] == outcomes[1]
        self.compare()

    def compare(self) -> None:
        """Both know the same."""
        native, reference = self.native.facts(), self.reference.facts()
        assert native == reference

    def close(self) -> None:
        """Nothing is left."""
        for side in (self.native, self.reference):
            side.ingest.close(SOURCE)
            assert len(side.index) == 0
