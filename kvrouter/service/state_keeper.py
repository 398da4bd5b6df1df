"""Carries what a router knows over its restarts: reads it at the start, hands it to sources, writes it now and then.

`StateSnapshots` says where and how it is kept, `Ingest` what it is. A store that does not answer costs the head start,
never the service: it is logged, counted, and tried again.
"""

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from kvrouter.errors import KvrouterError, SettingsError, SnapshotError, StoreError
from kvrouter.events import Source
from kvrouter.ingest import Ingest
from kvrouter.ingest.saved import pack, pack_end, pack_start, unpack
from kvrouter.service.event_transports import nats_options
from kvrouter.service.logs import log_event
from kvrouter.service.state_snapshots import LoadedState, Positions, StateSnapshots
from kvrouter.settings import EventSettings
from kvrouter.store import open_key_value_store, open_object_store
from kvrouter.store.addresses import parse_store_url
from kvrouter.store.files import HalfWritten
from kvrouter_subscribers import AnyEventSubscriber

__all__ = ["KeeperStatistics", "RestoringIntake", "StateKeeper", "open_state_keeper"]

LOAD_SECONDS = 10.0
SAVE_SECONDS = 60.0
CLOSE_SECONDS = 2.0
HOLD_SECONDS = 300.0
"""How long a loaded state is kept for workers that are registered after the start."""

_SETTLED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
)
"""What a file system says of a path that will not do the next time either."""

_log = logging.getLogger("kvrouter.snapshots")


@dataclass(slots=True)
class KeeperStatistics:
    """Counts since the start; times are seconds of the wall clock, 0 for never."""

    saved: int = 0
    not_leader: int = 0
    failed: int = 0
    load_failed: int = 0
    restored_sources: int = 0
    restored_blocks: int = 0
    last_saved_at: float = 0.0
    last_saved_bytes: int = 0


class StateKeeper:
    """Loads once, then saves now and then, and at the end. Lives on the event loop.

    Args:
        snapshots: the fleet's kept states.
        ingest: what is saved and restored.
        positions: how far in brokers' streams everything is known now.
        saved: called with the positions that a durable snapshot covers; what lies before them may be forgotten.
        interval_seconds: between two snapshots.
        clock: steady seconds, as ingest's `now`.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        snapshots: StateSnapshots,
        ingest: Ingest,
        *,
        positions: Callable[[], Positions],
        saved: Callable[[Positions], Awaitable[None]],
        interval_seconds: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._snapshots, self._ingest = snapshots, ingest
        self._positions_now, self._saved, self._interval_seconds = positions, saved, interval_seconds
        self._clock, self._wall_clock = clock, wall_clock
        self._held: dict[Source, bytes] = {}
        self._held_until = 0.0
        self._finishing = asyncio.Event()
        self.positions: Positions = {}
        """Where to begin to read brokers' streams: what lies before is in the loaded state."""
        self.statistics = KeeperStatistics()

    async def load(self) -> None:
        """Read the newest state that this program understands; `restore` gives each source its part of it."""
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                loaded = await self._newest()
        except (KvrouterError, TimeoutError) as error:
            self._not_loaded(str(error) or "the store did not answer in time")
            return
        if loaded is None:
            log_event(_log, logging.INFO, "no_snapshot")
            return
        self.positions = loaded.positions
        self._held_until = self._clock() + HOLD_SECONDS
        log_event(
            _log,
            logging.INFO,
            "snapshot_loaded",
            name=loaded.name,
            bytes=len(loaded.state),
            sources=len(self._held),
            age_seconds=round(max(0.0, self._wall_clock() - loaded.saved_at), 1),
        )

    def restore(self, source: Source) -> None:
        """Give a source that was just opened what is kept of it; it is in doubt until its publisher is heard."""
        section = self._held.pop(source, None)
        if section is None:
            return
        try:
            report = self._ingest.restore(b"".join((pack_start(), section, pack_end(1))), now=self._clock())
        except SnapshotError as error:
            self.statistics.load_failed += 1
            log_event(_log, logging.WARNING, "source_not_restored", worker=source.worker_id, error=str(error))
            return
        self.statistics.restored_sources += len(report.restored)
        self.statistics.restored_blocks += report.blocks

    async def run(self) -> None:
        """Save now and then; after `finish` a last time."""
        last = False
        while not last:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_seconds):
                    await self._finishing.wait()
            last = self._finishing.is_set()
            if self._held and self._clock() >= self._held_until:
                self._held.clear()
            await self.save()

    def finish(self) -> None:
        """Tell `run` to end with a last state."""
        self._finishing.set()

    async def save(self) -> None:
        """Save once; failures are counted and logged. Where nothing is known, what was kept before is better."""
        statistics = self.statistics
        try:
            async with asyncio.timeout(SAVE_SECONDS):
                # Before the state is: what comes in between is delivered again, and recognised.
                positions = self._positions_now()
                state = await self._state()
                if not state:
                    await self._snapshots.reach()
                    return
                outcome = await self._snapshots.save(state, positions, now=self._wall_clock())
                if outcome != "saved":
                    statistics.not_leader += 1
                    return
                statistics.saved += 1
                statistics.last_saved_at, statistics.last_saved_bytes = self._wall_clock(), len(state)
                await self._saved(positions)
        except (StoreError, TimeoutError) as error:
            statistics.failed += 1
            log_event(
                _log,
                logging.WARNING,
                "snapshot_not_saved",
                error=str(error) or "the store did not answer in time",
                hint="the state before is kept; it is tried again",
            )
        except Exception as error:  # noqa: BLE001 - supervised edge: a bug here must not end the service
            statistics.failed += 1
            _log.error("internal_error", exc_info=error, extra={"fields": {"where": "snapshots"}})

    async def close(self) -> None:
        """Close the stores."""
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._snapshots.close()

    async def _newest(self) -> LoadedState | None:
        """Return the newest state that can be used, and hold its parts.

        One of a later program stays where it is: ours is written above it, and that program finds both.
        """
        async with aclosing(self._snapshots.states()) as states:
            async for loaded in states:
                try:
                    self._held = {each.source: pack(each) for each in unpack(loaded.state)}
                except SnapshotError as error:
                    self._not_loaded(f"{loaded.name}: {error}")
                else:
                    return loaded
        return None

    def _not_loaded(self, error: str) -> None:
        self.statistics.load_failed += 1
        log_event(
            _log,
            logging.WARNING,
            "snapshot_not_loaded",
            error=error,
            hint="the router begins with an older one, or with what its workers say",
        )

    async def _state(self) -> bytes:
        parts = []
        for part in self._ingest.save_slices():
            parts.append(part)
            await asyncio.sleep(0)  # Requests come in between: one source at a time is bounded, all are not.
        start, *sections, _ = parts
        # Of workers that have not been registered again yet: a router that stops before must not lose what it was left.
        sections += self._held.values()
        return b"".join((start, *sections, pack_end(len(sections)))) if sections else b""


