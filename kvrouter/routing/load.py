"""The load book: what each rank still has to do for requests that were sent to it.

A request is booked when it is routed, its prefill ends with the first token and its booking with the last byte. A
booking with a lease ends by itself if nobody shows progress. Time is an argument; nothing here waits or measures.
"""

from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from kvrouter import native_core
from kvrouter.errors import OverloadedError
from kvrouter.routing.active_blocks import ActiveBlocks
from kvrouter.routing.rank_load import Outcome, over_tokens

if TYPE_CHECKING or not native_core.present:
    from kvrouter.routing.rank_load import Booking, RankLoad
else:
    Booking, RankLoad = native_core.native.Booking, native_core.native.RankLoad

__all__ = ["Booking", "LoadBook", "Outcome", "RankLoad"]


class LoadBook:
    """Bookings by id and their sums per rank. Not thread-safe; every call costs a few dictionary operations.

    Loads never become negative: whatever a booking added is exactly what its end takes away.
    """

    __slots__ = ("_active", "_leased", "_leases", "_loads", "bookings", "expired_total", "reservations_max")

    def __init__(self, *, reservations_max: int = 1_000_000) -> None:
        self.bookings: dict[Hashable, Booking] = {}
        """Those held now, by id. Hot paths look them up; only the book changes it."""
        self._loads: dict[int, RankLoad] = {}
        self._active: dict[int, ActiveBlocks] = {}
        self._leases: list[tuple[float, int, Hashable, Booking]] = []
        self._leased = 0
        self.reservations_max = reservations_max
        self.expired_total = 0

    def __len__(self) -> int:
        """Bookings held now."""
        return len(self.bookings)

    def __contains__(self, booking_id: Hashable) -> bool:
        return booking_id in self.bookings

    def load(self, rank: int) -> RankLoad:
        """The load of one rank: the living object, so read it and do not change it."""
        load = self._loads.get(rank)
        if load is None:
            load = self._loads[rank] = RankLoad(rank=rank)
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
        if prefill_tokens < 0 or blocks < len(hashes):
            raise ValueError(f"prefill_tokens ({prefill_tokens}) and blocks ({blocks}) must be at least 0")
        load = self._loads.get(rank) or self.load(rank)
        booking = self.take(booking_id, load, prefill_tokens, prompt_tokens=prompt_tokens, blocks=blocks, now=now)
        if hashes:
            self._share(booking, hashes)
        if lease_seconds is not None:
            booking.lease, booking.deadline = lease_seconds, now + lease_seconds
            self._leased += 1  # breaks ties, so that ids and bookings are never compared
            heappush(self._leases, (booking.deadline, self._leased, booking_id, booking))
        return booking

    def take(
        self, booking_id: Hashable, load: RankLoad, prefill_tokens: int, *, prompt_tokens: int, blocks: int, now: float
    ) -> Booking:
        """As `reserve` without a lease and shared blocks, for a load of this book: the way of every request."""
        bookings = self.bookings
        if booking_id in bookings:
            raise ValueError(f"{booking_id!r} is booked already")
        if len(bookings) >= self.reservations_max:
            self.check_room()
        booking = bookings[booking_id] = load.take(prefill_tokens, prompt_tokens, blocks, now)
        return booking

    def check_room(self) -> None:
        """Raise OverloadedError if `reservations_max` bookings are held."""
        if len(self.bookings) >= self.reservations_max:
            raise OverloadedError(f"{self.reservations_max} requests are booked already")

    def prefill_complete(self, booking_id: Hashable, *, now: float) -> bool:
        """The first token came; renews the lease. False if the id is unknown; again is no error."""
        booking = self.bookings.get(booking_id)
        if booking is None:
            return False
        booking.computed(now)
        if booking.lease is not None:
            booking.deadline = now + booking.lease
        return True

    def get(self, booking_id: Hashable) -> Booking | None:
        """A booking; None if there is none."""
        return self.bookings.get(booking_id)

    def output_block(self, booking_id: Hashable, decay: float | None = None, *, now: float | None = None) -> bool:
        """The answer filled one more block; renews the lease if the time is given. False if the id is unknown.

        `decay` is the share (0..1) of the request's own blocks that shall still count: blocks of a request that is
        about to end weigh less for the next one.
        """
        booking = self.bookings.get(booking_id)
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
        booking = self.bookings.pop(booking_id, None)
        if booking is None:
            return False
        booking.end(now)
        if booking.hashes:
            booking.load.add(0, 0, -self._active[booking.rank].discard(booking.hashes))
        if booking.lease is not None and len(self._leases) > 1024 + 2 * len(self.bookings):
            self._sweep()
        return True

    def expire(self, now: float) -> list[Hashable]:
        """End the bookings whose lease is over; returns their ids. Costs nothing when none is due."""
        expired: list[Hashable] = []
        while self._leases and self._leases[0][0] <= now:
            _, serial, booking_id, booking = heappop(self._leases)
            if self.bookings.get(booking_id) is not booking:
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
        held = [booking_id for booking_id, booking in self.bookings.items() if booking.rank == rank]
        for booking_id in held:
            self.free(booking_id)
        self._loads.pop(rank, None)
        self._active.pop(rank, None)
        return len(held)

    def active_prefix(self, rank: int, hashes: Sequence[int]) -> int:
        """Leading blocks of a prompt that running requests of the rank occupy anyway (if booked with hashes)."""
        active = self._active.get(rank)
        return active.leading(hashes) if active else 0

    def _share(self, booking: Booking, hashes: Sequence[int]) -> None:
        active = self._active.get(booking.rank)
        if active is None:
            active = self._active[booking.rank] = ActiveBlocks()
        booking.hashes = hashes
        booking.own -= len(hashes)
        booking.load.decode_blocks += active.add(hashes)
        _count(booking)
        booking.over_tokens = over_tokens(booking.load)

    def _sweep(self) -> None:
        """Forget leases of bookings that ended; the heap would otherwise keep them until their time."""
        self._leases = [lease for lease in self._leases if self.bookings.get(lease[2]) is lease[3]]
        heapify(self._leases)


def _count(booking: Booking) -> None:
    counted = round(booking.own * booking.weight)
    booking.load.decode_blocks += counted - booking.counted
    booking.counted = counted
