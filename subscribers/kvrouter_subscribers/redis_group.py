"""A consumer group as its server knows it: the commands with which one member reads a stream, and no more.

A router that sees every entry has a group of its own, and tells it where to go on; members of a shared group get what
the server gives them.
"""

import time
from collections.abc import Sequence
from typing import Any

from kvrouter.events.redis_names import EntryId, parse_entry_id
from kvrouter.redis_client import RedisClient, ResponseError
from kvrouter_subscribers.redis_entry import Entry
from kvrouter_subscribers.redis_limits import RedisLimits

__all__ = ["ConsumerGroup", "has_entry", "last_id"]

_FIRST = "0-0"
# KEYS: stream. ARGV: id. On the server, so that the entry itself, which may be large, stays there.
_HAS_ENTRY = "return #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', 1)"


async def last_id(client: RedisClient, stream: str) -> EntryId:
    """Return the highest id that a stream has ever had; 0-0 if there is no stream."""
    try:
        answer = await client.command("XINFO", "STREAM", stream)
    except ResponseError as error:
        if "no such key" in str(error):
            return EntryId(0, 0)
        raise
    return parse_entry_id(dict(zip(answer[::2], answer[1::2], strict=True))[b"last-generated-id"])


async def has_entry(client: RedisClient, stream: str, place: EntryId) -> bool:
    """Tell whether an entry is still there; then so are all behind it, because streams are trimmed from the front."""
    return bool(await client.command(*_has_entry(stream, place)))


def _has_entry(stream: str, place: EntryId) -> tuple[object, ...]:
    return ("EVAL", _HAS_ENTRY, 1, stream, str(place))


class ConsumerGroup:
    """One member of one group. What fails raises what the client library raises."""

    def __init__(self, client: RedisClient, stream: str, group: str, consumer: str, limits: RedisLimits) -> None:
        self._client, self._stream, self._group, self._consumer = client, stream, group, consumer
        self._limits = limits
        self._count = limits.read_entries
        self._claimed_at = 0.0
        self._claim_from: bytes | str = _FIRST

    async def begin(self, position: EntryId) -> None:
        """Read behind `position` from now on, whoever read with this group before; nobody else does now."""
        if not await self._create(str(position)):
            await self._client.transaction(
                ("XGROUP", "DELCONSUMER", self._stream, self._group, self._consumer),  # And what it left unread.
                ("XGROUP", "SETID", self._stream, self._group, str(position)),
            )

    async def join(self) -> None:
        """Read with others; a group that nobody made yet begins with the oldest entry."""
        await self._create(_FIRST)

    async def read(self, acknowledge: Sequence[bytes]) -> list[Entry]:
        """Acknowledge entries, and return the next ones; none after a while in which there were none."""
        answers = await self._send(acknowledge)
        return self._entries(answers[-1])

    async def read_behind(self, position: EntryId, acknowledge: Sequence[bytes]) -> tuple[list[Entry], bool]:
        """As `read`; returns also whether the entry at `position` was still there then.

        If it was, none is missing between it and what is returned.
        """
        answers = await self._send(acknowledge, _has_entry(self._stream, position))
        return self._entries(answers[-2]), bool(answers[-1])

    @property
    def full_read(self) -> int:
        """So many entries are a full answer: there may be more at once."""
        return self._count

    async def unread(self, after: bytes) -> list[Entry]:
        """Return entries that this member was given in an earlier life and never acknowledged."""
        what = ("XREADGROUP", "GROUP", self._group, self._consumer)
        return _entries(
            await self._client.command(*what, "COUNT", self._limits.read_entries, "STREAMS", self._stream, after)
        )

    async def acknowledge(self, entries: Sequence[bytes]) -> None:
        """Tell the server that entries have been handed over."""
        if entries:
            await self._client.command("XACK", self._stream, self._group, *entries)

    async def claim(self) -> list[Entry]:
        """Take over what other members were given and have not acknowledged for too long; now and then only."""
        now = time.monotonic()
        if now - self._claimed_at < self._limits.claim_seconds / 2 and self._claim_from == _FIRST:
            return []
        self._claimed_at = now
        idle = round(self._limits.claim_seconds * 1000)
        answer = await self._client.command(
            *("XAUTOCLAIM", self._stream, self._group, self._consumer, idle, self._claim_from),
            *("COUNT", self._limits.read_entries),
        )
        self._claim_from = _FIRST if answer[0] == _FIRST.encode() else answer[0]
        return [Entry(*pair) for pair in answer[1] if pair[0] is not None]  # The others were trimmed meanwhile.

    async def _create(self, place: str) -> bool:
        """Make the group, and the stream if there is none; returns False if it is there."""
        try:
            await self._client.command("XGROUP", "CREATE", self._stream, self._group, place, "MKSTREAM")
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
            return False
        return True

    async def _send(self, acknowledge: Sequence[bytes], *others: tuple[object, ...]) -> list[Any]:
        """Acknowledge and read at once, and whatever else is to be known then."""
        block = max(1, round(self._limits.block_seconds * 1000))
        what = ("XREADGROUP", "GROUP", self._group, self._consumer)
        how = ("COUNT", self._count, "BLOCK", block, "STREAMS", self._stream, ">")
        commands: list[tuple[object, ...]] = [(*what, *how), *others]
        if acknowledge:
            commands.insert(0, ("XACK", self._stream, self._group, *acknowledge))
        return await self._client.together(*commands, wait_seconds=self._limits.block_seconds)

    def _entries(self, answer: Any) -> list[Entry]:
        """Read an answer, and ask for fewer entries the next time where they are large."""
        entries = _entries(answer)
        if entries:
            size = sum(len(value) for entry in entries for value in (entry.fields or {}).values())
            average = max(1, size // len(entries))
            self._count = min(self._limits.read_entries, max(1, self._limits.read_bytes_max // average))
        return entries


def _entries(answer: Any) -> list[Entry]:
    return [Entry(*pair) for pair in answer[0][1]] if answer else []
