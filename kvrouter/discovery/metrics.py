"""What discovery tells Prometheus: records seen, reads of the whole list, the store's latency, lookups from memory.

By decoration, as `kvrouter.transport.metrics`: the store is wrapped, and who follows records counts them. The registry
is the caller's.
"""

from collections.abc import AsyncIterator, Awaitable
from time import perf_counter
from typing import Self, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from kvrouter.store.key_values import Change, Conflict, Entry, Exists, KeyValueBucket, KeyValueStore, Synced

__all__ = ["DiscoveryMetrics"]

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
Answer = TypeVar("Answer")


class DiscoveryMetrics:
    """The families; `store` wraps what is measured."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registrations = Counter("discovery_registrations", "Records that were new.", registry=registry)
        self.removals = Counter("discovery_removals", "Records that went away.", registry=registry)
        self.malformed = Counter("discovery_malformed_records", "Records that cannot be used.", registry=registry)
        self.discoveries = Counter("discovery_discoveries", "Reads of every record.", registry=registry)
        self.hits = Counter("discovery_cache_hits", "Lookups answered from memory.", registry=registry)
        self.misses = Counter("discovery_cache_misses", "Lookups of what is not there any more.", registry=registry)
        self._latency = Histogram(
            "discovery_store_latency_seconds", "Time that the store took.", ("operation",),
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip

    def store(self, store: KeyValueStore) -> KeyValueStore:
        """Measure a store's calls, by their names; `watch` is the time until everything that is there is known."""
        return _MeasuredStore(store, self)

    async def timed(self, operation: str, work: Awaitable[Answer]) -> Answer:
        """Do it, and note how long it took unless it failed."""
        began = perf_counter()
        answer = await work
        self.took(operation, perf_counter() - began)
        return answer

    def took(self, operation: str, seconds: float) -> None:
        """An operation was done."""
        self._latency.labels(operation).observe(seconds)


class _MeasuredStore:
    """A `KeyValueStore` whose calls are measured."""

    def __init__(self, store: KeyValueStore, metrics: DiscoveryMetrics) -> None:
        self._store, self._metrics = store, metrics

    def bucket(self, name: str) -> KeyValueBucket:
        return _MeasuredBucket(self._store.bucket(name), self._metrics)

    async def close(self) -> None:
        await self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _MeasuredBucket:
    """A `KeyValueBucket` whose calls are measured."""

    def __init__(self, bucket: KeyValueBucket, metrics: DiscoveryMetrics) -> None:
        self._bucket, self._metrics = bucket, metrics

    async def get(self, key: str) -> Entry | None:
        return await self._metrics.timed("get", self._bucket.get(key))

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        return await self._metrics.timed("create", self._bucket.create(key, value, ttl_seconds=ttl_seconds))

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        updating = self._bucket.update(key, value, expected=expected, ttl_seconds=ttl_seconds)
        return await self._metrics.timed("update", updating)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        return await self._metrics.timed("put", self._bucket.put(key, value, ttl_seconds=ttl_seconds))

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        return await self._metrics.timed("delete", self._bucket.delete(key, expected=expected))

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        return await self._metrics.timed("entries", self._bucket.entries(prefix))

    async def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        began: float | None = perf_counter()
        news = self._bucket.watch(prefix)
        try:
            async for each in news:
                if began is not None and isinstance(each, Synced):
                    self._metrics.took("watch", perf_counter() - began)
                    began = None
                yield each
        finally:
            await news.aclose()  # type: ignore[attr-defined] # a generator, whatever the backend
