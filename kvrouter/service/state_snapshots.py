"""Keeps what a router knows where the next router finds it: written by one of them at a time, never read half-written.

The state itself is opaque here (`Ingest.save`); the stores are `kvrouter.store`. A pointer names the newest state, and
moves only after that state is whole and can be read back: at every moment, whoever starts finds a usable one.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Literal, NamedTuple

import msgspec

from kvrouter.errors import StoreError
from kvrouter.store import Entry, KeyValueStore, ObjectStore, acquire

__all__ = ["LoadedState", "Positions", "SaveOutcome", "StateSnapshots"]

SaveOutcome = Literal["saved", "not_leader", "lost"]

KEPT = 2
"""States kept beside the current one, for who is reading them, and in case it is damaged or of another version.

A state that nobody here understands counts as any other: it goes when so many newer ones are there, never before.
"""

_POINTER, _LOCK = "current", "lock"
_PREFIX = "router-state-"


Positions = Mapping[str, Mapping[str, int | str]]
"""By transport and endpoint: how far in each broker's stream everything is known."""


class LoadedState(NamedTuple):
    """What was found: the state, and the positions that go with it."""

    state: bytes
    positions: dict[str, dict[str, int | str]]
    name: str
    saved_at: float


class _Pointer(msgspec.Struct):
    number: int
    object: str
    digest: str


class StateSnapshots:
    """Saves and loads the state of one fleet; routers of the same fleet share `bucket` on the same stores.

    Every method raises `StoreError` when a store does not answer; nothing is lost then, the older state is still there.
    `router_id` must be of this process and this life alone: it tells locks and objects of two writers apart.
    """

    def __init__(self, objects: ObjectStore, keys: KeyValueStore, *, bucket: str, router_id: str) -> None:
        self._objects, self._keys, self._bucket, self._router_id = objects, keys, bucket, router_id
        self.skipped_damaged = 0
        """States that were named but could not be read, while loading."""

    async def load(self) -> LoadedState | None:
        """Return the newest state that can be read whole, or None if there is none."""
        async for loaded in self.states():
            return loaded
        return None

    async def states(self) -> AsyncGenerator[LoadedState, None]:
        """Yield the states that can be read whole, the current one first and then from the newest to the oldest.

        What their bytes mean is the caller's to judge: one that does not understand them takes the next.
        """
        names = sorted(await self._names(), reverse=True)
        pointer, _ = await self._pointer()
        if pointer is not None and pointer.object in names:
            names.remove(pointer.object)
            names.insert(0, pointer.object)
        for name in names[: KEPT + 1]:
            loaded = await self._read(name)
            if loaded is not None:
                yield loaded
            else:
                self.skipped_damaged += 1

    async def save(self, state: bytes, positions: Positions, *, now: float) -> SaveOutcome:
        """Write a state and make it the current one; `now` is seconds since the epoch, for people.

        Returns `not_leader` if another router is writing, and `lost` if another one was faster: nothing of ours is left
        then. After `saved`, and only then, brokers may forget what lies before `positions`.
        """
        lease = await acquire(self._keys.bucket(self._bucket), _LOCK, holder=self._router_id)
        if lease is None:
            return "not_leader"
        async with lease:
            return await self._save_locked(state, positions, now=now)

    async def reach(self) -> None:
        """Change nothing: whether the stores answer is worth knowing before there is something to save."""
        await self._keys.bucket(self._bucket).get(_POINTER)
        await self._names()

    async def forget(self) -> None:
        """Delete all states and the pointer: the next router begins with nothing."""
        await self._keys.bucket(self._bucket).delete(_POINTER)
        await self._objects.delete_bucket(self._bucket)

    async def close(self) -> None:
        """Close the stores."""
        await self._objects.close()
        await self._keys.close()

    async def _save_locked(self, state: bytes, positions: Positions, *, now: float) -> SaveOutcome:
        before, entry = await self._pointer()
        # Above all there are, also where the pointer was lost: what has the least number is deleted first.
        number = 1 + max([before.number if before is not None else 0, *map(_number, await self._names())])
        name = f"{_PREFIX}{number:012d}-{self._router_id}"
        meta = {
            "positions": json.dumps({transport: dict(streams) for transport, streams in positions.items()}),
            "saved_at": repr(now),
            "router": self._router_id,
        }
        written = await self._objects.put(self._bucket, name, state, meta=meta)
        seen = await self._objects.stat(self._bucket, name)
        if seen is None or seen.digest != written.digest:
            raise StoreError(f"object {name} is not what was written", reason="corrupt")
        pointer = msgspec.json.encode(_Pointer(number, name, written.digest))
        if not await self._point(pointer, entry):
            await self._objects.delete(self._bucket, name)
            return "lost"
        for old in sorted(await self._names(), reverse=True)[KEPT + 1 :]:
            await self._objects.delete(self._bucket, old)
        return "saved"

    async def _point(self, pointer: bytes, entry: Entry | None) -> bool:
        keys = self._keys.bucket(self._bucket)
        if entry is None:
            return isinstance(await keys.create(_POINTER, pointer), int)
        return isinstance(await keys.update(_POINTER, pointer, expected=entry.revision), int)

    async def _pointer(self) -> tuple[_Pointer | None, Entry | None]:
        entry = await self._keys.bucket(self._bucket).get(_POINTER)
        if entry is None:
            return None, None
        try:
            return msgspec.json.decode(entry.value, type=_Pointer), entry
        except msgspec.MsgspecError:
            return None, entry

    async def _names(self) -> list[str]:
        return [name for name in await self._objects.list(self._bucket) if name.startswith(_PREFIX)]

    async def _read(self, name: str) -> LoadedState | None:
        try:
            info = await self._objects.stat(self._bucket, name)
            state = await self._objects.get(self._bucket, name)
        except StoreError as error:
            if error.reason == "unavailable":
                raise
            return None
        if info is None:
            return None
        try:
            positions = msgspec.json.decode(info.meta.get("positions", "{}"), type=dict[str, dict[str, int | str]])
            saved_at = float(info.meta.get("saved_at", info.modified))
        except (msgspec.MsgspecError, ValueError):
            return None
        return LoadedState(state, positions, name, saved_at)


def _number(name: str) -> int:
    digits = name.removeprefix(_PREFIX).partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
