"""Several routers in front of one fleet: what the others have booked counts as load of the ranks, as our own does.

Each router tells how busy it keeps each rank (`replica_records.py`); how that travels is not known here. What the
others have is added to the `RankLoad`s, which every policy and the native core read anyway: so a decision costs the
same with other routers and without them, and nothing here is on its way. What a rank has from us alone is the
difference. Pure: records and the time are arguments.

Between two records of a router its requests go on. A rank works without a break, so the wait for it shrinks as time
goes by, by at most what the prompt in work has left, as for our own requests; with each first token that others
report the next prompt is in work. Who is silent for longer than its lease is forgotten with all that it booked.

All routers see the same loads, and would choose the same of several equal ranks. So each begins at another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter.routing.fleet import Fleet, FleetRank
from kvrouter.routing.replica_records import RankShare, ReplicaRecord, decode_record, encode_record

__all__ = ["NOTHING", "REPLICAS_MAX", "Elsewhere", "ReplicaCounts", "ReplicaLoads", "ReplicaView"]

REPLICAS_MAX: Final = 64
"""Other routers that one router listens to."""

_REFUSED_FIELDS_MAX: Final = 32
_TURN_BITS: Final = 30


@dataclass(slots=True)
class Elsewhere:
    """What all other routers together have on one rank; fields as in `RankShare`."""

    requests: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_blocks: int = 0
    arrivals: int = 0

    def add(self, share: RankShare | None, sign: int) -> None:
        """Add what one router has, or take it away with a `sign` of -1."""
        if share is not None:
            self.requests += sign * share.requests
            self.waiting += sign * share.waiting
            self.prefill_tokens += sign * share.prefill_tokens
            self.prefill_pairs += sign * share.prefill_pairs
            self.decode_blocks += sign * share.decode_blocks


NOTHING: Final = Elsewhere()
"""Of a rank that no other router keeps busy; not to be changed."""


@dataclass(slots=True)
class ReplicaCounts:
    """What happened since the start.

    Attributes:
        taken: records that were read.
        refused: records that were not, by the field that was wrong.
        outdated: records older than one that was read before.
        unknown_ranks: ranks in records that this router does not know.
        expired: routers that fell silent.
        left: routers whose records were taken away.
        left_out: ranks that had no room in our own record.
    """

    taken: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    outdated: int = 0
    unknown_ranks: int = 0
    expired: int = 0
    left: int = 0
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """What is known of another router, for whoever looks."""

    replica_id: str
    number: int
    age_seconds: float
    lease_seconds: float
    ranks: int
    unknown_ranks: int
    requests: int
    prefill_tokens: int


class _Replica:
    """Another router: its last record, and what of it stands in which load."""

    __slots__ = ("applied", "arrivals", "heard_at", "lease_seconds", "number", "shares")

    def __init__(self) -> None:
        self.number = -1
        self.heard_at, self.lease_seconds = 0.0, 0.0
        self.shares: dict[Source, RankShare] = {}
        self.applied: dict[Source, tuple[FleetRank, RankShare]] = {}
        self.arrivals: dict[Source, int] = {}


class ReplicaLoads:
    """Folds the records of other routers into a fleet's loads, and makes our own. Not thread-safe.

    Args:
        fleet: whose ranks are busy.
        replica_id: our own name, which no other life of a router has.
        lease_seconds: what our record promises; a sign of life comes more often.
        random: where among equal ranks we begin.
    """

    def __init__(self, fleet: Fleet, replica_id: str, *, lease_seconds: float, random: Random) -> None:
        self._fleet, self._random = fleet, random
        self.replica_id, self.lease_seconds = replica_id, lease_seconds
        self.counts = ReplicaCounts()
        self.met = 0
        """Other routers that were ever heard."""
        self._replicas: dict[str, _Replica] = {}
        self._elsewhere: dict[FleetRank, Elsewhere] = {}
        self._number = 0
        self._version = -1
        self._told: tuple[RankShare, ...] = ()

    def __len__(self) -> int:
        """Other routers that are heard."""
        return len(self._replicas)

    # -- ours ----------------------------------------------------------------------------------------------------------

    def record(self) -> bytes:
        """Return our record as it is now."""
        self._told = self._own()
        self._number += 1
        told = ReplicaRecord(self.replica_id, self._number, self.lease_seconds, self._told)
        data, left_out = encode_record(told)
        self.counts.left_out += left_out
        return data

    def has_changed(self) -> bool:
        """Whether our record would say something else than the last one."""
        return self._own() != self._told

    # -- theirs --------------------------------------------------------------------------------------------------------

    def take(self, replica_id: str, data: bytes, *, now: float) -> None:
        """The record of another router came, under its name; our own is ignored.

        Raises:
            WireError: it is refused, and counted; what was known of its router stays until its lease is over.
        """
        if replica_id == self.replica_id:
            return
        try:
            self._take(decode_record(data, replica_id), now)
        except WireError as error:
            refused = self.counts.refused
            reason = error.reason if error.reason in refused or len(refused) < _REFUSED_FIELDS_MAX else "other"
            refused[reason] = refused.get(reason, 0) + 1
            raise

    def forget(self, replica_id: str, *, now: float) -> bool:
        """A router has taken its record away, or the store has; returns whether it was known."""
        if replica_id not in self._replicas:
            return False
        self.counts.left += 1
        self._drop(replica_id, now)
        return True

    def settle(self, now: float) -> list[str]:
        """Keep up with the time and the fleet; call it a few times a second. Returns the routers that fell silent."""
        silent = [name for name, each in self._replicas.items() if now - each.heard_at > each.lease_seconds]
        for name in silent:
            self.counts.expired += 1
            self._drop(name, now)
        if not self._replicas:
            return silent
        if self._version != self._fleet.version:
            self._refit(now)
        for target, elsewhere in self._elsewhere.items():
            load = target.load
            # Our own last prompt is computed and theirs are not: the rank goes on with one of them.
            if elsewhere.waiting and load.waiting == elsewhere.waiting and not load.head_tokens:
                _begin(target, load.head_since)
        return silent

    # -- looking -------------------------------------------------------------------------------------------------------

    def elsewhere(self, target: FleetRank | None) -> Elsewhere:
        """What the others have on a rank: the living object, so read it and do not change it."""
        return NOTHING if target is None else self._elsewhere.get(target, NOTHING)

    def replicas(self, now: float) -> list[ReplicaView]:
        """The other routers, by name."""
        return [
            ReplicaView(
                replica_id=name,
                number=each.number,
                age_seconds=max(now - each.heard_at, 0.0),
                lease_seconds=each.lease_seconds,
                ranks=len(each.shares),
                unknown_ranks=len(each.shares) - len(each.applied),
                requests=sum(share.requests for share in each.shares.values()),
                prefill_tokens=sum(share.prefill_tokens for share in each.shares.values()),
            )
            for name, each in sorted(self._replicas.items())
        ]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _own(self) -> tuple[RankShare, ...]:
        """What we have on each rank that has a request of ours."""
        elsewhere_of = self._elsewhere.get
        shares = []
        for target in self._fleet.ranks:
            if target is None:
                continue
            load, other = target.load, elsewhere_of(target, NOTHING)
            requests = load.active_requests - other.requests
            if requests <= 0:
                continue
            shares.append(
                RankShare(
                    target.worker_id,
                    target.rank,
                    requests,
                    min(max(load.waiting - other.waiting, 0), requests),
                    max(load.prefill_tokens - other.prefill_tokens, 0),
                    max(load.prefill_pairs - other.prefill_pairs, 0),
                    max(load.decode_blocks - other.decode_blocks, 0),
                    max(load.arrivals - other.arrivals, 0),
                )
            )
        return tuple(shares)

    def _take(self, record: ReplicaRecord, now: float) -> None:
        replica = self._replicas.get(record.replica_id)
        if replica is None:
            if len(self._replicas) >= REPLICAS_MAX:
                raise WireError(f"replica record: more than {REPLICAS_MAX} other routers", reason="replica_id")
            replica = self._replicas[record.replica_id] = _Replica()
            self.met += 1
        if record.number <= replica.number:
            self.counts.outdated += 1
            return
        if self._version != self._fleet.version:
            self._refit(now)
        self.counts.taken += 1
        replica.number, replica.heard_at, replica.lease_seconds = record.number, now, record.lease_seconds
        self._apply(replica, {Source(each.worker_id, each.rank): each for each in record.ranks}, now)

    def _apply(self, replica: _Replica, shares: Mapping[Source, RankShare], now: float) -> None:
        """What a router has is this now, whatever it had before."""
        for source in [*replica.applied.keys() - shares.keys()]:
            target, gone = replica.applied.pop(source)
            self._change(target, gone, None, came=0, now=now)
        for source, share in shares.items():
            found = self._find(source)
            if found is None:
                self.counts.unknown_ranks += source not in replica.shares
                continue
            known = replica.applied.get(source)
            before = None if known is None else known[1]
            first = share.requests if before is None else max(share.requests - before.requests, 0)
            came = max(share.arrivals - replica.arrivals.get(source, share.arrivals - first), 0)
            if share != before:
                self._change(found, before, share, came=came, now=now)
            replica.applied[source] = found, share
            replica.arrivals[source] = share.arrivals
        replica.shares = dict(shares)

    def _change(
        self, target: FleetRank, before: RankShare | None, after: RankShare | None, *, came: int, now: float
    ) -> None:
        """Turn what one router had on a rank into what it has, in the load and in the sum of all others."""
        load, elsewhere = target.load, self._elsewhere.get(target)
        if elsewhere is None:
            elsewhere = self._elsewhere[target] = Elsewhere()
        was = Elsewhere(**{name: getattr(elsewhere, name) for name in _SUMS})
        elsewhere.add(before, -1)
        elsewhere.add(after, 1)
        requests, waiting, tokens, pairs, blocks = (getattr(elsewhere, name) - getattr(was, name) for name in _SUMS)
        was_idle = load.waiting <= 0
        # Requests that came count, also those that have ended since; the sum of requests is as it is.
        came = max(came, requests, 0)
        load.add(came, tokens, blocks, pairs, waiting)
        load.add(requests - came, 0, 0)
        elsewhere.arrivals += came
        if load.waiting <= 0:
            load.begin(0, 0, now)
        elif was_idle or came > waiting:  # first tokens came: the rank goes on with the next prompt
            _begin(target, now)

    def _drop(self, replica_id: str, now: float) -> None:
        self._apply(self._replicas[replica_id], {}, now)
        del self._replicas[replica_id]

    def _find(self, source: Source) -> FleetRank | None:
        """The rank of that name, if it is one of ours."""
        if source.worker_id not in self._fleet:
            return None
        ranks = self._fleet.worker(source.worker_id).ranks
        at = source.rank - ranks[0].rank
        return ranks[at] if 0 <= at < len(ranks) else None

    def _refit(self, now: float) -> None:
        """The fleet has changed: what was on ranks that left went with them, and some may have come."""
        self._version = self._fleet.version
        living = {rank for rank in self._fleet.ranks if rank is not None}
        for target in [*self._elsewhere.keys() - living]:
            del self._elsewhere[target]
        for replica in self._replicas.values():
            for source in [source for source, (target, _) in replica.applied.items() if target not in living]:
                del replica.applied[source]
                replica.arrivals.pop(source, None)
            self._apply(replica, replica.shares, now)
        for target in living:
            if not target.load.turn:
                target.load.turn = -1 - self._random.getrandbits(_TURN_BITS)


_SUMS: Final = ("requests", "waiting", "prefill_tokens", "prefill_pairs", "decode_blocks")


def _begin(target: FleetRank, since: float) -> None:
    """One of the waiting prompts is in work, whosever it is: one of mean length."""
    load = target.load
    load.begin(load.prefill_tokens // load.waiting, load.prefill_pairs // load.waiting, since)
