"""Which two ranks compute one request: the one its prompt, the other its answer. Decides only; books and sends nothing.

A request is split where that keeps a long computation away from ranks that are generating. A prompt of which little is
left to compute goes straight to the decode rank. How the two are told is `service/disaggregation.py`.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias

from msgspec import structs

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError
from kvrouter.routing.constraints import Constraints, LabelTerm
from kvrouter.routing.cost import CostModel
from kvrouter.routing.decision import Decision
from kvrouter.routing.fleet import Candidates
from kvrouter.routing.policy import Choice, Policy, Request
from kvrouter.routing.router import Router
from kvrouter.routing.settings import RoutingSettings

__all__ = ["TRANSFER_SHARE", "Asked", "DecodePolicy", "Split", "SplitPlanner", "Verdict"]

TRANSFER_SHARE = 0.1
"""What fetching a token's blocks costs, as a share of computing it: what the decode rank has already saves that."""

Verdict: TypeAlias = Literal["split", "short", "unsplittable", "no_prefill", "same_worker", "no_decode"]
"""Whether a request is split, and if not, why: little is left to compute (or its length is not known), it has several
prompts or answers, nobody computes prompts, the worker that would is the one that decodes, or nobody decodes."""


class Asked(NamedTuple):
    """One request, as far as it matters to where it goes."""

    prompt: Prompt | None
    model: str | None
    session: str | None
    exclude: Collection[str]
    constraints: Constraints


class Split(NamedTuple):
    """Where a request goes. Without `prefill`, one rank does it all; without `decode` either, whichever takes it."""

    verdict: Verdict
    prefill: Decision | None = None
    decode: Decision | None = None


class DecodePolicy:
    """The rank with the least to generate, and the least to fetch.

    Prompts that wait on it do not count, because it is not to compute this one.
    """

    name = "decode"
    weighs_extra_seconds = True

    def __init__(self, settings: RoutingSettings) -> None:
        self._model = CostModel(settings)

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the rank; among equals the one that was chosen longest ago."""
        model, extra = self._model, candidates.extra_seconds
        best, least = candidates[0], None
        for position, each in enumerate(candidates):
            fetched = request.tokens - request.credits.get(each.dense_rank, 0)
            seconds = model.running(each.load) + fetched * TRANSFER_SHARE * each.load.token_seconds
            seconds += extra[position] if extra else 0.0
            key = seconds, each.turn
            if least is None or key < least:
                best, least = each, key
        return best, "decode"


class SplitPlanner:
    """Plans requests. `tokens_min` uncached tokens are worth a split."""

    def __init__(self, router: Router, *, tokens_min: int) -> None:
        self._router, self.tokens_min = router, tokens_min
        self._decode = DecodePolicy(router.settings)

    def plan(self, asked: Asked, *, splittable: bool, now: float) -> Split:
        """Choose the ranks.

        What is not `splittable` is split only where nobody can take it whole.

        Raises:
            UnknownModelError, NoWorkerError: as `Router.decide`, of what the request itself asks for.
        """
        decoding = structs.replace(asked.constraints, role="decode")
        fleet, model = self._router.fleet, asked.model
        try:
            fleet.candidates(model, decoding)
        except NoWorkerError:
            return Split("no_decode")
        if not splittable or self._left(asked, decoding, now) < self.tokens_min:
            alone = self._alone("short" if splittable else "unsplittable", asked, decoding, now)
            if alone is not None:
                return alone
        try:
            fleet.candidates(model, self._preparing(asked))
            decode = self.decode(asked, None, now)
        except NoWorkerError:
            return self._alone("no_prefill", asked, decoding, now) or Split("no_prefill")
        prefill = self.prefill(asked, decode.worker_id, now)
        if prefill is None:
            return self._alone("no_prefill", asked, decoding, now) or Split("no_prefill")
        if prefill.worker_id == decode.worker_id:
            return Split("same_worker", None, prefill)
        return Split("split", prefill, decode)

    def decode(self, asked: Asked, like: str | None, now: float) -> Decision:
        """The rank that generates what another one prepares, of the same engine as worker `like` if that is given.

        Raises NoWorkerError if there is none.
        """
        constraints = structs.replace(asked.constraints, role="decode", required=self._alike(asked, like))
        decision = self._decide(asked, constraints, now, policy=self._decode)
        decision.prefill_tokens = 0
        return decision

    def prefill(self, asked: Asked, like: str, now: float) -> Decision | None:
        """The rank that computes the prompt: by what it has of it, and what waits there; None if there is none."""
        asks = structs.replace(self._preparing(asked), required=self._alike(asked, like))
        try:
            return self._decide(asked, asks, now)
        except NoWorkerError:
            return None

    def _preparing(self, asked: Asked) -> Constraints:
        """What is asked of the rank that computes the prompt; a pin or a conversation means the other one."""
        return structs.replace(asked.constraints, role="prefill", affine=None, pinned=None, pinned_worker=None)

    def _left(self, asked: Asked, decoding: Constraints, now: float) -> int:
        """How much of the prompt the decode rank would have to compute that has most of it; 0 if that is not known."""
        prompt = asked.prompt
        if prompt is None:
            return 0
        promised = self._router.knowledge.overlaps(prompt, now).promised
        candidates = self._router.fleet.candidates(asked.model, decoding)
        return prompt.tokens - max(promised.get(each.dense_rank, 0) for each in candidates)

    def _alone(self, verdict: Verdict, asked: Asked, decoding: Constraints, now: float) -> Split | None:
        """Without a split: on a decode rank if those can, else wherever it can; None if nobody can.

        A rank that has most of a prompt may be too busy for it, so that it is not as short as it seemed.
        """
        router = self._router
        if all(
            router.fleet.worker(each.worker_id).traits.whole for each in router.fleet.candidates(asked.model, decoding)
        ):
            whole = self._decide(asked, decoding, now)
            long = verdict == "short" and asked.prompt is not None and whole.prefill_tokens >= self.tokens_min
            return None if long else Split(verdict, None, whole)
        try:
            router.fleet.candidates(asked.model, asked.constraints)
        except NoWorkerError:
            return None
        return Split(verdict)

    def _decide(
        self,
        asked: Asked,
        constraints: Constraints,
        now: float,
        *,
        policy: Policy | None = None,
    ) -> Decision:
        return self._router.decide(
            asked.prompt,
            model=asked.model,
            session=asked.session,
            exclude=asked.exclude,
            constraints=constraints,
            now=now,
            policy=policy,
        )

    def _alike(self, asked: Asked, like: str | None) -> tuple[LabelTerm, ...]:
        """Engines of two kinds cannot hand blocks to each other."""
        required = asked.constraints.required
        engine = (
            self._router.fleet.worker(like).traits.labels.get("engine") if like and like in self._router.fleet else None
        )
        return required if engine is None else (*required, LabelTerm("engine", frozenset({engine})))
