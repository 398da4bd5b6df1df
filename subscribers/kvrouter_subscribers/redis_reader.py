"""Reads one stream of one server for all sources on it: one connection, one consumer group.

Entries are taken strictly in the stream's order, and acknowledged after the sink has them. After every loss of the
connection, and of the group, reading goes on behind the last entry that was handed over; whether something was lost
there meanwhile is told by whether that entry is still in the stream. What is missing is got back by `redis_recovery`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter.events.load import LoadReport, decode_load
from kvrouter.events.redis_names import WORKER_GROUP, EntryId, RedisEndpoint, RedisTls, parse_entry_id, router_group
from kvrouter.redis_client import RedisClient
from kvrouter_subscribers.redis_entry import Entry, decode_entry
from kvrouter_subscribers.redis_group import ConsumerGroup, has_entry, last_id
from kvrouter_subscribers.redis_history import Reading, read_history
from kvrouter_subscribers.redis_lease import GroupLease, GroupTakenError
from kvrouter_subscribers.redis_limits import RedisLimits
from kvrouter_subscribers.redis_loads import LoadListener
from kvrouter_subscribers.redis_recovery import Recovery
from kvrouter_subscribers.redis_source import FollowedSource
from kvrouter_subscribers.redis_status import Mode, StreamStatus
from kvrouter_subscribers.redis_sweep import Sweeper

__all__ = ["StreamReader"]

_BEGINNING = EntryId(0, 0)

_log = logging.getLogger("kvrouter_subscribers")


class StreamReader:
    """Reads until its task is cancelled. `sources` changes through `follow` and `leave` at any time.

    A `passing` reader takes its group along when it goes: its name was drawn for this life alone.
    """

    def __init__(
        self,
        endpoint: RedisEndpoint,
        tls: RedisTls | None,
        *,
        name: str,
        token: str,
        mode: Mode,
        passing: bool,
        start_after: EntryId | None,
        limits: RedisLimits,
        on_load: Callable[[LoadReport], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.sources: dict[Source, FollowedSource] = {}
        self.connected = False
        self.position = start_after
        self.last_error: str | None = None
        self._tls, self._limits, self._on_load = tls, limits, on_load
        self._shared = mode == "worker-group"
        self._passing = passing and not self._shared
        self._token = token
        self._name, self._group = name, WORKER_GROUP if self._shared else router_group(name)
        self._recovery: Recovery | None = None
        self._catch_up_to: EntryId | None = None
        self._whole = False
        self._messages = self._unknown = self._malformed = self._claimed = self._trimmed = 0
        self._load_reports = 0
        self._conflict_told = False
        self._connects = self._groups_removed = self._name_conflicts = 0
        self._turn_began = 0.0

    def follow(self, followed: FollowedSource) -> None:
        """Hand over what comes of a source."""
        self.sources[followed.source] = followed
        if self.connected and self._recovery is not None:
            reading = self._greet(followed, self._recovery, whole=False)
            if reading is not None:
                self._recovery.want_replay(followed, reading.start)

    def leave(self, source: Source) -> None:
        """Hand over nothing more of a source."""
        if self.sources.pop(source, None) is not None and self._recovery is not None:
            self._recovery.cancel(source)

    def resync(self, source: Source) -> bool:
        """Get a source's whole state anew; False if it cannot be asked now."""
        if self._recovery is None or self._shared or source not in self.sources:
            return False
        self._recovery.want_snapshot(self.sources[source])
        return True

    def status(self) -> StreamStatus:
        """Return what is known about the stream."""
        return StreamStatus(
            endpoint=str(self.endpoint),
            group=self._group,
            connected=self.connected,
            position=str(self.position or _BEGINNING),
            messages=self._messages,
            unknown=self._unknown,
            malformed=self._malformed,
            trimmed=self._trimmed,
            load_reports=self._load_reports,
            claimed=self._claimed,
            connects=self._connects,
            groups_removed=self._groups_removed,
            name_conflicts=self._name_conflicts,
            last_error=self.last_error,
        )

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Read the stream over one connection after the other; `tasks` owns what is done beside."""
        limits = self._limits
        pause = limits.reconnect_seconds
        while True:
            connects = self._connects
            try:
                options = self.endpoint.client_options(self._tls)
                async with RedisClient(options, answer_seconds=limits.request_seconds) as client:
                    await self._session(client, tasks)
            except GroupTakenError as error:
                self._conflicts(error)
            except Exception as error:  # noqa: BLE001 - supervised edge: whatever a peer says, the stream is read again
                self.last_error = f"{self.endpoint}: {type(error).__name__}: {error}"
            if self._connects > connects:
                pause = limits.reconnect_seconds
            await asyncio.sleep(pause)
            pause = min(2 * pause, limits.reconnect_seconds_max)

    def _conflicts(self, error: GroupTakenError) -> None:
        """Tell that somebody else has our name: an operator has to give one of us another."""
        self.last_error = f"{self.endpoint}: {error}"
        self._name_conflicts += 1
        if not self._conflict_told:
            self._conflict_told = True
            _log.warning("router_name_taken: %s", self.last_error)

    async def _session(self, client: RedisClient, tasks: asyncio.TaskGroup) -> None:
        """Read until the connection or the group is lost, which raises."""
        stream, limits = self.endpoint.stream, self._limits
        sweeper = Sweeper(client, stream, group=self._group, shared=self._shared, limits=limits)
        group = ConsumerGroup(client, stream, self._group, self._name, limits)
        recovery = Recovery(client, stream, limits=limits, tasks=tasks, position=lambda: self.position or _BEGINNING)
        lease = GroupLease(client, stream, group=self._group, token=self._token, limits=limits)
        if not self._shared:
            await lease.take()
        await sweeper.live()
        self._whole = await self._open(client, group)
        beside = [tasks.create_task(sweeper.run(), name="redis-sweeper")]
        if not self._shared:
            beside.append(tasks.create_task(lease.run(), name="redis-lease"))
        if self._on_load is not None:
            loads = LoadListener(client, stream, take=self._take_load, fail=self._loads_failed, limits=limits)
            beside.append(tasks.create_task(loads.run(), name="redis-loads"))
        try:
            await self._up(client, recovery)
            if self._shared:
                await self._read_shared(group)
            else:
                await self._read(client, group, lease)
        except asyncio.CancelledError:
            for task in beside:  # They would say again that we live.
                task.cancel()
            if self._passing:
                await sweeper.leave()
            if not self._shared:
                await lease.leave()
            raise
        finally:
            self._groups_removed += sweeper.removed
            self._down()
            recovery.close()
            for task in beside:
                task.cancel()

    async def _open(self, client: RedisClient, group: ConsumerGroup) -> bool:
        """Set the group to where we are; returns whether the stream has everything behind that."""
        stream = self.endpoint.stream
        if self._shared:
            await group.join()
            return False
        last, position = await last_id(client, stream), self.position
        whole = position is not None and position <= last and await has_entry(client, stream, position)
        if position is None:
            self.position = last  # What is there already is history.
        elif position > last:
            self.position = _BEGINNING  # The server lost its data, and counts anew.
        if position is not None and position != _BEGINNING and not whole:
            self._trimmed += 1
        assert self.position is not None
        await group.begin(self.position)
        self._catch_up_to = last
        return whole

    async def _up(self, client: RedisClient, recovery: Recovery) -> None:
        """Tell every source's sink, and bring those that know nothing yet what the stream has."""
        self.connected, self.last_error, self._recovery = True, None, recovery
        self._connects += 1
        self._conflict_told = False
        readings = {}
        for followed in list(self.sources.values()):
            reading = self._greet(followed, recovery, whole=self._whole)
            if reading is not None:
                readings[followed.source] = reading
        if not readings:
            return
        end = self.position or _BEGINNING
        await read_history(client, self.endpoint.stream, readings, end=end, limits=self._limits, answer=recovery.answer)
        for reading in readings.values():
            followed = reading.followed
            followed.read_from_start = True
            if reading.began:
                recovery.answer(followed, followed.replay_finished(complete=True))
            else:  # Nothing of it is in the stream, so the publisher alone can tell what it holds.
                recovery.want_snapshot(followed, instead_of=reading.start)

    def _greet(self, followed: FollowedSource, recovery: Recovery, *, whole: bool) -> Reading | None:
        """Announce the connection to a source's sink; returns what must be read for it before it goes on."""
        receipt = followed.connected()
        if receipt is None:
            return None
        start = receipt.replay_from
        if self._shared:  # Each member sees a part; what is missing here others have.
            if start is not None:
                followed.replay_finished(complete=False)
            return None
        followed.snapshot_wanted = followed.snapshot_wanted or receipt.snapshot_wanted
        if start is None:
            recovery.serve(followed)
        elif whole and followed.last is not None:
            # The stream goes on where we left it, so no other life of the publisher can have begun between.
            recovery.answer(followed, followed.replayed(followed.last))
            recovery.answer(followed, followed.replay_finished(complete=True))
        elif start == 0 or (followed.last is None and not whole):
            return Reading(followed, start, partial=False)
        else:
            followed.awaited = start
        return None

    def _down(self) -> None:
        if self.connected:
            self.connected, self._recovery = False, None
            for followed in list(self.sources.values()):
                followed.disconnected()

    async def _read(self, client: RedisClient, group: ConsumerGroup, lease: GroupLease) -> None:
        """Read everything, as the only one."""
        done: Sequence[bytes] = ()
        doubted = _BEGINNING  # Nothing can be said of what was before the first entry, nor twice of the same place.
        while True:
            await lease.check()
            before, full = self.position or _BEGINNING, group.full_read
            entries, unbroken = await group.read_behind(before, done)
            behind = len(entries) >= full
            if not unbroken and before > doubted:
                doubted = before
                await self._doubt(client)
            await self._take(entries)
            done = [entry.id for entry in entries]
            if self._catch_up_to is not None and (not behind or (self.position or _BEGINNING) >= self._catch_up_to):
                self._caught_up()

    async def _read_shared(self, group: ConsumerGroup) -> None:
        """Read what the server gives us: first what we were given before, also in an earlier life."""
        after = b"0-0"
        while entries := await group.unread(after):
            await self._take(entries)
            await group.acknowledge([entry.id for entry in entries])
            after = entries[-1].id
        done: Sequence[bytes] = ()
        while True:
            claimed = await group.claim()
            self._claimed += len(claimed)
            await self._take(claimed)
            await group.acknowledge([entry.id for entry in claimed])
            entries = await group.read(done)
            await self._take(entries)
            done = [entry.id for entry in entries]

    async def _take(self, entries: Sequence[Entry]) -> None:
        """Hand over entries in their order, with turns for the rest of the event loop."""
        for entry in entries:
            self._messages += 1
            if entry.fields is not None:
                self._hand_over(entry)
            self.position = parse_entry_id(entry.id)
            if time.perf_counter() - self._turn_began >= self._limits.turn_seconds:
                await asyncio.sleep(0)
                self._turn_began = time.perf_counter()

    def _hand_over(self, entry: Entry) -> None:
        try:
            envelope = decode_entry(entry)
        except WireError as error:
            self._malformed += 1
            self.last_error = f"{self.endpoint}: entry {entry.id.decode()}: {error}"
            return
        followed = self.sources.get(envelope.source)
        if followed is None:
            self._unknown += 1
        elif envelope.snapshot is not None:
            followed.reject(f"entry {entry.id.decode()}: a part of a snapshot stands among the events")
        else:
            receipt = followed.arrived(envelope)
            if self._recovery is not None and not self._shared:
                self._recovery.answer(followed, receipt)

    def _take_load(self, message: bytes) -> None:
        """Hand over a load report, if it is of a source that is followed."""
        assert self._on_load is not None
        try:
            report = decode_load(message)
        except WireError as error:
            self._malformed += 1
            self.last_error = f"{self.endpoint}: {error}"
            return
        followed = self.sources.get(report.source)
        if followed is not None:
            self._load_reports += followed.load_reported(report, self._on_load)

    def _loads_failed(self, error: Exception) -> None:
        self.last_error = f"{self.endpoint}: load reports: {type(error).__name__}: {error}"

    async def _doubt(self, client: RedisClient) -> None:
        """The stream was shortened beyond what we had read; nobody knows whose entries those were."""
        self._trimmed += 1
        self._catch_up_to = await last_id(client, self.endpoint.stream)
        for followed in self.sources.values():
            followed.doubted, followed.unbroken = True, None

    def _caught_up(self) -> None:
        """What was in the stream has been read: judge for each source whether something before it was missing."""
        self._catch_up_to = None
        recovery = self._recovery
        assert recovery is not None, "the session runs"
        for followed in list(self.sources.values()):
            start, followed.awaited = followed.awaited, None
            doubted, followed.doubted = followed.doubted, False
            if start is None:
                if doubted and followed.unbroken is None:  # What was broken has been told by the sink already.
                    recovery.want_snapshot(followed)
            elif self._whole:  # Where we began after a snapshot of our own. Silence proves nothing.
                recovery.answer(followed, followed.replay_finished(complete=followed.heard))
            elif followed.unbroken:
                recovery.answer(followed, followed.replay_finished(complete=True))
            else:
                recovery.want_snapshot(followed, instead_of=start)
