"""The cost of a rank for a prompt, in one unit: seconds.

What a prompt costs itself is its predicted time to first token: what the rank has to do before, and the uncached part
of the prompt, at the speed that was learnt of that rank (`speeds.py`). What it costs others is how many of them wait
meanwhile, times the seconds that it computes: those that share its batch, those that come later, those whose decoding
is held up, and those whose blocks are evicted for it. The sum is the price by which `kv` compares ranks. Work that a
cache saves is therefore worth little on an idle fleet, where only the own time counts, and much on a busy one.
"""

from typing import NamedTuple

from kvrouter.routing.rank_load import RankLoad
from kvrouter.routing.settings import RoutingSettings

__all__ = ["LATE_FACTOR", "LATE_SECONDS", "Cost", "CostModel"]

# A first token is overdue after this multiple of its prompt's time, and so many seconds: then every further second
# counts as one more to wait, for a rank that has stopped tells nobody. The native core has the same numbers.
LATE_FACTOR = 4.0
LATE_SECONDS = 2.0


class Cost(NamedTuple):
    """What one prompt would cost on one rank now, in seconds.

    `wait` is for what the rank does before, `prefill` for the uncached part of the prompt, `first_token` the predicted
    time to it, and `price` that and what others lose.
    """

    wait: float
    prefill: float
    first_token: float
    price: float


class CostModel:
    """Turns what is to be done on a rank into seconds. The native core does the same in the same order."""

    __slots__ = ("context_tokens", "decode_price", "later_max", "request_tokens", "step_tokens", "work_price")

    def __init__(self, settings: RoutingSettings) -> None:
        self.request_tokens, self.context_tokens = settings.request_tokens, settings.context_tokens
        self.step_tokens = float(settings.step_tokens)
        self.work_price, self.decode_price = settings.work_price, settings.decode_price
        self.later_max = settings.later_max

    def wait(self, load: RankLoad, now: float) -> float:
        """Seconds until a rank has computed the prompts that it was given."""
        seconds = load.prefill_tokens * load.token_seconds + load.prefill_pairs * load.pair_seconds
        head = load.head_tokens * load.token_seconds + load.head_pairs * load.pair_seconds
        elapsed = now - load.head_since
        if load.waiting <= 0 or not elapsed > 0.0:
            return seconds
        wait = max(seconds - min(elapsed, head), 0.0)
        late = elapsed - (LATE_FACTOR * head + LATE_SECONDS)
        return wait + late if late > 0.0 else wait

    def running(self, load: RankLoad) -> float:
        """Seconds by which what already runs on a rank delays a prompt."""
        context = load.decode_blocks * load.block_size * self.context_tokens
        return (load.active_requests * self.request_tokens + context) * load.token_seconds

    def cost(self, load: RankLoad, credit: int, tokens: int, now: float) -> Cost:
        """What a prompt of `tokens` costs, of which the rank is believed to have `credit` cached."""
        fresh = max(tokens - credit, 0)
        active, waiting = load.active_requests, load.waiting
        wait = self.wait(load, now)
        prefill = fresh * load.token_seconds + fresh * (2.0 * tokens - fresh) * 0.5 * load.pair_seconds
        first_token = load.first_seconds + wait + prefill + self.running(load)
        step = load.prefill_tokens + fresh
        mates = waiting * self.step_tokens / step if step > self.step_tokens else waiting
        later = min(load.urgency * (wait + prefill * 0.5), self.later_max)
        decoding = (active - waiting) * self.decode_price if active > waiting else 0.0
        price = first_token + prefill * (self.work_price + mates + later + decoding + load.miss_price)
        return Cost(wait, prefill, first_token, price)

    @property
    def weights(self) -> tuple[float, ...]:
        """The same knobs for the native core."""
        load = self.request_tokens, self.context_tokens, self.step_tokens
        return *load, self.work_price, self.decode_price, self.later_max
