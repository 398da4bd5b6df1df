"""Event batches of many sources in, index changes out; what each rank can use of a prompt.

Pure: no sockets, no clocks. A subscriber hands over what arrives and does what receipts ask for.
`sequencer` orders a source's batches, `rank_cache` applies them, `lookup` answers.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import restoring
from kvrouter.ingest.budget import Budget
from kvrouter.ingest.followed import Followed
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.lookup import Lookup, TierOverlap
from kvrouter.ingest.rank_cache import RankCache
from kvrouter.ingest.receipts import Receipt, RestoreReport, SourceState, SourceStatus
from kvrouter.ingest.saved import pack, pack_end, pack_start, unpack
from kvrouter.ingest.waiting import Batch, DigestRows

__all__ = ["Ingest"]

_UNKNOWN_SOURCE = Receipt("unknown_source")
_APPLIED, _QUARANTINED = Receipt("applied"), Receipt("quarantined")
_DEFAULT_LIMITS = IngestLimits()
_WORK_BYTES: Final = 256 << 10


class Ingest:
    """Keeps `index` true to what the opened sources say.

    Delivery may be at least once and out of order; every batch is applied once and in order. The index never
    keeps a block that an applied batch removed, and forgets a rank when batches between are lost for good. A snapshot
    brings back what was forgotten, and what is doubted is compared with the publisher's digests.
    Not thread-safe; lives on one event loop. `now` is any steady clock, in seconds.

    Batches that waited for an earlier one are all applied when it comes. With `on_backlog` only some of them are, and
    it is called when a backlog begins: the owner then calls `work`, between other things, until it returns False.

    Where the index has a bound on its bytes, all that is known of the sources is under it (`budget`).
    """

    def __init__(
        self,
        index: PrefixIndex,
        *,
        limits: IngestLimits = _DEFAULT_LIMITS,
        on_backlog: Callable[[], None] | None = None,
    ) -> None:
        self._index = index
        self._limits = limits
        self._on_backlog = on_backlog
        self._backlogged: dict[Source, None] = {}
        self.lookup = self._lookup = Lookup(index)
        self._followed: dict[Source, Followed] = {}
        self._by_rank: dict[int, Followed] = {}
        self._states: dict[int, SourceState] = {}
        self._budget = None if index.bytes_max() is None else Budget(index, self._by_rank)
        self.doubtful: set[int] = set()
        """Dense ranks whose source is not live; read for every request, so kept instead of derived."""

    def open(self, source: Source, rank: int, *, block_size: int | None = None, now: float) -> None:
        """Begin to follow `source`, whose blocks go under the dense `rank`.

        `block_size` is what the worker's description says; events overrule it. Opening an open source closes it first.
        """
        self.close(source)
        if rank in self._by_rank:
            self.close(self._by_rank[rank].source)
        followed = Followed(
            source,
            RankCache(self._index, rank, self._limits, block_size),
            index=self._index,
            lookup=self._lookup,
            limits=self._limits,
            drain_bytes=None if self._on_backlog is None else _WORK_BYTES,
        )
        followed.now = now
        if self._budget is not None:
            followed.settle = partial(self._budget.settle, followed)
        self._followed[source] = self._by_rank[rank] = followed
        self._note_state(followed)
        self._lookup.place(followed.cache)

    def close(self, source: Source) -> None:
        """Stop following `source`; its blocks leave the index. Unknown sources are ignored."""
        followed = self._followed.pop(source, None)
        if followed is None:
            return
        followed.cache.drop()
        rank = followed.cache.rank
        del self._by_rank[rank], self._states[rank]
        self.doubtful.discard(rank)
        if self._budget is not None:
            self._budget.confirm(rank)
        self._backlogged.pop(source, None)
        self._lookup.remove(rank)

    def receive(
        self,
        source: Source,
        sequence: int,
        payload: bytes,
        *,
        now: float,
        replayed: bool = False,
        incarnation: int | None = None,
        digest: DigestRows | None = None,
    ) -> Receipt:
        """Take one batch as it arrives; never raises on what is in it.

        Where it raises all the same, for want of memory or by a bug, the source is in doubt from then on.

        `incarnation` names the publisher's life where its wire does (`kvrouter.events.envelope`): a source then has it
        in every batch. None, as on the engines' own wires: lives are told apart by what their batches say. `digest`
        is what the publisher holds after this batch; what we believe then is compared with it.
        """
        followed = self._followed.get(source)
        if followed is None:
            return _UNKNOWN_SOURCE
        followed.now = now
        if not replayed and digest is None and self._is_steady(followed):
            sequencer = followed.sequencer
            if sequencer.is_next(sequence, incarnation):
                # Nearly all batches come this way. One that is understood changes nothing that is noted of its source.
                try:
                    understood = sequencer.take_next(payload)
                except BaseException:
                    self._break_off(followed)
                    raise
                if understood and (self._budget is None or not self._budget.settle(followed)):
                    return _APPLIED
                return self._answer(followed, _APPLIED if understood else _QUARANTINED)
        with self._whole(followed):
            batch = Batch(payload, digest)
            receipt = followed.sequencer.receive(sequence, batch, replayed=replayed, incarnation=incarnation)
        return self._answer(followed, receipt)

    def receive_run(self, source: Source, first: int, payloads: Sequence[bytes], *, now: float) -> tuple[int, Receipt]:
        """Take live batches with numbers from `first` on as `receive` would, one after the other, in less time.

        Returns how many it took, and the receipt of the last; those before were applied. It stops at the first that
        is not plainly the next one.
        """
        followed = self._followed.get(source)
        if followed is None:
            return len(payloads), _UNKNOWN_SOURCE
        if not self._is_steady(followed) or not followed.sequencer.is_next(first, None):
            return 1, self.receive(source, first, payloads[0], now=now)
        followed.now = now
        try:
            taken, understood = followed.take_run(payloads)
        except BaseException:
            self._break_off(followed)
            raise
        if understood and (self._budget is None or not self._budget.settle(followed)):
            return taken, _APPLIED
        return taken, self._answer(followed, _APPLIED if understood else _QUARANTINED)

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        """Close a replay that a receipt asked for; the answer may ask for another."""
        followed = self._followed.get(source)
        if followed is None:
            return _UNKNOWN_SOURCE
        followed.now = now
        with self._whole(followed):
            receipt = followed.sequencer.replay_finished(complete=complete)
        return self._answer(followed, receipt)

    def snapshot(
        self, source: Source, batches: Sequence[bytes], *, sequence: int, incarnation: int | None, now: float
    ) -> Receipt:
        """Take the whole state of `source` after batch `sequence` of that life, in place of what is known.

        Nothing is in between: no block that stays is ever out of the index, and batches that were applied since
        the snapshot was wanted count as well. What is older than that is a duplicate; a snapshot with anything in it
        that is not understood is refused. The work grows with the blocks: about as for their batches.
        """
        followed = self._followed.get(source)
        if followed is None:
            return _UNKNOWN_SOURCE
        followed.now = now
        if self._budget is not None:  # It shall not make room for itself.
            self._budget.confirm(followed.cache.rank)
        with self._whole(followed):
            receipt = followed.snapshot(batches, sequence=sequence, incarnation=incarnation)
        return self._answer(followed, receipt)

    def snapshot_failed(self, source: Source, *, now: float) -> None:
        """A snapshot that was wanted cannot be had: what is known to be wrong is forgotten, the source goes on."""
        followed = self._followed.get(source)
        if followed is not None:
            followed.now = now
            followed.counts["snapshots_missed"] += followed.awaiting
            followed.go_without()
            self._note_state(followed)

    def doubt(self, source: Source, *, reason: str, now: float) -> None:
        """Mark what is believed of `source` as maybe wrong, for a reason that its events do not show.

        Its next receipt wants a snapshot. A digest that matches, a snapshot, or a replay from number 0 clears the
        doubt. Where no batch was applied yet there is nothing to doubt.
        """
        followed = self._followed.get(source)
        if followed is not None and followed.sequencer.expected:
            followed.now = now
            followed.last_error = reason
            followed.hear_doubt(reason)
            self._note_state(followed)

    def trust(self, source: Source, *, now: float) -> None:
        """End what `doubt` began, if nothing else speaks against what is believed: the reason is gone."""
        followed = self._followed.get(source)
        if followed is not None:
            followed.now = now
            followed.hear_trust()
            self._note_state(followed)

    def work(self, *, now: float) -> bool:
        """Apply a bounded part of what waits for nothing but its turn; returns whether there is more."""
        for source in list(self._backlogged):
            followed = self._followed[source]
            followed.now = now
            with self._whole(followed):
                followed.sequencer.work()
            if self._budget is not None:
                self._budget.settle(followed)
            if not followed.sequencer.backlog:
                del self._backlogged[source]
            self._note_state(followed)
        return bool(self._backlogged)

    def save(self) -> bytes:
        """All that is known, for `restore`. `save_slices` gives the same in parts, between which others may work."""
        return b"".join(self.save_slices())

    def save_slices(self) -> Iterator[bytes]:
        """Parts that together are a saved state, one for each source; each is its source's state when it is made.

        Sources may be opened, closed and fed between parts: those that are closed by then are left out.
        """
        sections = 0
        yield pack_start()
        for source in list(self._followed):
            followed = self._followed.get(source)
            if followed is not None and followed.sequencer.expected:
                sections += 1
                yield pack(restoring.save(followed))
        yield pack_end(sections)

    def restore(self, data: bytes | bytearray | memoryview, *, now: float) -> RestoreReport:
        """Know what was saved, as far as it is of sources that are open and have not told us anything themselves yet.

        They are in doubt until their publishers repeat the last batch that was applied; from there they go on. The
        dense ranks may be others than those at the time of saving.

        Raises:
            SnapshotError: the bytes are damaged, truncated or of another version; then nothing is changed.
        """
        restored, skipped, blocks = [], [], 0
        for saved in unpack(data):
            followed = self._followed.get(saved.source)
            if followed is None or followed.sequencer.expected or followed.sequencer.waiting:
                skipped.append(saved.source)
                continue
            followed.now = now
            blocks += restoring.resume(followed, saved)
            restored.append(saved.source)
            self._lookup.place(followed.cache)
            if self._budget is not None:
                self._budget.settle(followed)
            self._note_state(followed)
        return RestoreReport(restored=tuple(restored), skipped=tuple(skipped), blocks=blocks)

    def connected(self, source: Source, *, now: float) -> Receipt:
        """The source's connection was made, for the first time or again; asks for what may have been missed."""
        followed = self._followed.get(source)
        if followed is None:
            return _UNKNOWN_SOURCE
        followed.now = now
        followed.connected = True
        receipt = followed.sequencer.connected()
        followed.want_again()
        return self._answer(followed, receipt)

    def disconnected(self, source: Source, *, now: float) -> None:
        """The source's connection was lost. Its blocks stay: a stopped process keeps its cache."""
        followed = self._followed.get(source)
        if followed is not None:
            followed.now = now
            followed.connected = False
            self._note_state(followed)

    def reset(self, source: Source, *, now: float, reason: str) -> None:
        """Forget the source's blocks and position, and keep following it; `reason` is shown as its last error."""
        followed = self._followed.get(source)
        if followed is not None:
            followed.now = now
            followed.last_error = reason
            followed.sequencer.reset()
            followed.forget(restarted=True)
            self._note_state(followed)

    def name_adapter(self, source: Source, *, lora_id: int, name: str) -> None:
        """Tell which LoRA adapter `lora_id` is, for engines (vLLM up to 0.13) whose events name no adapters."""
        followed = self._followed.get(source)
        if followed is not None:
            followed.name_adapter(lora_id, name)

    def usable_tokens(self, prompt: Prompt, tiers: Collection[str] = ("gpu",)) -> dict[int, int]:
        """Per dense rank the tokens of `prompt` that it could use now; ranks without any are absent.

        Counts whole blocks held in one of `tiers`, never the last token, under the rank's own rules: page size,
        token pairs, groups of hybrid models.
        """
        return self._lookup.usable_tokens(prompt, tiers)

    def tiers(self) -> Collection[str]:
        """The tiers in which some rank has or had blocks."""
        return self._lookup.index.tiers()

    def tier_blocks(self, prompt: Prompt) -> dict[int, TierOverlap]:
        """Per dense rank the leading blocks of `prompt` by tier; ranks without any are absent."""
        return self._lookup.tier_blocks(prompt)

    def block_size(self, rank: int) -> int | None:
        """Tokens per block on a dense rank, as its events say, else as it was opened; None for an unknown rank."""
        followed = self._by_rank.get(rank)
        if followed is None:
            return None
        shape = followed.cache.profile.shape
        return shape.unit * shape.stride

    def evictions(self, rank: int) -> tuple[int, int, float, int]:
        """Blocks that a dense rank evicted, those that it stored again soon, how soon, and what it holds.

        See `RankCache`.
        """
        followed = self._by_rank.get(rank)
        return followed.cache.evictions if followed is not None else (0, 0, 1.0, 0)

    def is_trusted(self, rank: int) -> SourceState:
        """How far the index can be trusted about a dense rank; unknown ranks are `predicted`."""
        return self._states.get(rank, "predicted")

    def copies(self, source: Source) -> dict[tuple[str, int], dict[int, int]]:
        """Copies per engine hash for each (tier, group) of a source, to compare with an engine's own dump."""
        return self._followed[source].cache.copies()

    def status(self, *, now: float) -> list[SourceStatus]:
        """Every source, in the order in which they were opened."""
        return [followed.status(now) for followed in self._followed.values()]

    def _is_steady(self, followed: Followed) -> bool:
        """Whether the source is believed, and nothing is awaited of it but its next batch."""
        return self._states[followed.cache.rank] == "live" and not followed.awaiting

    def _answer(self, followed: Followed, receipt: Receipt) -> Receipt:
        followed.expire()
        if self._budget is not None:
            self._budget.settle(followed)
        if followed.sequencer.backlog and followed.source not in self._backlogged:
            begins = not self._backlogged
            self._backlogged[followed.source] = None
            if begins and self._on_backlog is not None:
                self._on_backlog()
        self._note_state(followed)
        return followed.answer(receipt)

    @contextmanager
    def _whole(self, followed: Followed) -> Iterator[None]:
        """What is done here is done wholly or breaks the source off. Where nearly all batches pass, it is spelt out."""
        try:
            yield
        except BaseException:
            self._break_off(followed)
            raise

    def _break_off(self, followed: Followed) -> None:
        """What came was taken in part, and nobody knows in which."""
        followed.break_off()
        self._states[followed.cache.rank] = "suspect"  # So that no batch is taken any more as if all were well.
        self._note_state(followed)

    def _note_state(self, followed: Followed) -> None:
        rank, state = followed.cache.rank, followed.state()
        self._states[rank] = state
        if state == "live":
            self.doubtful.discard(rank)
        else:
            self.doubtful.add(rank)
        if self._budget is not None:
            self._budget.note(rank, state)
