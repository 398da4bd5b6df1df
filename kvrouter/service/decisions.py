"""The last decisions, for `GET /decisions` and `GET /decisions/{id}`: where a request went, and why.

A ring of fixed size. Recording costs two dictionary operations; the explanation is put into words only when somebody
asks. Neither prompts nor token ids are in it.
"""

from collections import OrderedDict
from itertools import islice
from typing import Any

from kvrouter.routing import Decision

__all__ = ["DecisionRing"]


class DecisionRing:
    """Keeps the `kept` last decisions by the id of their request; a repeated id keeps the later one."""

    __slots__ = ("_entries", "_kept", "recorded")

    def __init__(self, kept: int) -> None:
        self._entries: OrderedDict[str, tuple[Decision, str | None, float]] = OrderedDict()
        self._kept = kept
        self.recorded = 0

    def record(self, request_id: str, decision: Decision, model: str | None, wall_time: float) -> None:
        """Remember one decision."""
        self.recorded += 1
        entries = self._entries
        if request_id in entries:
            del entries[request_id]
        entries[request_id] = (decision, model, wall_time)
        if len(entries) > self._kept:
            entries.popitem(last=False)

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Return one decision as JSON-ready fields, or None when it has left the ring."""
        entry = self._entries.get(request_id)
        return None if entry is None else _explained(request_id, *entry)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` decisions, newest first."""
        return [
            _explained(request_id, *self._entries[request_id]) for request_id in islice(reversed(self._entries), limit)
        ]


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
