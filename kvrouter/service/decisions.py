"""The last decisions, for `GET /decisions` and `GET /decisions/{id}`: where a request went, and why.

A ring of fixed size. Recording costs two dictionary operations; the explanation is put into words only when somebody
asks. Neither prompts nor token ids are in it.
"""

from typing import Any

from kvrouter.routing import Decision

__all__ = ["DecisionRing"]


class DecisionRing:
    """Keeps the `kept` last decisions by the id of their request; a repeated id keeps the later one."""

    __slots__ = ("_by_id", "_next", "_slots", "recorded")

    def __init__(self, kept: int) -> None:
        self._slots: list[tuple[str, Decision, str | None, float] | None] = [None] * kept
        self._by_id: dict[str, int] = {}
        self._next = 0
        self.recorded = 0

    def record(self, request_id: str, decision: Decision, model: str | None, wall_time: float) -> None:
        """Remember one decision."""
        self.recorded += 1
        if not self._slots:
            return
        slot = self._next
        old = self._slots[slot]
        if old is not None and self._by_id.get(old[0]) == slot:
            del self._by_id[old[0]]
        self._slots[slot] = (request_id, decision, model, wall_time)
        self._by_id[request_id] = slot
        self._next = slot + 1 if slot + 1 < len(self._slots) else 0

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Return one decision as JSON-ready fields, or None when it has left the ring."""
        slot = self._by_id.get(request_id)
        entry = self._slots[slot] if slot is not None else None
        return None if entry is None else _explained(*entry)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` decisions, newest first."""
        newest_first = [*self._slots[: self._next][::-1], *self._slots[self._next :][::-1]]
        return [_explained(*entry) for entry in newest_first if entry is not None][:limit]


def _explained(request_id: str, decision: Decision, model: str | None, wall_time: float) -> dict[str, Any]:
    return {
        "id": request_id,
        "time": wall_time,
        "model": model,
        "worker_id": decision.worker_id,
        "dp_rank": decision.rank,
        "policy": decision.policy,
        "reason": decision.reason,
        "cost": decision.cost,
        "prompt_tokens": decision.prompt_tokens,
        "overlap_tokens": decision.overlap_tokens,
        "confirmed_tokens": decision.confirmed_tokens,
        "prefill_tokens": decision.prefill_tokens,
        "blocks": decision.blocks,
        "candidates": [_candidate(each) for each in decision.candidates],
    }


def _candidate(candidate: Any) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in candidate.__slots__}
