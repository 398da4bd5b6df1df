"""One contract for every key-value store, and for the locks and pointers that stand on it."""

import asyncio
import time
from pathlib import Path

import pytest

from kvrouter.errors import StoreError
from kvrouter.store import Conflict, Entry, Exists, KeyValueBucket, acquire
from tests.store.backends import LocalBackend, Place
from tests.store.conftest import Run
from tests.store.test_objects import HOSTILE

WAIT_SECONDS = 50.0


async def gone(bucket: KeyValueBucket, key: str) -> None:
    """Wait until a value has expired."""
    deadline = time.monotonic() + WAIT_SECONDS
    while await bucket.get(key) is not None:
        assert time.monotonic() < deadline, "the value never expired"
        await asyncio.sleep(0.02)


def test_a_value_is_created_once_and_changed_by_who_knows_its_revision(keys: Place, run: Run) -> None:
    """A-301, A-351, A-352: every step tells what it found, so that nobody overwrites what he has not seen."""

    async def scenario() -> None:
        async with keys.key_values() as store, keys.key_values() as other:
            bucket, elsewhere = store.bucket("pointers"), other.bucket("pointers")
            assert await bucket.get("snapshot/current") is None
            assert await bucket.update("snapshot/current", b"x", expected=7) == Conflict(None)

            first = await bucket.create("snapshot/current", b"one")
            assert isinstance(first, int)
            assert await elsewhere.create("snapshot/current", b"two") == Exists(first)
            assert await elsewhere.get("snapshot/current") == Entry(b"one", first)

            second = await elsewhere.update("snapshot/current", b"two", expected=first)
            assert isinstance(second, int)
            assert second > first
            assert await bucket.update("snapshot/current", b"three", expected=first) == Conflict(second)
            assert await bucket.get("snapshot/current") == Entry(b"two", second)

    run(scenario())


def test_a_deleted_value_is_gone_and_its_revision_never_comes_again(keys: Place, run: Run) -> None:
    """Who still expects the old revision must not meet a new value under it."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("pointers")
            first = await bucket.create("key", b"one")
            assert isinstance(first, int)
            assert await bucket.delete("key", expected=first + 1000) == Conflict(first)
            assert await bucket.delete("key", expected=first) is None
            assert await bucket.delete("key") is None
            assert await bucket.get("key") is None
            assert await bucket.update("key", b"x", expected=first) == Conflict(None)

            second = await bucket.create("key", b"")
            assert isinstance(second, int)
            assert second > first
            assert await bucket.get("key") == Entry(b"", second)
            assert await bucket.delete("key") is None

    run(scenario())


def test_of_many_at_once_exactly_one_wins(keys: Place, run: Run) -> None:
    """A-352: counting with compare-and-set loses no step, whoever counts."""

    async def scenario() -> None:
        async with keys.key_values() as store, keys.key_values() as other:
            buckets = [store.bucket("race"), other.bucket("race")] * 3
            created = await asyncio.gather(*(bucket.create("key", b"0") for bucket in buckets))
            assert sum(isinstance(answer, int) for answer in created) == 1

            async def count(bucket: KeyValueBucket) -> None:
                for _ in range(5):
                    while True:
                        entry = await bucket.get("key")
                        assert entry is not None
                        value = b"%d" % (int(entry.value) + 1)
                        if isinstance(await bucket.update("key", value, expected=entry.revision), int):
                            break

            await asyncio.gather(*map(count, buckets))
            entry = await buckets[0].get("key")
            assert entry is not None
            assert entry.value == b"30"

    run(scenario())


def test_a_value_with_a_lifetime_expires_unless_it_is_written_again(keys: Place, run: Run) -> None:
    """Each write begins its lifetime anew; afterwards the key is free."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("leases")
            revision = await bucket.create("key", b"one", ttl_seconds=600.0)
            assert isinstance(revision, int)
            later = await bucket.update("key", b"two", expected=revision, ttl_seconds=1.0)
            assert isinstance(later, int)
            await bucket.create("for-ever", b"stays")

            await gone(bucket, "key")
            assert await bucket.update("key", b"x", expected=later) == Conflict(None)
            again = await bucket.create("key", b"three")
            assert isinstance(again, int)
            assert again > later
            assert await bucket.get("for-ever") is not None

    run(scenario())


