"""Following the keys of a bucket: what was there, then what changes, without a break that the follower must mend.

Backends differ in how they tell of changes, and every one of them may lose the connection over which it does. So there
is one loop here: read all, tell the difference to what the follower knows, follow the changes, and after a failure
begin again. The follower never misses that something is gone, and may miss only states that did not last.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, TypeAlias

from kvrouter.errors import StoreError
from kvrouter.store.key_values import Change, Entry, Synced

__all__ = ["Followed", "Following", "KnownKeys", "watched"]

_BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

State: TypeAlias = Mapping[str, Entry]


class Followed(NamedTuple):
    """What a backend gives to the loop: every key now, and then either one key, or again every key that there is."""

    state: State
    changes: AsyncIterator[tuple[str, Entry | None] | State]


Following: TypeAlias = Callable[[], AbstractAsyncContextManager[Followed]]


class KnownKeys:
    """What a follower knows: turns states and single changes into what is new to it. Pure.

    Revisions alone do not tell: a server that has lost its data counts anew, and gives them once more to other values.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def note(self, key: str, entry: Entry | None) -> Change | None:
        """A key has this value now, or None; returns what is new, if anything."""
        if entry is None:
            return Change(key, None) if self._entries.pop(key, None) is not None else None
        if self._entries.get(key) == entry:
            return None
        self._entries[key] = entry
        return Change(key, entry)

    def reconcile(self, state: State) -> list[Change]:
        """These are all keys that there are; returns what is new, what is gone first."""
        gone = [Change(key, None) for key in self._entries if key not in state]
        for change in gone:
            del self._entries[change.key]
        return gone + [new for key, entry in state.items() if (new := self.note(key, entry)) is not None]

    def take(self, news: "tuple[str, Entry | None] | State") -> list[Change]:
        """Either one key or all of them; returns what is new."""
        if not isinstance(news, tuple):
            return self.reconcile(news)
        change = self.note(*news)
        return [] if change is None else [change]


async def watched(following: Following) -> AsyncIterator[Change | Synced]:
    """Follow for ever, through failures; raises StoreError only for what will not pass by itself."""
    known, failures = KnownKeys(), 0
    while True:
        try:
            async with following() as (state, changes):
                for change in known.reconcile(state):
                    yield change
                yield Synced()
                failures = 0
                async for news in changes:
                    for change in known.take(news):
                        yield change
        except StoreError as error:
            if error.reason != "unavailable":
                raise
        await asyncio.sleep(_BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)])
        failures += 1
