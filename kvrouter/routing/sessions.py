"""Which rank a conversation is on: bindings that end when they are idle, closed, too many, or their worker leaves.

Pure: time is an argument. A binding is a preference or a pin, which is a price on all other ranks (`constraints.py`);
where the rank cannot be had, the conversation moves to whichever is chosen, and stays there.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from msgspec import structs
from xxhash import xxh3_128_hexdigest

from kvrouter.events import Source
from kvrouter.routing.constraints import Constraints

__all__ = ["KEY_CHARACTERS_MAX", "PIN_SECONDS", "SessionCounts", "SessionRow", "SessionTable"]

KEY_CHARACTERS_MAX = 256
PIN_SECONDS = 1e9
"""No wait is that long: the rank is taken wherever it can be had."""

_Key: TypeAlias = tuple[str, str]
"""Session and model: the same conversation may talk to several models."""


class SessionRow(NamedTuple):
    """One binding, for whoever looks."""

    session: str
    model: str
    worker_id: str
    rank: int
    requests: int
    idle_seconds: float
    active: int


class SessionCounts:
    """What became of conversations."""

    __slots__ = ("closed", "evicted", "expired", "kept", "moved", "opened", "orphaned")

    def __init__(self) -> None:
        self.opened = self.kept = self.moved = self.closed = self.expired = self.evicted = self.orphaned = 0

    def as_labels(self) -> dict[str, int]:
        """By what happened."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Binding:
    __slots__ = ("active", "requests", "source", "used_at")

    def __init__(self, source: Source, now: float) -> None:
        self.source, self.used_at = source, now
        self.requests = self.active = 0


class SessionTable:
    """Bindings by conversation, the longest idle ones first. Every call is constant time but those of the admin.

    Args:
        idle_seconds: a conversation that had no request for so long is forgotten; one that is being answered is not.
        sessions_max: how many are kept; the longest idle ones go first.
        seconds: how much longer a request may wait for the rank of its conversation; `PIN_SECONDS` pins it.
        defaults: what a request asks for that comes without constraints.
    """

    def __init__(self, *, idle_seconds: float, sessions_max: int, seconds: float, defaults: Constraints) -> None:
        self.counts = SessionCounts()
        self._idle_seconds, self._sessions_max, self._seconds = idle_seconds, sessions_max, seconds
        self._defaults = defaults
        self._bindings: OrderedDict[_Key, _Binding] = OrderedDict()
        self._by_worker: dict[str, int] = {}

    def change(self, *, idle_seconds: float, sessions_max: int, seconds: float, defaults: Constraints) -> None:
        """Take other bounds; bindings stay, but those that are too many now."""
        self._idle_seconds, self._sessions_max, self._seconds = idle_seconds, sessions_max, seconds
        self._defaults = defaults
        while len(self._bindings) > sessions_max:
            self._remove(next(iter(self._bindings)))
            self.counts.evicted += 1

    def __len__(self) -> int:
        return len(self._bindings)

    def asked(self, session: str, model: str | None, constraints: Constraints | None, now: float) -> Constraints | None:
        """Return what a request of this conversation asks for: what it says itself, and its rank."""
        self.expire(now)
        binding = self._bindings.get(_key(session, model))
        if binding is None or (constraints is not None and _is_pinned(constraints)):
            return constraints
        return structs.replace(
            self._defaults if constraints is None else constraints,
            affine=binding.source,
            affine_seconds=self._seconds,
        )

    def placed(self, session: str, model: str | None, source: Source, now: float) -> None:
        """Note where a request of this conversation went; `ended` follows."""
        key, counts = _key(session, model), self.counts
        binding = self._bindings.get(key)
        if binding is None:
            counts.opened += 1
            binding = self._bindings[key] = _Binding(source, now)
            self._count(source, 1)
            if len(self._bindings) > self._sessions_max:
                self._remove(next(iter(self._bindings)))
                counts.evicted += 1
        elif binding.source == source:
            counts.kept += 1
        else:
            counts.moved += 1
            self._count(binding.source, -1)
            self._count(source, 1)
            binding.source = source
        binding.requests += 1
        binding.active += 1
        self._touch(key, binding, now)

    def ended(self, session: str, model: str | None, now: float) -> None:
        """Note the end of a request: from now on the conversation is idle."""
        key = _key(session, model)
        binding = self._bindings.get(key)
        if binding is not None:
            binding.active = max(0, binding.active - 1)
            self._touch(key, binding, now)

    def close(self, session: str, model: str | None = None) -> int:
        """Forget a conversation, with one model or all; returns how many bindings that were."""
        keys = [_key(session, model)]
        if model is None:
            name = keys[0][0]
            keys = [key for key in self._bindings if key[0] == name]
        closed = sum(map(self._remove, keys))
        self.counts.closed += closed
        return closed

    def drop_worker(self, worker_id: str) -> int:
        """Forget the conversations of a worker that has left; returns how many there were."""
        orphans = [key for key, binding in self._bindings.items() if binding.source.worker_id == worker_id]
        for key in orphans:
            self._remove(key)
        self.counts.orphaned += len(orphans)
        return len(orphans)

    def expire(self, now: float) -> None:
        """Forget what has been idle for too long."""
        while self._bindings:
            key, binding = next(iter(self._bindings.items()))
            if now - binding.used_at < self._idle_seconds:
                return
            if binding.active:  # a long answer is no idleness
                self._touch(key, binding, now)
                continue
            self._remove(key)
            self.counts.expired += 1

    def by_worker(self) -> Mapping[str, int]:
        """How many conversations each worker has; those that have none are absent."""
        return self._by_worker

    def rows(self, now: float) -> Iterator[SessionRow]:
        """All bindings, the last used ones first."""
        for (session, model), each in reversed(self._bindings.items()):
            worker_id, rank = each.source
            yield SessionRow(session, model, worker_id, rank, each.requests, now - each.used_at, each.active)

    def _remove(self, key: _Key) -> bool:
        binding = self._bindings.pop(key, None)
        if binding is None:
            return False
        self._count(binding.source, -1)
        return True

    def _count(self, source: Source, change: int) -> None:
        left = self._by_worker.get(source.worker_id, 0) + change
        if left:
            self._by_worker[source.worker_id] = left
        else:
            del self._by_worker[source.worker_id]

    def _touch(self, key: _Key, binding: _Binding, now: float) -> None:
        binding.used_at = now
        self._bindings.move_to_end(key)


def _key(session: str, model: str | None) -> _Key:
    """Clients choose the names; a long one is kept as its hash."""
    return session if len(session) <= KEY_CHARACTERS_MAX else xxh3_128_hexdigest(session.encode()), model or ""


def _is_pinned(constraints: Constraints) -> bool:
    return constraints.pinned is not None or constraints.pinned_worker is not None
