"""The last decisions, for `GET /decisions` and `GET /decisions/{id}`: where a request went, why, and how it ended.

A ring of fixed size. Recording costs one append; entries are looked for, and put into words, only when somebody asks.
Neither prompts nor token ids are in it.
"""

from collections import deque
from typing import Any, TypeAlias

from kvrouter.routing import Decision

__all__ = ["DecisionRing"]


_Entry: TypeAlias = tuple[str, Decision, str | None, float, Decision | None]


class DecisionRing:
    """Keeps the `kept` last decisions; of several with the id of one request only the last one is shown."""

    __slots__ = ("_entries", "recorded")

    def __init__(self, kept: int) -> None:
        self._entries: deque[_Entry] = deque(maxlen=kept)
        self.recorded = 0

    def keep(self, kept: int) -> None:
        """Keep so many from now on; of those that are there the last ones."""
        if kept != self._entries.maxlen:
            self._entries = deque(self._entries, maxlen=kept)

    def record(
        self,
        request_id: str,
        decision: Decision,
        model: str | None,
        wall_time: float,
        prefill: Decision | None = None,
    ) -> None:
        """Remember one decision; of a split request both, `prefill` being that of its first stage."""
        self.recorded += 1
        self._entries.append((request_id, decision, model, wall_time, prefill))

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Return one decision as JSON-ready fields, or None when it has left the ring."""
        return next((_explained(*entry) for entry in reversed(self._entries) if entry[0] == request_id), None)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` decisions, newest first."""
        latest: dict[str, _Entry] = {}
        for entry in reversed(self._entries):
            if len(latest) >= limit:
                break
            latest.setdefault(entry[0], entry)
        return [_explained(*entry) for entry in latest.values()]


def _explained(
    request_id: str, decision: Decision, model: str | None, wall_time: float, prefill: Decision | None
) -> dict[str, Any]:
    explained = {"id": request_id, "time": wall_time, "model": model, **_stage(decision)}
    return explained if prefill is None else {**explained, "prefill": _stage(prefill)}


def _stage(decision: Decision) -> dict[str, Any]:
    return {
        "worker_id": decision.worker_id,
        "dp_rank": decision.rank,
        "policy": decision.policy,
        "reason": decision.reason,
        "cost": decision.cost,
        "prompt_tokens": decision.prompt_tokens,
        "overlap_tokens": decision.overlap_tokens,
        "confirmed_tokens": decision.confirmed_tokens,
        "prefill_tokens": decision.prefill_tokens,
        **({"loaded_tokens": dict(decision.loads)} if decision.loads else {}),
        "blocks": decision.blocks,
        "outcome": _outcome(decision),
        "candidates": [_candidate(each) for each in decision.candidates],
    }


def _outcome(decision: Decision) -> dict[str, Any]:
    """What became of it. Times count from the decision, as its cost does."""
    status = decision.status
    if status is None:
        status = "running" if decision.completed is None else "ok" if decision.completed else "failed"
    return {
        "status": status,
        "first_token_seconds": decision.first_token_seconds,
        "total_seconds": decision.total_seconds,
        "cached_tokens": decision.cached_tokens,
        "output_tokens": decision.output_tokens,
    }


def _candidate(candidate: Any) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in candidate.__slots__}
