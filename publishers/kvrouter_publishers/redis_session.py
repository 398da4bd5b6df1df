"""One connection of a Redis publisher, from its making to its loss: frames and load out, snapshots to who asks.

What was not acknowledged over one connection is sent again over the next. It may be in the stream twice then;
consumers know each batch by its number.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from kvrouter.events.load import LoadReport, encode_load
from kvrouter.events.redis_names import (
    EMPTY_ANSWER,
    ENTRY_FIELD,
    REFUSED_ANSWER,
    EntryId,
    load_channel,
    parse_entry_id,
    request_key,
)
from kvrouter.redis_client import RedisClient, ResponseError
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.redis_counters import RedisCounters
from kvrouter_publishers.redis_outgoing import Outgoing

__all__ = ["Session", "SnapshotDesk"]

_LISTEN_SECONDS: Final = 1.0
_ASKERS_MAX: Final = 16
_PARTS_WAITING_MAX: Final = 16
_PART_BYTES: Final = 1 << 18
"""A part of a snapshot: about ten milliseconds' work, after which events get their turn."""
_PART_POLL_SECONDS: Final = 0.01
_ANSWER_SECONDS: Final = 30
_NO_STREAM: Final = EntryId(0, 0)


class Session:
    """Sends what `outgoing` gives, and the load reports that `take_load` gives, over one connection."""

    def __init__(
        self,
        client: RedisClient,
        outgoing: Outgoing,
        counters: RedisCounters,
        *,
        stream: str,
        maxlen: int,
        take_load: Callable[[float], LoadReport | None],
    ) -> None:
        self._client, self._outgoing, self._counters, self._take_load = client, outgoing, counters, take_load
        self._channel = load_channel(stream)
        self._add = ("XADD", stream, "MAXLEN", "~", maxlen, "*", ENTRY_FIELD)
        self._stream = stream

    async def open(self) -> None:
        """Send again what is not known to be in the stream, or no longer is."""
        self._outgoing.send_again()
        self._outgoing.lost_behind(await self._last_id())

    async def turn(self) -> bool:
        """Send a few frames, and our load; returns whether there may be more."""
        now = time.monotonic()
        report = self._take_load(now)
        if report is not None:
            await self._tell(report)
        frames = self._outgoing.next(now)
        if not frames:
            return False
        commands = [(*self._add, frame) for frame in frames]
        if len(commands) == 1:  # Half the work of a transaction.
            ids = [await self._client.command(*commands[0])]
        else:  # All of them or none: what is sent again after a refusal must not come behind what followed it.
            ids = await self._client.transaction(*commands)
        self._outgoing.acknowledge([parse_entry_id(entry) for entry in ids])
        return True

    async def _tell(self, report: LoadReport) -> None:
        """Send a load report; a server that forbids it takes events all the same."""
        try:
            await self._client.command("PUBLISH", self._channel, encode_load(report, encoding="json"))
        except ResponseError:
            self._counters.load_reports_forbidden += 1

    async def _last_id(self) -> EntryId:
        try:
            answer = await self._client.command("XINFO", "STREAM", self._stream)
        except ResponseError as error:
            if "no such key" in str(error):
                return _NO_STREAM
            raise
        facts = dict(zip(answer[::2], answer[1::2], strict=True))
        return parse_entry_id(facts[b"last-generated-id"])


class SnapshotDesk:
    """Answers routers that ask for the whole state.

    A request is the name of a list into which the answer goes, part by part, no faster than it is taken out. Lists
    expire, so that neither a request nor an answer outlives the one who waits for it.
    """

    def __init__(
        self, client: RedisClient, core: PublisherCore, counters: RedisCounters, *, stream: str, offered: bool
    ) -> None:
        self._client, self._core, self._counters, self._offered = client, core, counters, offered
        self._requests = request_key(stream, core.source)

    async def serve(self) -> None:
        """Answer until the connection is lost."""
        while True:
            asked = await self._client.command("BLPOP", self._requests, _LISTEN_SECONDS, wait_seconds=_LISTEN_SECONDS)
            if asked is None:
                continue
            # A snapshot is costly to make: all who wait for one get the same.
            more = await self._client.command("LPOP", self._requests, _ASKERS_MAX - 1)
            askers = dict.fromkeys([asked[1], *(more or ())])
            parts = await self._parts()
            for asker in askers:
                await self._answer(asker, parts)

    async def _parts(self) -> list[bytes]:
        """Make a snapshot, a part at a time: the events go on meanwhile."""
        if not self._offered:
            return [REFUSED_ANSWER]
        parts: list[bytes] = []
        for parts in self._core.prepare_snapshot(part_bytes_max=_PART_BYTES):  # noqa: B007 - the last one is wanted
            await asyncio.sleep(0)
        return parts or [EMPTY_ANSWER]

    async def _answer(self, asker: bytes, parts: list[bytes]) -> None:
        for part in parts:
            waiting, _ = await self._client.transaction(("RPUSH", asker, part), ("EXPIRE", asker, _ANSWER_SECONDS))
            self._counters.snapshot_parts_sent += 1
            if waiting >= _PARTS_WAITING_MAX and not await self._taken(asker):
                self._counters.snapshot_requests_abandoned += 1
                return
        self._counters.snapshot_requests_answered += 1

    async def _taken(self, asker: bytes) -> bool:
        """Wait until the asker has taken some of the parts; returns False if it does not, before they expire."""
        deadline = time.monotonic() + _ANSWER_SECONDS / 2
        while await self._client.command("LLEN", asker) >= _PARTS_WAITING_MAX // 2:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_PART_POLL_SECONDS)
        return True
