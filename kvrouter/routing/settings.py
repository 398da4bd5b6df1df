"""The knobs of routing: priors of the cost model, lifetimes of predictions, bounds. Times are in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["RoutingSettings"]


def _credits() -> Mapping[str, float]:
    return MappingProxyType({"live": 1.0, "predicted": 1.0, "replaying": 0.5, "suspect": 0.5})


def _tier_costs() -> Mapping[str, float]:
    return MappingProxyType({"cpu": 0.1, "disk": 0.4})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """How a worker is chosen.

    Speeds are learnt from first tokens; those here are what is believed before. Nothing needs to be tuned: prices
    follow from what is measured, and the rest are weak terms that break ties.

    Attributes:
        prefill_tokens_per_second: speed at which a rank works off uncached prompt tokens, until it is known.
        attention_tokens: so far into a prompt a token is believed to cost twice as much as at its beginning, until it
            is known; 0: never.
        request_tokens: each request already running on a rank delays a prompt as computing so many tokens does.
        context_tokens: the same for each prompt token of theirs: their KV blocks are room that others do not have.
        step_tokens: prompt tokens that an engine computes in one step; all prompts of a step end together.
        work_price: what each second of prefill costs beside the time of those who wait for it: computing twice what is
            cached elsewhere is never free.
        decode_price: seconds lost for each second of prefill by each request that decodes meanwhile.
        later_max: at most so many later requests are counted that wait for a prompt.
        affinity: a chosen rank with at least this share of the best overlap is called `affinity` and not `escape`.
        source_credits: by state of a rank's event source, the share of its confirmed overlap that is believed.
        tier_costs: by tier below the GPU, what loading a token from there costs as a share of computing it, until it
            is known.
        block_size: tokens per block of ranks whose block size nobody has told yet.
        predicted_seconds_live: how long a routed prompt counts as cached on a rank whose events would confirm it,
            beyond a generous estimate of its time to first token.
        predicted_seconds_unconfirmed: the same on a rank without live events, where nothing ever confirms it.
        predicted_blocks_max: predicted blocks kept per rank; the least recently routed go first.
        predicted_total_max: the same over all ranks.
        lease_seconds: lease of what `Router.route` books.
        reservations_max: requests booked at a time.
        share_active_blocks: count a block that several running requests of a rank share once. Exact, and costs
            about 0.1 us per block that a request does not share.
    """

    prefill_tokens_per_second: float = 8000.0
    attention_tokens: float = 65_536.0
    request_tokens: float = 160.0
    context_tokens: float = 0.01
    step_tokens: int = 8192
    work_price: float = 0.2
    decode_price: float = 0.005
    later_max: float = 8.0
    affinity: float = 0.8
    source_credits: Mapping[str, float] = field(default_factory=_credits)
    tier_costs: Mapping[str, float] = field(default_factory=_tier_costs)
    block_size: int = 16
    predicted_seconds_live: float = 5.0
    predicted_seconds_unconfirmed: float = 600.0
    predicted_blocks_max: int = 65_536
    predicted_total_max: int = 4_194_304
    lease_seconds: float = 60.0
    reservations_max: int = 1_000_000
    share_active_blocks: bool = False

    def __post_init__(self) -> None:
        if self.prefill_tokens_per_second <= 0:
            raise ValueError(f"prefill_tokens_per_second is {self.prefill_tokens_per_second}; it must be above 0")
        if self.attention_tokens < 0:
            raise ValueError(f"attention_tokens is {self.attention_tokens}; it must be at least 0")
        if self.step_tokens < 1:
            raise ValueError(f"step_tokens is {self.step_tokens}; it must be at least 1")
        for tier, cost in self.tier_costs.items():
            if not 0 <= cost <= 1:
                raise ValueError(f"tier_costs of {tier} is {cost}; it must be 0..1")
        if not 0 < self.affinity <= 1:
            raise ValueError(f"affinity is {self.affinity}; it must be above 0 and at most 1")
