"""The key of the store: who changes it, what of it is applied, and what becomes of it while the store is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from kvrouter.discovery.records import BUCKET
from kvrouter.errors import RequestError, SettingsError
from kvrouter.service.configuration.desk import ConfigDesk
from kvrouter.service.configuration.following import ConfigKey, config_key
from kvrouter.service.configuration.running import RunningSettings
from kvrouter.settings import Settings
from kvrouter.settings_sources import LoadedSettings, with_values
from kvrouter.store.key_values import KeyValueBucket
from kvrouter.store.memory_keys import MemoryKeyValueStore

KEY = config_key("kvrouter")
DEADLINE_SECONDS = 30.0


def running(values: Mapping[str, object] | None = None) -> RunningSettings:
    """Settings with which a process was started, and which change nothing in it."""
    started = LoadedSettings(with_values(Settings(), values or {}), dict.fromkeys(values or {}, "flag"), None)
    return RunningSettings(started, lambda _: lambda: None)


class Router:
    """One router's part of it."""

    def __init__(self, store: MemoryKeyValueStore, values: Mapping[str, object] | None = None) -> None:
        self.running = running(values)
        self.key = ConfigKey(store, "kvrouter", self.running)
        self.desk = ConfigDesk(self.running, self.key)

    @property
    def policy(self) -> str:
        """The policy in force."""
        return self.running.current.routing.policy

    @property
    def revision(self) -> int:
        """That of the key in force, as it is shown; 0 where there is no key."""
        return self.desk.record()["store"]["revision"] or 0

    @asynccontextmanager
    async def following(self) -> AsyncIterator["Router"]:
        """Follow the key."""
        task = asyncio.create_task(self.key.run())
        try:
            await self.key.known(seconds=DEADLINE_SECONDS)
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def has(self, policy: str) -> None:
        """Wait until a policy is in force."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.policy != policy:
                await asyncio.sleep(0.01)


def bucket(store: MemoryKeyValueStore) -> KeyValueBucket:
    """Where the key is."""
    return store.bucket(BUCKET)


async def test_the_store_goes_before_the_start_and_gives_back_what_it_does_not_name() -> None:
    """Flags included; a key that is gone gives back all of it."""
    store = MemoryKeyValueStore()
    await bucket(store).put(KEY, b'{"routing.policy": "random", "limits.attempts_max": 2}')

    async with Router(store, {"routing.policy": "sticky", "queue.requests_max": 5}).following() as router:
        assert router.policy == "random"
        assert router.running.current.queue.requests_max == 5
        assert (router.running.origin("routing.policy"), router.running.origin("queue.requests_max")) == (
            "store",
            "flag",
        )
        revision = await bucket(store).put(KEY, b'{"routing.policy": "least-loaded"}')
        await router.has("least-loaded")
        assert router.running.current.limits.attempts_max == 3
        assert router.revision == revision
        await bucket(store).delete(KEY)
        await router.has("sticky")
        assert router.revision == 0
        assert router.running.origin("routing.policy") == "flag"


@pytest.mark.parametrize(
    "value",
    [
        b"kv",
        b"[]",
        b"\xff",
        b"[" * 10_000,
        b'{"routing.policy": "fast"}',
        b'{"auth.api_keys": ["x"], "log.level": "debug"}',
    ],
)
async def test_a_value_that_is_none_is_refused_once_and_a_good_one_heals(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A slip of the hand must not stop a fleet; it is counted as one, however often it is looked at."""
    store = MemoryKeyValueStore()
    router = Router(store)
    router.running._prepare = _only_known_policies
    async with router.following():
        await bucket(store).put(KEY, b'{"routing.policy": "random"}')
        await router.has("random")
        await bucket(store).put(KEY, value)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not router.running.refused["store"]:
                await asyncio.sleep(0.01)
        await router.key._look()

        assert router.policy == "random"
        assert router.running.current.log.level == "info"
        assert router.running.refused == {"store": 1}
        (line,) = (line for line in caplog.records if line.getMessage() == "settings_refused")
        assert line.fields["revision"] == 2  # type: ignore[attr-defined]
        await bucket(store).put(KEY, b'{"routing.policy": "sticky"}')
        await router.has("sticky")