def test_buckets_and_stores_are_apart(both: Place, run: Run) -> None:
    """Equal keys of two buckets are two values; objects of the same URL are none of them."""

    async def scenario() -> None:
        async with both.key_values() as store, both.objects() as objects:
            await store.bucket("one").create("key", b"1")
            await store.bucket("two").create("key", b"2")
            await objects.put("one", "key", b"object")

            assert (await store.bucket("one").get("key") or Entry(b"", 0)).value == b"1"
            assert (await store.bucket("two").get("key") or Entry(b"", 0)).value == b"2"
            assert await objects.list("one") == ["key"]

    run(scenario())


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
def test_hostile_keys_are_refused(keys: Place, run: Run, key: str) -> None:
    """As keys and as buckets, by every method."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("bucket")
            for call in (
                bucket.get(key),
                bucket.create(key, b""),
                bucket.update(key, b"", expected=1),
                bucket.delete(key),
            ):
                with pytest.raises(StoreError, match="may not be called") as raised:
                    await call
                assert raised.value.reason == "bad_name"
            with pytest.raises(StoreError, match="may not be called"):
                store.bucket(key)

    run(scenario())


def test_a_value_beyond_the_bound_is_refused(keys: Place, run: Run) -> None:
    """A snapshot does not belong here."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("bucket")
            assert isinstance(await bucket.create("key", bytes(256 << 10)), int)
            with pytest.raises(StoreError, match="exceeds") as raised:
                await bucket.create("other", bytes((256 << 10) + 1))

            assert raised.value.reason == "too_large"

    run(scenario())


def test_a_lock_has_one_holder_at_a_time(keys: Place, run: Run) -> None:
    """The next one gets it when it is released, or when its holder no longer renews it."""

    async def scenario() -> None:
        async with keys.key_values() as store, keys.key_values() as other:
            bucket, elsewhere = store.bucket("locks"), other.bucket("locks")
            first = await acquire(bucket, "snapshot", holder="router-a", ttl_seconds=30.0)
            assert first is not None
            assert await acquire(elsewhere, "snapshot", holder="router-b") is None
            assert await first.renew()
            await first.release()
            await first.release()

            second = await acquire(elsewhere, "snapshot", holder="router-b", ttl_seconds=1.0)
            assert second is not None
            await gone(bucket, "snapshot")
            third = await acquire(bucket, "snapshot", holder="router-a", ttl_seconds=30.0)
            assert third is not None
            assert not await second.renew()
            assert not second.held
            await second.release()
            assert await third.renew(), "the late holder released what was not its own"

    run(scenario())


def test_a_holder_whose_answer_was_lost_still_holds_the_lock(keys: Place, run: Run) -> None:
    """Asking again finds its own name there; a renewal that went through unseen is recognised."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("locks")
            unseen = await acquire(bucket, "snapshot", holder="router-a-life-1")
            lease = await acquire(bucket, "snapshot", holder="router-a-life-1")
            assert unseen is not None
            assert lease is not None
            assert await unseen.renew()

            assert await lease.renew()

    run(scenario())


def test_a_damaged_file_is_told(tmp_path: Path, run: Run) -> None:
    """A file that somebody else wrote is not taken for a value, and can be removed by hand."""
    backend = LocalBackend(tmp_path)

    async def scenario() -> None:
        async with backend.key_values() as store:
            bucket = store.bucket("bucket")
            await bucket.create("a/key", b"value")
            (backend.folder / "bucket.keys" / "a%key").write_bytes(b"\xc1")

            with pytest.raises(StoreError, match="a/key") as raised:
                await bucket.get("a/key")
            assert raised.value.reason == "corrupt"

    run(scenario())