class RestoringIntake:
    """Follows sources, and gives each what is kept of it before anything comes of it."""

    def __init__(self, subscriber: AnyEventSubscriber, keeper: StateKeeper | None) -> None:
        self._subscriber, self._keeper = subscriber, keeper
        self.remove, self.refusal = subscriber.remove, subscriber.refusal

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Begin to follow a source."""
        if self._keeper is not None:
            self._keeper.restore(source)
        self._subscriber.add(source, endpoint, replay_endpoint=replay_endpoint, topic=topic)


def open_state_keeper(
    settings: EventSettings,
    ingest: Ingest,
    *,
    positions: Callable[[], Positions],
    saved: Callable[[Positions], Awaitable[None]],
    clock: Callable[[], float],
) -> StateKeeper | None:
    """Return the keeper that the settings ask for; None if they ask for none.

    Nothing is connected yet; a local directory is made.

    Raises:
        SettingsError: the address is malformed, or names a directory that cannot be written.
        MissingExtraError: the store's client is not installed.
    """
    if not settings.snapshots:
        return None
    address = parse_store_url(settings.snapshots)
    if address.kind == "file":
        _check_directory(Path(address.prefix).expanduser() / settings.fleet)
    elif address.kind == "memory":
        raise SettingsError("events.snapshots: memory is gone with the router; name a directory, NATS or Redis")
    name = settings.router_id or "router"
    snapshots = StateSnapshots(
        open_object_store(settings.snapshots, nats_options=nats_options(settings)),
        open_key_value_store(settings.snapshots, nats_options=nats_options(settings)),
        bucket=settings.fleet,
        router_id=f"{name}-{secrets.token_hex(8)}",  # Of this life alone, also where two were given one name.
    )
    return StateKeeper(
        snapshots,
        ingest,
        positions=positions,
        saved=saved,
        interval_seconds=settings.snapshot_seconds,
        clock=clock,
        wall_clock=time.time,
    )


def _check_directory(folder: Path) -> None:
    """Refuse a directory that cannot be made or written; a full or failing disk may be better the next time."""
    try:
        HalfWritten(folder / "written").abandon()
    except OSError as error:
        if error.errno in _SETTLED:
            reason = error.strerror or type(error).__name__
            raise SettingsError(f"events.snapshots: cannot write into directory {folder}: {reason}") from None
