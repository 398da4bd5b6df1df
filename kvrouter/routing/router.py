"""The router in process: workers in, events in (through `ingest`), decisions out. No sockets, no clock.

    router = Router()
    router.add_worker("a", now=0.0)
    router.add_worker("b", now=0.0)
    decision = router.route(token_ids, now=0.1)   # books it; later: router.finished(decision.id, now=...)

`decide` only asks; `commit` books the load and predicts the blocks. The service puts a proxy around this.
"""

from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from kvrouter import native_core
from kvrouter.blocks import Prompt, TokenIds
from kvrouter.errors import NoWorkerError
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.routing.constraints import Constraints, Traits
from kvrouter.routing.cost import CostModel
from kvrouter.routing.decision import Decision, note_candidates
from kvrouter.routing.fleet import Candidates, Fleet, FleetRank, FleetWorker, worth_their_extra
from kvrouter.routing.knowledge import (
    NO_OVERLAPS,
    PATIENCE,
    REFRESH_SHARE,
    Knowledge,
    PredictedBlocks,
)
from kvrouter.routing.kv import NATIVE_REASONS, KvPolicy, NativeKvPolicy
from kvrouter.routing.learning import Learning
from kvrouter.routing.load import LoadBook
from kvrouter.routing.policies import make_policy
from kvrouter.routing.policy import Policy, Request
from kvrouter.routing.potential import PotentialLoad, potential_loads
from kvrouter.routing.queue_room import RankRoom
from kvrouter.routing.settings import RoutingSettings

if TYPE_CHECKING:
    from kvrouter.native_core import native

__all__ = ["Router"]


