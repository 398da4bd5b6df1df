"""The selection API: for gateways that forward requests themselves and only ask us where to.

Paths, fields and answers are those of Dynamo's standalone selection service, so that its clients switch by changing an
address; errors have our one shape. It runs inside the data plane, without a web framework, because a gateway asks once
per request. Reservations are leases: progress renews them, silence ends them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import numpy as np

from kvrouter.blocks import Prompt
from kvrouter.errors import RequestError
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.routing import Decision, Router
from kvrouter.service.decisions import DecisionRing
from kvrouter.service.proxy import Reply, Request
from kvrouter.service.replies import json_reply
from kvrouter.service.selection_choice import SelectionChoice
from kvrouter.service.selection_loads import PoolViews
from kvrouter.service.selection_tokens import SelectionReader
from kvrouter.service.selection_wire import SelectionRequest, parse_output_block
from kvrouter.service.traffic import TrafficCounters
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["SelectionRoutes"]

PENDING_MAX = 10_000
SELECTION_ID_CHARACTERS_MAX = 256
_OK = {"status": "ok"}


class SelectionRoutes:
    """Answers `/select` and its relatives."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        router: Router,
        index: PrefixIndex,
        ingest: Ingest,
        reader: SelectionReader,
        choice: SelectionChoice,
        pools: PoolViews,
        decisions: DecisionRing,
        traffic: TrafficCounters,
        lease_seconds: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._registry, self._router, self._index, self._ingest = registry, router, index, ingest
        self._reader, self._choice, self._decisions, self._traffic = reader, choice, decisions, traffic
        self.lease_seconds, self._clock, self._wall_clock = lease_seconds, clock, wall_clock
        self._pending: OrderedDict[str, tuple[float, Decision, str | None]] = OrderedDict()
        """Answers of `/select` that may still be claimed by their id: until when, what, for which model."""
        self._reserved: dict[str, str] = {}
        """Reservations that are held: id to worker id."""
        self._routes: dict[tuple[str, str], Callable[[Request], Reply]] = {
            ("POST", "/select"): self._select,
            ("POST", "/select_and_reserve"): self._select_and_reserve,
            ("POST", "/reservations"): self._reserve,
            ("POST", "/overlap_scores"): pools.overlap_scores,
            ("POST", "/potential_loads"): pools.potential_loads,
            ("GET", "/loads"): pools.loads,
        }

    @property
    def reservations(self) -> int:
        """How many reservations are held now."""
        return len(self._reserved)

    def answer(self, request: Request) -> Reply | None:
        """Answer a path of the selection API, or return None for other paths."""
        path = request.path
        handler = self._routes.get((request.method, path))
        if handler is not None:
            self._count(path)
            return handler(request)
        if path.startswith("/reservations/"):
            return self._progress(request)
        for method, known in self._routes:
            if known == path:
                raise RequestError.wrong_method(path, method)
        return None

    def expire(self, now: float) -> None:
        """Drop the reservations whose lease has ended, and the selections that nobody claimed."""
        for booking in self._router.expire(now):
            if isinstance(booking, str) and self._reserved.pop(booking, None) is not None:
                self._traffic.reservations_expired += 1
        while self._pending and next(iter(self._pending.values()))[0] <= now:
            self._pending.popitem(last=False)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _select(self, request: Request) -> Reply:
        asked = self._reader.read(request.body)
        fields = asked.fields
        now = self._clock()
        prompt, decision = self._choice.decide(asked, now)
        answer = self._answer(fields, fields.selection_id, prompt, decision)
        if fields.advisory:
            answer["worker_load"] = self._load(decision)
        elif fields.selection_id:
            self._keep_pending(fields.selection_id, decision, answer["model_name"], now)
        return json_reply(200, answer)

    def _select_and_reserve(self, request: Request) -> Reply:
        asked = self._reader.read(request.body)
        fields = asked.fields
        selection_id = fields.selection_id or str(uuid4())
        self._refuse_unusable(selection_id)
        now = self._clock()
        prompt, decision = self._choice.decide(asked, now)
        answer = self._answer(fields, selection_id, prompt, decision)
        self._apply_booking_fields(fields, decision)
        self._book(selection_id, decision, answer["model_name"], now)
        # Dynamo writes hashes as signed 64-bit integers.
        answer["sequence_hashes"] = prompt.hashes(answer["block_size"]).view(np.int64).tolist()
        answer["isl_tokens"] = prompt.tokens
        answer["track_prefill_tokens"] = fields.track_prefill_tokens is not False
        return json_reply(200, answer)

    def _answer(
        self, fields: SelectionRequest, selection_id: str | None, prompt: Prompt, decision: Decision
    ) -> dict[str, Any]:
        worker = self._registry.find(decision.worker_id)
        block_size = self._choice.block_size(decision.dense_rank)
        answer: dict[str, Any] = {"selection_id": selection_id} if selection_id else {}
        answer.update(_target(fields.model_name or fields.model, decision, worker))
        answer["block_size"] = block_size
        answer["overlap"] = self._overlap(prompt, decision, block_size)
        answer["usable_tokens"] = decision.overlap_tokens
        answer["effective_prefill_tokens"] = decision.prefill_tokens
        answer["potential_decode_blocks"] = self._router.book.load(decision.dense_rank).decode_blocks + decision.blocks
        return answer

    def _overlap(self, prompt: Prompt, decision: Decision, block_size: int) -> dict[str, Any]:
        """Tokens of whole cached blocks; unlike usable tokens, these may include the prompt's last token."""
        rank, matched = decision.dense_rank, decision.overlap_tokens
        hashes = prompt.hashes(block_size)
        if matched == (len(hashes) - 1) * block_size and bool(self._index.holds(rank, hashes[-1:], "gpu")[0]):
            matched += block_size
        cpu = disk = matched
        if self._index.blocks(rank, "cpu") or self._index.blocks(rank, "disk"):
            tiers = self._ingest.tier_blocks(prompt).get(rank)
            if tiers is not None:
                cpu, disk = max(matched, tiers.cpu * tiers.block_size), max(matched, tiers.disk * tiers.block_size)
        return {"longest_matched": disk, "gpu": matched, "dp": {str(decision.rank): disk}, "cpu": cpu, "disk": disk}

    def _load(self, decision: Decision) -> dict[str, Any]:
        load = self._router.book.load(decision.dense_rank)
        fields = self._registry.find(decision.worker_id).spec.fields
        return {
            "active_prefill_tokens": load.prefill_tokens,
            "prefill_token_capacity": fields.get("max_num_batched_tokens"),
            "total_kv_blocks": fields.get("total_kv_blocks"),
        }

    # -- reservations --------------------------------------------------------------------------------------------------

    def _reserve(self, request: Request) -> Reply:
        asked = self._reader.read(request.body)
        fields = asked.fields
        selection_id = fields.selection_id
        if not selection_id:
            raise RequestError("selection_id is needed", param="selection_id")
        self._refuse_unusable(selection_id)
        now = self._clock()
        if fields.worker_id is None:
            decision, model = self._claim(selection_id, now)
        else:
            model = fields.model_name or fields.model
            pinned = self._choice.source(fields.worker_id, fields.dp_rank)
            _, decision = self._choice.decide(asked, now, pinned=pinned)
            self._apply_booking_fields(fields, decision)
        target = _target(model, decision, self._registry.find(decision.worker_id))
        self._book(selection_id, decision, target["model_name"], now)
        return json_reply(201, {"selection_id": selection_id, **target})

    def _claim(self, selection_id: str, now: float) -> tuple[Decision, str | None]:
        pending = self._pending.pop(selection_id, None)
        if pending is None or pending[0] <= now or self._registry.get(pending[1].worker_id) is None:
            raise RequestError(
                f"no pending selection {selection_id} (expired, already used, or never selected)",
                status=404,
                code="selection_not_found",
                param="selection_id",
            )
        return pending[1], pending[2]

    def _apply_booking_fields(self, fields: SelectionRequest, decision: Decision) -> None:
        """Let the gateway say what prefill to book, where it knows better."""
        if fields.track_prefill_tokens is False:
            decision.prefill_tokens = 0
        elif fields.effective_prefill_tokens is not None:
            if not 0 <= fields.effective_prefill_tokens <= decision.prompt_tokens:
                limit = f"0..{decision.prompt_tokens}, the length of the prompt"
                raise RequestError(f"effective_prefill_tokens must be {limit}", param="effective_prefill_tokens")
            decision.prefill_tokens = fields.effective_prefill_tokens

    def _book(self, selection_id: str, decision: Decision, model: str | None, now: float) -> None:
        self._router.commit(decision, id=selection_id, now=now, lease_seconds=self.lease_seconds)
        self._reserved[selection_id] = decision.worker_id
        self._decisions.record(selection_id, decision, model, self._wall_clock())

    def _progress(self, request: Request) -> Reply:
        selection_id, _, action = request.path[len("/reservations/") :].partition("/")
        now, book = self._clock(), self._router.book
        match request.method, action:
            case "DELETE", "":
                self._count("/reservations/{id}")
                self._held(selection_id)
                del self._reserved[selection_id]
                self._router.finished(selection_id, now=now)
            case "POST", "prefill_complete":
                self._count("/reservations/{id}/prefill_complete")
                self._held(selection_id)
                self._router.first_token(selection_id, now=now)
            case "POST", "output_block":
                self._count("/reservations/{id}/output_block")
                progress = parse_output_block(request.body)
                self._held(selection_id)
                book.output_block(selection_id, progress.decay_fraction, now=now)
            case _:
                raise RequestError(f"{request.method} {request.path} is not known", status=404, code="unknown_url")
        return json_reply(200, _OK)

    def _held(self, selection_id: str) -> None:
        """Refuse what is not booked (any more): its worker may have been removed, or its lease have ended."""
        if selection_id not in self._reserved or selection_id not in self._router.book:
            self._reserved.pop(selection_id, None)
            raise RequestError(
                f"reservation {selection_id} not found", status=404, code="reservation_not_found", param="id"
            )

    def _refuse_unusable(self, selection_id: str) -> None:
        if len(selection_id) > SELECTION_ID_CHARACTERS_MAX or "/" in selection_id:
            raise RequestError(
                f"selection_id must be 1..{SELECTION_ID_CHARACTERS_MAX} characters without /", param="selection_id"
            )
        if selection_id in self._router.book:
            raise RequestError(
                f"selection {selection_id} is already reserved or being reserved",
                status=409,
                code="already_reserved",
                param="selection_id",
            )

    def _keep_pending(self, selection_id: str, decision: Decision, model: str | None, now: float) -> None:
        self._pending.pop(selection_id, None)
        self._pending[selection_id] = (now + self.lease_seconds, decision, model)
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)

    def _count(self, path: str) -> None:
        selections = self._traffic.selections
        selections[path] = selections.get(path, 0) + 1


def _target(model: str | None, decision: Decision, worker: Worker) -> dict[str, Any]:
    return {
        "model_name": model or (worker.models[0] if worker.models else None),
        "routing_group": worker.spec.routing_group,
        "worker_id": worker.spec.public_id,
        "dp_rank": decision.rank,
        "endpoint": worker.spec.address,
    }
