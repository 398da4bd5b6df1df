"""The load book: what each rank still has to do for requests that were sent to it.

A request is booked when it is routed, its prefill ends with the first token and its booking with the last byte. A
booking with a lease ends by itself if nobody shows progress. Time is an argument; nothing here waits or measures.
"""

from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol

import msgspec

from kvrouter import native_core
from kvrouter.errors import OverloadedError
from kvrouter.routing.active_blocks import ActiveBlocks
from kvrouter.routing.rank_load import pairs_of

if TYPE_CHECKING or not native_core.present:
    from kvrouter.routing.rank_load import RankLoad
else:
    RankLoad = native_core.native.RankLoad

__all__ = ["Booking", "LoadBook", "Outcome", "RankLoad"]


class Outcome(Protocol):
    """What was promised of a request, and what became of it as far as it is known yet; a `Decision`."""

    cost: float
    overlap_tokens: int
    confirmed_tokens: int
    first_token_seconds: float | None
    total_seconds: float | None
    cached_tokens: int | None
    completed: bool | None
    status: str | None


class Booking(msgspec.Struct, eq=False, gc=False):
    """One request on one rank, from its choice to its end.

    Attributes:
        load: of the rank.
        rank: its dense number.
        booked_at: when it was booked.
        work_since: since when the rank has worked on what this has to wait for.
        work_tokens: prompt tokens that the rank computes from then to the first token of this, its own included.
        work_pairs: the same in pairs of a token and one before it.
        prefill_tokens: its own ones, until its first token.
        prefill_pairs: the same in pairs.
        is_waiting: whether its first token has not come yet.
        outcome: where to note what became of it.
    """

    load: RankLoad
    rank: int
    booked_at: float
    work_since: float
    work_tokens: int
    work_pairs: int
    prefill_tokens: int
    prefill_pairs: int
    own: int  # blocks that count for this booking alone
    counted: int  # what the rank's load holds for them
    is_waiting: bool = True
    outcome: Outcome | None = None
    weight: float = 1.0  # share of them that still counts
    hashes: Sequence[int] = ()
    lease: float | None = None
    deadline: float = 0.0