class Router:
    """Chooses a rank for each request by cached prefix and load. Lives on one event loop; not thread-safe.

    An `ingest` that is given brings its own index; else one is made over `index`, or over a new one.
    """

    def __init__(
        self,
        *,
        policy: str | Policy = "kv",
        index: PrefixIndex | None = None,
        ingest: Ingest | None = None,
        settings: RoutingSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings if settings is not None else RoutingSettings()
        self.ingest = ingest if ingest is not None else Ingest(index if index is not None else PrefixIndex())
        self.book = LoadBook(reservations_max=self.settings.reservations_max)
        self.fleet = Fleet()
        self._seed = seed
        self.learning = Learning(
            self.fleet, self.settings, evictions=self.ingest.evictions, block_size=self.ingest.block_size
        )
        self._policies: dict[str, Policy] = {}
        self._policy = self._resolve(policy)
        self.knowledge = Knowledge(self.ingest, self.settings, self.learning.audit.beliefs, self.learning.tiers.costs)
        self._model = CostModel(self.settings)
        self._lookup = self.ingest.lookup
        self._weigher = self._make_weigher()
        self._shares_blocks = self.settings.share_active_blocks
        self._turns = 0
        self._routed = 0

    def _make_weigher(self) -> "native.Weigher | None":
        if not isinstance(self._policy, NativeKvPolicy):
            return None
        knobs = self.settings
        lifetimes = (knobs.predicted_seconds_live, knobs.predicted_seconds_unconfirmed, PATIENCE, REFRESH_SHARE)
        return native_core.native.Weigher(self._lookup.index, self._policy.weights, lifetimes)

    # -- workers -------------------------------------------------------------------------------------------------------

    def add_worker(
        self,
        worker_id: str,
        *,
        ranks: int = 1,
        first_rank: int = 0,
        models: Sequence[str] = (),
        block_size: int | None = None,
        routable: bool = True,
        now: float,
    ) -> list[int]:
        """Take a worker in and begin to listen for its events; returns the dense numbers of its ranks.

        No models means that it may serve any. Raises ValueError if the id is taken or a number is out of range.
        """
        if worker_id in self.fleet:
            raise ValueError(f"worker {worker_id!r} exists already")
        if ranks < 1 or first_rank < 0:
            raise ValueError(f"ranks is {ranks} and first_rank {first_rank}; at least 1 and 0 are needed")
        numbers = self.fleet.allocate(ranks)
        members = tuple(
            FleetRank(Source(worker_id, first_rank + offset), number, self.book.load(number))
            for offset, number in enumerate(numbers)
        )
        worker = FleetWorker(worker_id, models, members)
        worker.routable = routable
        self.fleet.add(worker)
        self.learning.adopt(worker)
        for member in members:
            self.ingest.open(member.source, member.dense_rank, block_size=block_size, now=now)
        return numbers

    def remove_worker(self, worker_id: str, *, now: float) -> None:  # noqa: ARG002 - every change of the fleet has a time
        """Forget a worker with its blocks, predictions and bookings; its dense numbers may be given away again.

        Raises KeyError if there is no such worker.
        """
        worker = self.fleet.worker(worker_id)
        self.learning.forget(worker)
        for member in worker.ranks:
            self.ingest.close(member.source)
            self.book.drop(member.dense_rank)
            self.knowledge.forget(member.dense_rank)
        self.fleet.remove(worker_id)

    def set_routable(self, worker_id: str, routable: bool, *, now: float) -> None:  # noqa: ARG002, FBT001 - see above
        """Allow or forbid new requests to a worker; its blocks stay known. Raises KeyError if there is none."""
        self.fleet.set_routable(worker_id, routable=routable)

    def set_models(self, worker_id: str, models: Sequence[str]) -> None:
        """Say what a worker serves; nothing means that it may serve any model. Raises KeyError if there is none."""
        self.fleet.set_models(worker_id, models)

    def set_traits(self, worker_id: str, traits: Traits) -> None:
        """Say what a worker is; its labels, taints, zone and role. Raises KeyError if there is none."""
        self.fleet.set_traits(worker_id, traits)

    # -- requests ------------------------------------------------------------------------------------------------------

    def route(
        self,
        token_ids: TokenIds,
        *,
        model: str | None = None,
        salt: bytes = b"",
        lora: str | None = None,
        session: str | None = None,
        now: float = 0.0,
    ) -> Decision:
        """Decide and book in one step, under an id of its own.

        End it with `finished`; what is not ended so ends by its lease as `now` moves on.
        """
        self.expire(now)
        decision = self.decide(Prompt(token_ids, salt=salt, lora=lora), model=model, session=session, now=now)
        self._routed += 1
        self.commit(decision, id=("route", self._routed), now=now, lease_seconds=self.settings.lease_seconds)
        return decision

    def decide(
        self,
        prompt: Prompt | None,
        *,
        model: str | None = None,
        session: str | None = None,
        exclude: Collection[str] = (),
        allowed: Collection[str] | None = None,
        pinned: Source | None = None,
        constraints: Constraints | None = None,
        room: RankRoom | None = None,
        now: float,
        policy: str | Policy | None = None,
    ) -> Decision:
        """Choose a rank; books nothing.

        Args:
            prompt: None where nothing is known of it; then only load counts.
            model: None for any.
            session: key of a conversation, for policies that look at it.
            exclude: ids of workers that must not be chosen.
            allowed: ids of the only workers that may be chosen.
            pinned: the only rank that may be chosen.
            constraints: what else the request asks of its worker; None: the fleet's defaults.
            room: only ranks that have it may be chosen.
            now: the current time.
            policy: instead of the router's own.

        Raises:
            UnknownModelError: no worker serves the model.
            NoWorkerError: no worker that does is left to choose from.
        """
        if pinned is not None:
            constraints = structs.replace(constraints or self.fleet.defaults, pinned=pinned)
        candidates = self.fleet.candidates(model, constraints)
        if exclude or allowed is not None:
            candidates = self.fleet.narrow(candidates, exclude=exclude, allowed=allowed)
        if room is not None:
            candidates = _with_room(candidates, room)
        decision = None
        if policy is None and prompt is not None and self._weigher is not None:
            decision = self._weigh(self._weigher, candidates, prompt, now)
        if decision is None:
            chooser = self._policy if policy is None else self._resolve(policy)
            decision = self._compare(candidates, prompt, session, chooser, now)
        self._take_turn(decision)
        return decision

    def place(
        self,
        prompt: Prompt | None,
        *,
        model: str | None,
        session: str | None,
        exclude: Collection[str],
        id: Hashable,  # noqa: A002 - as for `commit`
        now: float,
        constraints: Constraints | None = None,
        room: RankRoom | None = None,
    ) -> Decision:
        """Decide and book in one step, as `decide` and `commit` do one after the other: the way of every request.

        Raises:
            UnknownModelError, NoWorkerError: as `decide`.
            ValueError, OverloadedError: as `commit`; nothing is decided then.
        """
        known = None
        candidates = self.fleet.candidates(model, constraints)
        if room is not None and not exclude:
            candidates = _with_room(candidates, room)
        if prompt is not None and self._weigher is not None and not exclude and not self._shares_blocks:
            known = self._single_predictions(prompt)
        if known is None or prompt is None or self._weigher is None:
            decision = self.decide(
                prompt, model=model, session=session, exclude=exclude, constraints=constraints, room=room, now=now
            )
            self.commit(decision, id=id, now=now)
            return decision
        book = self.book
        if len(book.bookings) >= book.reservations_max:
            book.check_room()
        block_size, tokens = self._lookup.only_block_size, prompt.tokens
        hashes, doubtful, turn = prompt.hash_bytes(block_size), self.ingest.doubtful, self._turns + 1
        extra, lower = candidates.extra_seconds, self.knowledge.lower_tiers
        found = self._weigher.place(
            candidates.loads, known, hashes, block_size, tokens, doubtful, now, extra, lower, turn
        )
        if found is None:
            decision = self._compare(candidates, prompt, session, self._policy, now)
            self._take_turn(decision)
            self.commit(decision, id=id, now=now)
            return decision
        self._turns = turn
        decision = self._decision(candidates, None, tokens, block_size, found)
        if lower:
            decision.loads = self.knowledge.loads(prompt, decision.target.dense_rank, decision.overlap_tokens)
        load, prefill_tokens, blocks = decision.target.load, decision.prefill_tokens, -(-tokens // block_size)
        book.take(id, load, prefill_tokens, prompt_tokens=tokens, blocks=blocks, now=now).outcome = decision
        if now >= self.learning.due:
            self.learning.advance(now)
        decision.id = id
        return decision

    def commit(self, decision: Decision, *, id: Hashable, now: float, lease_seconds: float | None = None) -> None:  # noqa: A002
        """Book a decision's load under `id`, and predict that the chosen rank will hold its blocks.

        Raises:
            NoWorkerError: the chosen worker has left since.
            ValueError: the id is booked already.
            OverloadedError: too many requests are booked.
        """
        target, prompt = decision.target, decision.prompt
        rank = target.dense_rank
        if self.fleet.ranks[rank] is not target:
            raise NoWorkerError(f"worker {target.worker_id!r} left before the request was booked")
        block_size = decision.block_size
        booking = self.book.reserve(
            id,
            rank,
            prefill_tokens=decision.prefill_tokens,
            blocks=-(-decision.prompt_tokens // block_size),
            now=now,
            prompt_tokens=decision.prompt_tokens,
            lease_seconds=lease_seconds,
            hashes=prompt.hash_list(block_size) if self._shares_blocks and prompt is not None else (),
        )
        booking.outcome = decision
        self.learning.advance(now)
        decision.id = id
        decision.prompt = None  # whoever keeps decisions must not keep prompts
        if prompt is not None:
            if self.knowledge.lower_tiers:
                decision.loads = self.knowledge.loads(prompt, rank, decision.overlap_tokens)
            self.knowledge.predict(
                rank,
                prompt,
                block_size,
                confirmed=decision.confirmed_tokens,
                promised=decision.overlap_tokens,
                cost=decision.cost,
                now=now,
            )

    def first_token(self, id: Hashable, *, now: float, learns: bool = True) -> bool:  # noqa: A002 - as for `commit`
        """The first token of a booked request came: its prefill load ends. False if the id is unknown.

        How long it took teaches how fast the rank is, unless `learns` says that others took part of the time.
        """
        booking = self.book.bookings.get(id)
        if booking is None:
            return False
        if booking.is_waiting:
            if booking.outcome is not None:
                booking.outcome.first_token_seconds = now - booking.booked_at
            if learns:
                self.learning.first_token(booking, now)
            booking.computed(now)
        if booking.lease is not None:
            booking.deadline = now + booking.lease
        return True

    def finished(
        self,
        id: Hashable,  # noqa: A002 - as for `commit`
        *,
        now: float,
        cached_tokens: int | None = None,
        completed: bool = True,
        learns: bool = True,
    ) -> bool:
        """A booked request ended: its booking is freed. False if the id is unknown.

        `cached_tokens` are those that the engine says it had not to compute, and `completed` is false where the
        request failed or was given up. What was cached shows whether the rank keeps its promises, unless `learns` says
        that others did part of the work.
        """
        booking = self.book.bookings.get(id)
        if booking is not None and booking.outcome is not None:
            outcome = booking.outcome
            outcome.total_seconds = now - booking.booked_at
            outcome.cached_tokens, outcome.completed = cached_tokens, completed
            if learns and completed and cached_tokens is not None:
                promised = outcome.confirmed_tokens
                if not promised and self.ingest.is_trusted(booking.rank) == "predicted":
                    promised = outcome.overlap_tokens  # where no events come, all promises are predictions
                self.learning.answered(booking, promised=promised, cached=cached_tokens, now=now)
        return self.book.free(id, now=now)

    def predict(
        self, prompt: Prompt | None, *, model: str | None = None, constraints: Constraints | None = None, now: float
    ) -> float:
        """The least predicted seconds to first token over all candidates; books nothing. Raises as `decide` does."""
        overlaps = NO_OVERLAPS if prompt is None else self.knowledge.overlaps(prompt, now)
        tokens = 0 if prompt is None else prompt.tokens
        return min(
            self._model.cost(each.load, overlaps.credited.get(each.dense_rank, 0), tokens, now).first_token
            for each in self.fleet.candidates(model, constraints)
        )

    def policy(self, name: str) -> Policy:
        """The policy of that name, made with its first use and kept with what it has learnt. Raises ValueError."""
        return self._resolve(name)

    def change(self, policy: Policy, settings: RoutingSettings) -> None:
        """Decide from now on by this policy, with these lifetimes; what is booked, predicted and learnt stays.

        Of `settings` only `predicted_seconds_live` and `lease_seconds` may differ from those that it was made with.
        """
        self.settings, self._policy = settings, policy
        self.knowledge.change(settings)
        self._weigher = self._make_weigher()

    @property
    def decisions(self) -> int:
        """Decisions ever made."""
        return self._turns

    @property
    def uses_sessions(self) -> bool:
        """Whether the router's own policy looks at the session of a request."""
        return bool(getattr(self._policy, "uses_sessions", False))

    def expire(self, now: float) -> list[Hashable]:
        """End the bookings whose lease is over and the predictions whose time is; returns the bookings' ids."""
        self.knowledge.expire(now)
        self.learning.advance(now)
        return self.book.expire(now)

    def potential_loads(self, prompt: Prompt | None, *, model: str | None = None, now: float) -> list[PotentialLoad]:
        """What each routable rank that serves `model` would carry with this prompt; raises as `decide` does."""
        return potential_loads(self.fleet.candidates(model), prompt, book=self.book, knowledge=self.knowledge, now=now)

    def _single_predictions(self, prompt: Prompt) -> PredictedBlocks | None:
        """The predictions that the native core can weigh; None where things are not as simple as they mostly are."""
        block_size = self._lookup.only_block_size
        if not block_size or not prompt.exact or (prompt.block_size is not None and prompt.block_size != block_size):
            return None
        known = self.knowledge.exact
        predictions = known.get(block_size)
        return (
            predictions if predictions is not None and len(known) == 1 else self.knowledge.only_predictions(block_size)
        )

    def _weigh(self, weigher: "native.Weigher", candidates: Candidates, prompt: Prompt, now: float) -> Decision | None:
        """As `_compare`, in one call of the native core; None where it cannot."""
        predictions, block_size = self._single_predictions(prompt), self._lookup.only_block_size
        if predictions is None:
            return None
        found = weigher.weigh(
            candidates.loads,
            predictions,
            prompt.hash_bytes(block_size),
            block_size,
            prompt.tokens,
            self.ingest.doubtful,
            now,
            candidates.extra_seconds,
            self.knowledge.lower_tiers,
        )
        return None if found is None else self._decision(candidates, prompt, prompt.tokens, block_size, found)

    @staticmethod
    def _decision(
        candidates: Candidates,
        prompt: Prompt | None,
        tokens: int,
        block_size: int,
        found: tuple[int, int, int, int, int, float, bytes],
    ) -> Decision:
        position, reason, promised, confirmed, credited, cost, rows = found
        return Decision(
            candidates[position],
            prompt,
            tokens,
            promised,
            confirmed,
            tokens - credited,
            block_size,
            cost,
            KvPolicy.name,
            NATIVE_REASONS[reason],
            candidates,
            rows,
        )

    def _take_turn(self, decision: Decision) -> None:
        self._turns += 1
        decision.target.load.turn = self._turns

    def _compare(
        self, candidates: Candidates, prompt: Prompt | None, session: str | None, chooser: Policy, now: float
    ) -> Decision:
        overlaps = NO_OVERLAPS if prompt is None else self.knowledge.overlaps(prompt, now)
        tokens = 0 if prompt is None else prompt.tokens
        if candidates.extra_seconds is not None and not getattr(chooser, "weighs_extra_seconds", False):
            candidates = worth_their_extra(candidates, self._model, now)
        target, reason = chooser.choose(candidates, Request(prompt, tokens, overlaps.credited, session, now))
        number = target.dense_rank
        cost = self._model.cost(target.load, overlaps.credited.get(number, 0), tokens, now)
        return Decision(
            target,
            prompt,
            tokens,
            overlaps.promised.get(number, 0),
            overlaps.confirmed.get(number, 0),
            tokens - cost.credit,
            self.knowledge.block_size(number, prompt),
            cost.first_token,
            chooser.name,
            reason,
            candidates,
            note_candidates(candidates, candidates.index(target), overlaps, tokens=tokens, model=self._model, now=now),
        )

    def _resolve(self, policy: str | Policy) -> Policy:
        if isinstance(policy, str):
            if policy not in self._policies:
                self._policies[policy] = make_policy(policy, self.settings, seed=self._seed)
            policy = self._policies[policy]
        if getattr(policy, "weighs_room", False):
            self.learning.pressure.measures_room = True
        return policy


def _with_room(candidates: Candidates, room: RankRoom) -> Candidates:
    found = room.among(candidates)
    if found:
        return found
    raise NoWorkerError(f"none of the {len(candidates)} available ranks has room now")
