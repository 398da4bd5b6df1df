"""Gets one source's missed batches back: replays that the sink asks for, probes that we start ourselves.

At most one request for batches is under way, and beside it one for a snapshot (`snapshot_client`). What any of them
means for the index is the sink's to judge.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

from kvrouter_subscribers.link import Link
from kvrouter_subscribers.replay_client import Replay
from kvrouter_subscribers.snapshot_client import Snapshot
from kvrouter_subscribers.subscriber import Receipt
from kvrouter_subscribers.workplace import Workplace

__all__ = ["Recovery"]

_FIRST_PROBE_SECONDS = 1.0


class Recovery:
    """The requests of `link` that may be under way, and when the next probe is due."""

    def __init__(self, link: Link, workplace: Workplace) -> None:
        self._link, self._work = link, workplace
        self._task: asyncio.Task[None] | None = None
        self._current: Replay | None = None
        self._replay_start: int | None = None
        self._unanswered = False  # Whether a replay was given up because nobody answered.
        self._answers_again = False
        self._probed_at = float("-inf")
        self._snapshot_task: asyncio.Task[None] | None = None
        self._snapshot: Snapshot | None = None
        self._snapshot_due = False

    def ask(self, start: int, *, supersede: bool) -> None:
        """Replay from `start`, as the sink wants.

        A replay that is under way already covers what it wants, unless it begins too high, or `supersede` says
        that it belongs to an earlier connection or life of the engine.
        """
        if self._replay_start is not None and start >= self._replay_start and not supersede:
            return
        self._cancel_batches()
        self._replay_start = start
        self._link.replaying = True
        self._begin(self._replay(start), "replay")

    def expect_silence(self, now: float) -> None:
        """Note a new connection: what was published before our subscription reached it may be lost already."""
        self._unanswered = self._answers_again = False
        self._link.idle_since = now + _FIRST_PROBE_SECONDS - self._work.limits.probe_seconds

    def tick(self, now: float) -> None:
        """Do what is due: from time to time somebody calls this."""
        if self._snapshot_due and self._link.native is not None:
            self.ask_snapshot()
        if self._answers_again and self._task is None and self._link.connected:
            self._link.ask_anew()
        self._probe_if_due(now)

    def _probe_if_due(self, now: float) -> None:
        """Ask an idle source whether its last batches got lost; no later batch would show it.

        One that did not answer is asked whether it does by now, idle or not, or we would be in doubt for ever.
        """
        link, limits = self._link, self._work.limits
        period = limits.probe_seconds
        may_ask = self._task is None and link.connected and link.address.replay_endpoint is not None
        owes = self._unanswered and now - self._probed_at >= max(period, limits.replay_pause_seconds_max)
        if may_ask and period > 0 and (owes or now - link.idle_since >= period):
            link.idle_since = self._probed_at = now
            self._begin(self._probe(), "probe")

    def ask_snapshot(self) -> None:
        """Get a snapshot, as the sink wants, unless one is under way. On the engines' own wires there are none."""
        link = self._link
        self._snapshot_due = link.native is None  # Which wire it is the first batch will tell.
        if not link.native or self._snapshot_task is not None:
            return
        if link.address.replay_endpoint is None:
            link.give_up_snapshot()
            return
        self._snapshot_task = self._work.tasks.create_task(self._get_snapshot(), name="zmq-snapshot")
        self._snapshot_task.add_done_callback(self._snapshot_finished)

    def resync(self) -> bool:
        """Get the whole state anew; returns False if the publisher cannot be asked."""
        if self._link.address.replay_endpoint is None:
            return False
        if self._link.native:
            self.ask_snapshot()
        else:
            self.ask(0, supersede=True)
        return True

    def cancel(self) -> None:
        """Give up what is under way; nothing of it is delivered from now on."""
        self.cancel_snapshot()
        self._cancel_batches()

    def cancel_snapshot(self) -> None:
        """Give up a snapshot that is under way: it belongs to an earlier connection or life of the engine."""
        if self._snapshot is not None:
            self._snapshot.abandon()
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
        self._snapshot_task = self._snapshot = None
        self._snapshot_due = False

    def _cancel_batches(self) -> None:
        if self._current is not None:
            self._current.abandon()
        if self._task is not None:
            self._task.cancel()
        self._finished()

    def _begin(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._work.tasks.create_task(work, name=f"zmq-{name}")
        task.add_done_callback(lambda done: self._finished() if done is self._task else None)
        self._task = task

    def _finished(self) -> None:
        self._task = self._current = self._replay_start = None
        self._link.replaying = False

    async def _replay(self, start: int) -> None:
        """Replay until the sink is content, more and more slowly if it is not."""
        limits, failures = self._work.limits, 0
        while True:
            complete = await self._replay_with_retries(start)
            self._unanswered |= not complete and self._link.address.replay_endpoint is not None
            receipt = self._link.finish_replay(complete=complete)
            if receipt is not None and receipt.snapshot_wanted:
                self.ask_snapshot()
            if receipt is None or receipt.replay_from is None:
                self._replay_start = None  # From here on the sink may ask again.
                return
            start = self._replay_start = receipt.replay_from
            pause = min(limits.replay_pause_seconds * 2 ** min(failures, 16), limits.replay_pause_seconds_max)
            # Where nobody can be asked, each of many holes is given up at once: nothing would come of waiting.
            await asyncio.sleep(0 if self._link.address.replay_endpoint is None else pause)
            failures += 1

    async def _replay_with_retries(self, start: int) -> bool:
        link, limits = self._link, self._work.limits
        if link.address.replay_endpoint is None:
            return False
        for attempt in range(limits.replay_attempts):
            if attempt:
                await asyncio.sleep(min(limits.replay_pause_seconds * 2**attempt, limits.replay_pause_seconds_max))
            link.replays += 1
            if await self._request(start, link.deliver_replayed):
                return True
            link.replays_failed += 1
        return False

    async def _probe(self) -> None:
        self._link.probes += 1
        complete = await self._request(self._link.next_sequence, self._link.deliver_tail)
        self._answers_again = complete and self._unanswered
        self._link.rest()

    async def _request(self, start: int, deliver: Callable[[int, bytes], None]) -> bool:
        work, link = self._work, self._link
        endpoint = link.address.replay_endpoint
        assert endpoint is not None
        async with work.slots:
            replay = self._current = Replay(start, deliver=deliver, reject=link.reject, limits=work.limits)
            complete = await replay.run(work.context, work.pump, endpoint, work.curve)
        if replay.error is not None:
            link.last_error = replay.error
        return complete

    def _snapshot_finished(self, task: asyncio.Task[None]) -> None:
        if task is self._snapshot_task:
            self._snapshot_task = self._snapshot = None

    async def _get_snapshot(self) -> None:
        """Ask until the sink has a snapshot that it can use, a bounded number of times."""
        link, limits = self._link, self._work.limits
        for attempt in range(limits.replay_attempts):
            if attempt:
                await asyncio.sleep(min(limits.replay_pause_seconds * 2**attempt, limits.replay_pause_seconds_max))
            receipt = await self._request_snapshot()
            if receipt is not None and not receipt.snapshot_wanted:
                link.snapshots += receipt.outcome in ("applied", "restarted")
                link.snapshots_failed += receipt.outcome == "quarantined"
                if receipt.replay_from is not None:
                    self.ask(receipt.replay_from, supersede=receipt.outcome == "restarted")
                return
        link.give_up_snapshot()

    async def _request_snapshot(self) -> Receipt | None:
        """Ask once; returns the sink's answer, None if there was nothing to hand over."""
        work, link = self._work, self._link
        endpoint = link.address.replay_endpoint
        assert endpoint is not None
        async with work.slots:
            snapshot = self._snapshot = Snapshot(partial(link.open_envelope, snapshot=True), limits=work.limits)
            complete = await snapshot.run(work.context, work.pump, endpoint, work.curve)
        if not complete:
            link.last_error = snapshot.error
            return None
        return link.deliver_snapshot(snapshot.sequence, snapshot.incarnation, snapshot.batches)
