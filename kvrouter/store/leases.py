"""A lock that its holder must renew: whoever dies holding it loses it by the clock.

Over any `KeyValueBucket`. A holder that was stopped for longer than the lease may wake up without it: what the lock
guards must itself be safe then, as a pointer is that is changed by comparing revisions.
"""

from typing import Self

from kvrouter.store.key_values import Exists, KeyValueBucket

__all__ = ["LEASE_SECONDS", "Lease", "acquire"]

LEASE_SECONDS = 30.0


class Lease:
    """A lock that we hold, or held."""

    def __init__(self, bucket: KeyValueBucket, key: str, holder: bytes, ttl_seconds: float, revision: int) -> None:
        self.key, self.ttl_seconds = key, ttl_seconds
        self.held = True
        self._bucket, self._holder, self._revision = bucket, holder, revision

    async def renew(self) -> bool:
        """Hold on for another `ttl_seconds`; returns False if the lock was lost, for good.

        Raises:
            StoreError: the store cannot be asked; the lock may be held still.
        """
        answer = await self._bucket.update(
            self.key, self._holder, expected=self._revision, ttl_seconds=self.ttl_seconds
        )
        if isinstance(answer, int):
            self._revision = answer
            return True
        self.held = await self._is_ours()
        return self.held

    async def release(self) -> None:
        """Let go, if it is held still. May be called again."""
        if self.held:
            self.held = False
            await self._bucket.delete(self.key, expected=self._revision)

    async def _is_ours(self) -> bool:
        """Tell whether an earlier renewal went through whose answer was lost."""
        entry = await self._bucket.get(self.key)
        if entry is None or entry.value != self._holder:
            return False
        self._revision = entry.revision
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


async def acquire(bucket: KeyValueBucket, key: str, *, holder: str, ttl_seconds: float = LEASE_SECONDS) -> Lease | None:
    """Take the lock `key`, or return None if somebody holds it.

    `holder` names who asks, differently for each process and life: an attempt whose answer was lost is recognised by
    it.

    Raises:
        StoreError: the store cannot be asked.
    """
    name = holder.encode()
    answer = await bucket.create(key, name, ttl_seconds=ttl_seconds)
    if isinstance(answer, Exists):
        entry = await bucket.get(key)
        if entry is None or entry.value != name:
            return None
        answer = entry.revision
    return Lease(bucket, key, name, ttl_seconds, answer)
