"""The part of the selection API that only looks: overlaps and loads of a whole pool."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from kvrouter.ingest import Ingest, TierOverlap
from kvrouter.routing import Router
from kvrouter.service.proxy import Reply, Request
from kvrouter.service.replies import json_reply
from kvrouter.service.selection_choice import SelectionChoice
from kvrouter.service.selection_tokens import SelectionReader
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["PoolViews"]

_NO_TIERS = TierOverlap(block_size=1, gpu=0, cpu=0, disk=0)


class PoolViews:
    """Answers `/overlap_scores`, `/potential_loads` and `/loads`."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        router: Router,
        ingest: Ingest,
        reader: SelectionReader,
        choice: SelectionChoice,
        clock: Callable[[], float],
    ) -> None:
        self._registry, self._router, self._ingest = registry, router, ingest
        self._reader, self._choice, self._clock = reader, choice, clock

    def overlap_scores(self, request: Request) -> Reply:
        """What every rank of the pool holds of a prompt: blocks per tier, and the tokens that it could use."""
        asked = self._reader.read(request.body)
        prompt, model = self._choice.prompt(asked)
        block_size = self._choice.pool_block_size(model)
        tiers = self._ingest.tier_blocks(prompt)
        usable = self._ingest.usable_tokens(prompt)
        scores = [
            self._score(worker, position, tiers.get(worker.ranks[position], _NO_TIERS), usable)
            for worker, position in self._choice.ranks(model, asked.fields.routing_group)
        ]
        answer = {
            "block_size": block_size,
            "num_blocks": prompt.tokens // block_size,
            "workers": scores,
            "shared_cache": {"enabled": False, "total_hit_blocks": 0, "ranges": [], "error": None},
        }
        return json_reply(200, answer)

    def potential_loads(self, request: Request) -> Reply:
        """What every rank of the pool would carry with a prompt."""
        asked = self._reader.read(request.body)
        prompt, model = self._choice.prompt(asked)
        ranks = {
            worker.ranks[position]: (worker, position)
            for worker, position in self._choice.ranks(model, asked.fields.routing_group)
        }
        loads = [
            {
                "worker_id": ranks[each.dense_rank][0].spec.public_id,
                "dp_rank": each.rank,
                "potential_prefill_tokens": each.prefill_tokens,
                "potential_decode_blocks": each.decode_blocks,
                "active_requests": each.active_requests,
            }
            for each in self._router.potential_loads(prompt, model=model, now=self._clock())
            if each.dense_rank in ranks
        ]
        return json_reply(200, loads)

    def loads(self, request: Request) -> Reply:
        """What every rank of every pool carries now."""
        wanted = dict(parse_qsl(request.query))
        pools: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for worker in self._registry:
            group = worker.spec.routing_group
            for model in worker.models:
                if wanted.get("model_name", model) == model and wanted.get("routing_group", group) == group:
                    loads = pools.setdefault((model, group), [])
                    loads.extend(self._load(worker, position) for position in range(worker.spec.ranks))
        listing = [
            {"model_name": model, "routing_group": group, "loads": loads, "pending_count": 0, "pending_isl_tokens": 0}
            for (model, group), loads in sorted(pools.items())
        ]
        return json_reply(200, listing)

    def _score(self, worker: Worker, position: int, tiers: TierOverlap, usable: Mapping[int, int]) -> dict[str, Any]:
        dense_rank = worker.ranks[position]
        return {
            "worker_id": worker.spec.public_id,
            "dp_rank": worker.spec.first_rank + position,
            "device_blocks": tiers.gpu,
            "host_pinned_blocks": tiers.cpu,
            "disk_blocks": tiers.disk,
            "host_pinned_extension_blocks": tiers.cpu - tiers.gpu,
            "disk_extension_blocks": tiers.disk - tiers.cpu,
            "shared_beyond_device_blocks": None,
            "usable_tokens": usable.get(dense_rank, 0),
            "block_size": self._choice.block_size(dense_rank),
            "state": self._ingest.is_trusted(dense_rank),
            "lifecycle": worker.lifecycle,
        }

    def _load(self, worker: Worker, position: int) -> dict[str, Any]:
        load = self._router.book.load(worker.ranks[position])
        return {
            "worker_id": worker.spec.public_id,
            "dp_rank": worker.spec.first_rank + position,
            "potential_prefill_tokens": load.prefill_tokens,
            "potential_decode_blocks": load.decode_blocks,
            "active_requests": load.active_requests,
        }