class LoadBook:
    """Bookings by id and their sums per rank. Not thread-safe; every call costs a few dictionary operations.

    Loads never become negative: whatever a booking added is exactly what its end takes away.
    """

    __slots__ = ("_active", "_bookings", "_leased", "_leases", "_loads", "_queues", "expired_total", "reservations_max")

    def __init__(self, *, reservations_max: int = 1_000_000) -> None:
        self._bookings: dict[Hashable, Booking] = {}
        self._loads: dict[int, RankLoad] = {}
        # By rank, those that wait for their first token; engines compute prompts in the order in which they come.
        self._queues: dict[int, dict[Hashable, Booking]] = {}
        self._active: dict[int, ActiveBlocks] = {}
        self._leases: list[tuple[float, int, Hashable, Booking]] = []
        self._leased = 0
        self.reservations_max = reservations_max
        self.expired_total = 0

    def __len__(self) -> int:
        """Bookings held now."""
        return len(self._bookings)

    def __contains__(self, booking_id: Hashable) -> bool:
        return booking_id in self._bookings

    def load(self, rank: int) -> RankLoad:
        """The load of one rank: the living object, so read it and do not change it."""
        load = self._loads.get(rank)
        if load is None:
            load = self._loads[rank] = RankLoad(rank=rank)
            self._queues[rank] = {}
        return load

    def loads(self) -> dict[int, RankLoad]:
        """The load of every rank that was ever asked for, by dense rank."""
        return dict(self._loads)

    def reserve(
        self,
        booking_id: Hashable,
        rank: int,
        *,
        prefill_tokens: int,
        blocks: int,
        now: float,
        prompt_tokens: int = 0,
        lease_seconds: float | None = None,
        hashes: Sequence[int] = (),
    ) -> Booking:
        """Book a request on a rank, and return what was booked.

        Args:
            booking_id: any hashable value; must be new.
            rank: dense rank number.
            prefill_tokens: prompt tokens that the rank has to compute.
            blocks: KV blocks that the prompt occupies, the last, partial one included.
            now: the current time.
            prompt_tokens: length of the prompt; without it, as many as are to be computed.
            lease_seconds: the booking ends this long after its last progress; None means never.
            hashes: sequence hashes of the prompt's full blocks; with them, blocks that several bookings of the rank
                share count once.

        Raises:
            ValueError: the id is booked already, or a number is negative.
            OverloadedError: as `check_room`.
        """
        if booking_id in self._bookings:
            raise ValueError(f"{booking_id!r} is booked already")
        if prefill_tokens < 0 or blocks < len(hashes):
            raise ValueError(f"prefill_tokens ({prefill_tokens}) and blocks ({blocks}) must be at least 0")
        if len(self._bookings) >= self.reservations_max:
            self.check_room()
        load = self._loads.get(rank) or self.load(rank)
        is_first = load.waiting <= 0
        pairs = pairs_of(prefill_tokens, max(prompt_tokens, prefill_tokens))
        load.add(1, prefill_tokens, blocks, pairs, 1)
        if is_first:
            load.begin(prefill_tokens, pairs, now)
        booking = self._bookings[booking_id] = self._queues[rank][booking_id] = Booking(
            load,
            rank,
            now,
            now if is_first else load.head_since,
            load.prefill_tokens,
            load.prefill_pairs,
            prefill_tokens,
            pairs,
            blocks,
            blocks,
        )
        if hashes:
            self._share(booking, hashes)
        if lease_seconds is not None:
            booking.lease, booking.deadline = lease_seconds, now + lease_seconds
            self._leased += 1  # breaks ties, so that ids and bookings are never compared
            heappush(self._leases, (booking.deadline, self._leased, booking_id, booking))
        return booking

    def check_room(self) -> None:
        """Raise OverloadedError if `reservations_max` bookings are held."""
        if len(self._bookings) >= self.reservations_max:
            raise OverloadedError(f"{self.reservations_max} requests are booked already")

    def prefill_complete(self, booking_id: Hashable, *, now: float) -> bool:
        """The first token came; renews the lease. False if the id is unknown; again is no error."""
        booking = self._bookings.get(booking_id)
        if booking is None:
            return False
        if booking.is_waiting:
            self._computed(booking_id, booking, now)
        if booking.lease is not None:
            booking.deadline = now + booking.lease
        return True

    def get(self, booking_id: Hashable) -> Booking | None:
        """A booking; None if there is none."""
        return self._bookings.get(booking_id)

    def output_block(self, booking_id: Hashable, decay: float | None = None, *, now: float | None = None) -> bool:
        """The answer filled one more block; renews the lease if the time is given. False if the id is unknown.

        `decay` is the share (0..1) of the request's own blocks that shall still count: blocks of a request that is
        about to end weigh less for the next one.
        """
        booking = self._bookings.get(booking_id)
        if booking is None:
            return False
        if decay is not None:
            if not 0 <= decay <= 1:
                raise ValueError(f"decay is {decay}; it must be 0..1")
            booking.weight = decay
        booking.own += 1
        _count(booking)
        if now is not None and booking.lease is not None:
            booking.deadline = now + booking.lease
        return True

    def free(self, booking_id: Hashable, *, now: float | None = None) -> bool:
        """The request ended, however it did. False if the id is unknown."""
        booking = self._bookings.pop(booking_id, None)
        if booking is None:
            return False
        load = booking.load
        if booking.is_waiting:
            self._computed(booking_id, booking, load.head_since if now is None else now)
        load.add(-1, 0, -booking.counted)
        if booking.hashes:
            load.add(0, 0, -self._active[booking.rank].discard(booking.hashes))
        if len(self._leases) > 1024 + 2 * len(self._bookings):
            self._sweep()
        return True

    def expire(self, now: float) -> list[Hashable]:
        """End the bookings whose lease is over; returns their ids. Costs nothing when none is due."""
        expired: list[Hashable] = []
        while self._leases and self._leases[0][0] <= now:
            _, serial, booking_id, booking = heappop(self._leases)
            if self._bookings.get(booking_id) is not booking:
                continue
            if booking.deadline > now:  # renewed since
                heappush(self._leases, (booking.deadline, serial, booking_id, booking))
                continue
            if booking.outcome is not None:
                booking.outcome.status = "expired"
            self.free(booking_id, now=now)
            expired.append(booking_id)
        self.expired_total += len(expired)
        return expired

    def drop(self, rank: int) -> int:
        """End every booking of a rank that is gone; returns how many there were."""
        held = [booking_id for booking_id, booking in self._bookings.items() if booking.rank == rank]
        for booking_id in held:
            self.free(booking_id)
        self._loads.pop(rank, None)
        self._queues.pop(rank, None)
        self._active.pop(rank, None)
        return len(held)

    def active_prefix(self, rank: int, hashes: Sequence[int]) -> int:
        """Leading blocks of a prompt that running requests of the rank occupy anyway (if booked with hashes)."""
        active = self._active.get(rank)
        return active.leading(hashes) if active else 0

    def _computed(self, booking_id: Hashable, booking: Booking, now: float) -> None:
        """A prompt waits no longer. If it was the one in work, the rank goes on with the next."""
        load, queue = booking.load, self._queues[booking.rank]
        is_front = next(iter(queue)) == booking_id
        del queue[booking_id]
        load.add(0, -booking.prefill_tokens, 0, -booking.prefill_pairs, -1)
        booking.is_waiting, booking.prefill_tokens, booking.prefill_pairs = False, 0, 0
        if not queue:
            load.begin(0, 0, now)
        elif is_front:
            front = next(iter(queue.values()))
            load.begin(front.prefill_tokens, front.prefill_pairs, now)

    def _share(self, booking: Booking, hashes: Sequence[int]) -> None:
        active = self._active.get(booking.rank)
        if active is None:
            active = self._active[booking.rank] = ActiveBlocks()
        booking.hashes = hashes
        booking.own -= len(hashes)
        booking.load.decode_blocks += active.add(hashes)
        _count(booking)

    def _sweep(self) -> None:
        """Forget leases of bookings that ended; the heap would otherwise keep them until their time."""
        self._leases = [lease for lease in self._leases if self._bookings.get(lease[2]) is lease[3]]
        heapify(self._leases)


def _count(booking: Booking) -> None:
    counted = round(booking.own * booking.weight)
    booking.load.decode_blocks += counted - booking.counted
    booking.counted = counted
