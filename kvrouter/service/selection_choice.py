"""From the fields of a selection request to a decision: which pool, which prompt, whom it may go to.

Nothing is booked here and no answer is written; that is `selection.py` and `selection_loads.py`.
"""

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError, RequestError, UnmetConstraintError
from kvrouter.events import Source
from kvrouter.ingest import Ingest
from kvrouter.routing import Decision, Router
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.sessions import SessionTable
from kvrouter.service.fleet_view import FleetViews
from kvrouter.service.placement import PlacementReader
from kvrouter.service.selection_tokens import AskedSelection
from kvrouter.service.selection_wire import SelectionRequest
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["SelectionChoice"]


class SelectionChoice:
    """Decides selections. A pool is the workers of one model and routing group."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        router: Router,
        ingest: Ingest,
        views: FleetViews,
        placement: PlacementReader,
        sessions: SessionTable | None,
        default_block_size: int,
    ) -> None:
        self._registry, self._router, self._ingest, self._views = registry, router, ingest, views
        self._placement, self._sessions = placement, sessions
        self._default_block_size = default_block_size
        self._pool_ranks: tuple[int, dict[str | None, int | None]] = (-1, {})

    def decide(self, asked: AskedSelection, now: float, *, pinned: Source | None = None) -> tuple[Prompt, Decision]:
        """Choose a rank for what is asked.

        Raises:
            RequestError: the prompt, the group or the pinned worker is not what it must be.
            RoutingError: nobody serves the model, or nobody may take it now.
        """
        fields = asked.fields
        prompt, model = self.prompt(asked)
        if pinned is None and fields.pinned_worker is not None:
            pinned = self.source(fields.pinned_worker.worker_id, fields.pinned_worker.dp_rank)
        constraints, session = self._constraints(fields), fields.session
        if session and self._sessions is not None:
            constraints = self._sessions.asked(session, model, constraints, now)
        try:
            decision = self._router.decide(
                prompt,
                model=model,
                session=fields.session,
                allowed=self._allowed(fields),
                pinned=pinned,
                constraints=constraints,
                now=now,
            )
        except UnmetConstraintError as error:
            raise NoWorkerError(error.reason) from None  # Dynamo's clients know 503 for it
        if session and not fields.advisory:
            self._follow(session, model, decision, is_last=fields.is_last, now=now)
        return prompt, decision

    def _follow(self, session: str, model: str | None, decision: Decision, *, is_last: bool, now: float) -> None:
        """Remember where a conversation is. How long the gateway takes is not known, so it is idle at once."""
        if self._sessions is None:
            return
        self._sessions.placed(session, model, decision.source, now)
        self._sessions.ended(session, model, now)
        if is_last:
            self._sessions.close(session, model)

    def prompt(self, asked: AskedSelection) -> tuple[Prompt, str | None]:
        """Return the prompt and the model that it is for."""
        view, fields = self._views.current(), asked.fields
        model = view.selection_model(fields.model_name or fields.model)
        if fields.lora_name is None and model in view.parents:
            fields.lora_name = model  # an adapter's blocks are its own, under whichever field it was named
        return asked.prompt(block_size=self.pool_block_size(model)), model

    def pool_block_size(self, model: str | None) -> int:
        """The block size that hashes given for a model are for: that of its first worker."""
        version, ranks = self._pool_ranks
        if version != self._registry.version:
            ranks = {}
            self._pool_ranks = (self._registry.version, ranks)
        if model not in ranks:
            serving = (each for each in self._registry if model is None or model in each.models)
            ranks[model] = next((each.ranks[0] for each in serving), None)
        first = ranks[model]
        return self._default_block_size if first is None else self.block_size(first)

    def block_size(self, dense_rank: int) -> int:
        """Tokens per block on one rank: as its events say, else its record, else the default."""
        return self._ingest.block_size(dense_rank) or self._default_block_size

    def source(self, worker_id: int | str, rank: int | None) -> Source:
        """Return the rank that a request names.

        Raises:
            RequestError: the worker is unknown (404), or has no such rank (400).
        """
        spec = self._registry.find(worker_id).spec
        last = spec.first_rank + spec.ranks - 1
        chosen = spec.first_rank if rank is None else rank
        if not spec.first_rank <= chosen <= last:
            raise RequestError(f"dp_rank of worker {worker_id} must be {spec.first_rank}..{last}", param="dp_rank")
        return Source(spec.worker_id, chosen)

    def ranks(self, model: str | None, group: str | None) -> list[tuple[Worker, int]]:
        """Return the ranks of a pool as worker and position, those that may not be chosen now included."""
        members = self._views.current().group_members(group)
        return [
            (worker, position)
            for worker in self._registry
            if (model is None or model in worker.models) and (members is None or worker.spec.worker_id in members)
            for position in range(worker.spec.ranks)
        ]

    def _constraints(self, asked: SelectionRequest) -> Constraints | None:
        """What the request asks of its worker beyond its name; None where it asks nothing."""
        given = asked.routing_constraints
        return self._placement.fields(
            require=asked.require,
            tolerate=asked.tolerate,
            zone=asked.zone,
            role=asked.role,
            names=(given.required_taints or ()) if given else (),
            preferred=given.preferred_taints if given else None,
        )

    def _allowed(self, asked: SelectionRequest) -> frozenset[str] | None:
        """The workers that the request's group and list leave; None where they leave all."""
        allowed = self._views.current().group_members(asked.routing_group)
        if asked.routing_group and allowed is not None and not allowed:
            raise RequestError(
                f"no worker belongs to routing group {asked.routing_group!r}",
                status=404,
                code="routing_group_not_found",
                param="routing_group",
            )
        if asked.allowed_worker_ids is not None:
            named = frozenset(str(each) for each in asked.allowed_worker_ids)
            allowed = named if allowed is None else allowed & named
        if allowed is not None and not allowed:
            raise NoWorkerError("no worker fits both routing_group and allowed_worker_ids")
        return allowed