async def test_changes_of_several_at_once_are_all_made() -> None:
    """None of them overwrites another."""
    store = MemoryKeyValueStore()
    names = ["queue.requests_max", "limits.attempts_max", "health.failures", "placement.split_tokens_min"]
    async with Router(store).following() as one, Router(store).following() as other:
        routers = [one, other, one, other]
        pairs = zip(routers, names, strict=True)
        await asyncio.gather(*(router.desk.merge({name: 7}) for router, name in pairs))

        entry = await bucket(store).get(KEY)
        assert entry is not None
        assert json.loads(entry.value) == dict.fromkeys(names, 7)


async def test_a_change_is_in_force_here_when_it_is_answered_and_soon_elsewhere() -> None:
    """And taking back the last setting removes the key."""
    store = MemoryKeyValueStore()
    async with Router(store).following() as one, Router(store).following() as other:
        answer = await one.desk.merge({"routing.policy": "random", "log.level": "debug"})
        assert answer["overrides"] == {"routing.policy": "random", "log.level": "debug"}
        assert one.policy == "random"
        await other.has("random")

        await other.desk.merge({"routing.policy": None})
        assert other.policy == "kv"
        assert other.running.current.log.level == "debug"
        await one.has("kv")
        await one.desk.replace({})
        assert await bucket(store).get(KEY) is None


async def test_what_is_not_valid_is_not_written() -> None:
    """The answer names the setting."""
    store = MemoryKeyValueStore()
    async with Router(store).following() as router:
        empty: list[str] = []
        wrong: tuple[object, ...]
        wrong = {"limits.attempts_max": 99}, {"limits.atempts_max": None}, {"server.port": None}, empty
        for values in wrong:
            with pytest.raises(RequestError) as refusal:
                await router.desk.merge(values)
            assert refusal.value.status == 400
        assert refusal.value.code == "invalid_setting"
        assert await bucket(store).get(KEY) is None
        assert router.running.refused == {"api": len(wrong)}


async def test_what_cannot_be_read_is_replaced_only_on_purpose() -> None:
    """A merge with something unknown would lose it."""
    store = MemoryKeyValueStore()
    await bucket(store).put(KEY, b"{")
    async with Router(store).following() as router:
        with pytest.raises(RequestError) as refusal:
            await router.desk.merge({"routing.policy": "random"})
        assert (refusal.value.status, refusal.value.code) == (409, "unreadable_settings")

        await router.desk.replace({"routing.policy": "random"})

        assert router.policy == "random"


async def test_without_a_store_a_change_is_of_this_process() -> None:
    """Which the answer says."""
    settings = running()
    desk = ConfigDesk(settings, None)

    await desk.merge({"routing.policy": "random"})
    answer = await desk.merge({"log.level": "debug"})

    assert answer["overrides"] == {"routing.policy": "random", "log.level": "debug"}
    assert (answer["store"], answer["applies_to"]) == (None, "this process, until it ends")
    with pytest.raises(RequestError):
        await desk.merge({"log.level": "loud"})
    assert settings.refused == {"api": 1}


async def test_a_store_that_lost_its_data_begins_with_revision_one_again() -> None:
    """A revision is compared with nothing: what is there is in force."""
    router = Router(MemoryKeyValueStore())
    old = bucket(MemoryKeyValueStore())
    for _ in range(5):
        await old.put(KEY, b'{"routing.policy": "random"}')
    router.key._bucket = old
    await router.key._look()
    assert (router.policy, router.revision) == ("random", 5)

    router.key._bucket = bucket(MemoryKeyValueStore())
    await router.key._bucket.put(KEY, b'{"routing.policy": "sticky"}')
    await router.key._look()

    assert (router.policy, router.revision) == ("sticky", 1)


def test_secrets_are_never_shown() -> None:
    """Neither keys nor passwords in addresses."""
    settings = running(
        {
            "auth.api_keys": ("sk-one",),
            "auth.admin_keys": ("sk-two",),
            "events.snapshots": "redis://user:sk-three@host:6379/0/a",
            "planes.nats_server": "nats://sk-four@host:4222",
        }
    )
    record = ConfigDesk(settings, None).record()

    assert "sk-" not in json.dumps(record)
    assert record["settings"]["auth.api_keys"]["value"] == "hidden"
    assert record["settings"]["events.snapshots"]["value"] == "redis://***@host:6379/0/a"


def _only_known_policies(settings: Settings):  # type: ignore[no-untyped-def]
    if settings.routing.policy == "fast":
        raise SettingsError("routing.policy: unknown")
    return lambda: None
