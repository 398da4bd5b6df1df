"""The cost of a rank for a prompt, in one unit: seconds.

What a prompt costs itself is its predicted time to first token: what the rank has to do before, and the uncached part
of the prompt, at the speed that was learnt of that rank (`speeds.py`); what will have been evicted when its turn comes
is not cached (`losses.py`). What it costs others is how many of them wait meanwhile, times the seconds that it
computes: those that share its step, those that come later, those whose decoding is held up, and those whose blocks are
evicted for it. And a rank on which much runs has less room. The sum is the price by which `kv` compares ranks. Work
that a cache saves is therefore worth little on an idle fleet, where only the own time counts, and much on a busy one.
"""

from collections.abc import Iterable
from typing import NamedTuple

from kvrouter.routing.rank_load import RankLoad
from kvrouter.routing.settings import RoutingSettings

__all__ = ["LATE_FACTOR", "LATE_SECONDS", "Cost", "CostModel", "Shared", "staying"]

# A first token is overdue after this multiple of its prompt's time, and so many seconds: then every further second
# counts as one more to wait, for a rank that has stopped tells nobody. The native core has the same numbers.
LATE_FACTOR = 4.0
LATE_SECONDS = 2.0


def staying(tokens: int, losses: float) -> int:
    """What is left of cached tokens when each of them may have been lost so many times: a share of `exp(-losses)`.

    The series ends early, and has no function in it that two cores could compute differently.
    """
    if not losses > 0.0:
        return tokens
    return int(tokens / (1.0 + losses * (1.0 + losses * 0.5 * (1.0 + losses / 3.0))))


def overflow(context: int, room: int, tokens: int, loss: float) -> int:
    """The tokens that are lost because a prompt comes to a rank where so much context does not fit into its `room`.

    They are those of the prompt itself first, as its cached blocks are the ones that were used longest ago, and then
    those of others; no more than the prompt has. A room of 0 is not known.
    """
    if room <= 0 or context <= room:
        return 0
    return int(min(context - room, tokens) * loss)


class Shared(NamedTuple):
    """How much of a prompt is cached where most of it is, in tokens, and how many ranks have about as much."""

    most: int = 0
    holders: int = 1


ALONE = Shared()
"""Nobody has anything of a prompt, or nobody else matters."""


class Cost(NamedTuple):
    """What one prompt would cost on one rank now, in seconds.

    `wait` is for what the rank does before, `prefill` for the uncached part of the prompt, `first_token` the predicted
    time to it, and `price` that and what others lose. `mates` are the requests that would share a step with it.
    `credit` are the tokens that are believed to be cached still when the rank begins with the prompt, `charged` is the
    part of `prefill` for which others pay, and `evicted` what they compute again because there is no room.
    """

    wait: float
    prefill: float
    first_token: float
    price: float
    mates: float
    charged: float
    evicted: float
    credit: int


class CostModel:
    """Turns what is to be done on a rank into seconds. The native core does the same in the same order."""

    __slots__ = (
        "affinity", "context_tokens", "decode_price", "later_max", "request_tokens", "step_tokens", "work_price",
    )  # fmt: skip

    def __init__(self, settings: RoutingSettings) -> None:
        self.request_tokens, self.context_tokens = settings.request_tokens, settings.context_tokens
        self.step_tokens = float(settings.step_tokens)
        self.work_price, self.decode_price = settings.work_price, settings.decode_price
        self.later_max, self.affinity = settings.later_max, settings.affinity

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
        """What makes a rank on which much runs worth less, in seconds: its room and its steps are shared."""
        context = load.decode_blocks * load.block_size * self.context_tokens
        return (load.active_requests * self.request_tokens + context) * load.token_seconds

    def mates(self, load: RankLoad, fresh: int) -> float:
        """Requests whose first token would come later because they share a step with a prompt.

        What waited when the step began that runs now is in it, as far as it fits, and is computed before.
        """
        limit = self.step_tokens
        inside, inside_tokens = float(load.begun), float(load.begun_tokens)
        if inside_tokens > limit:
            inside, inside_tokens = inside * limit / inside_tokens, limit
        mates = max(load.waiting - inside, 0.0)
        step = max(load.prefill_tokens - inside_tokens, 0.0) + fresh
        return mates * limit / step if step > limit else mates

    def shared(self, cached: Iterable[int]) -> Shared:
        """Who has how much of a prompt, of the tokens that each candidate is believed to have cached."""
        known = sorted(cached, reverse=True)
        if not known or known[0] <= 0:
            return ALONE
        return Shared(known[0], sum(each >= known[0] * self.affinity for each in known))

    def cost(self, load: RankLoad, credit: int, tokens: int, now: float, shared: Shared = ALONE) -> Cost:
        """What a prompt of `tokens` costs, of which the rank is believed to have `credit` cached.

        What several others have and this rank has not is asked for often: to compute it here once is charged to as
        many requests as there are ranks that did so before. Of its own time a prompt is spared that only where nobody
        waits: a rank with nothing to do is the place to spread to, and a burst is not the time.
        """
        active, waiting = load.active_requests, load.waiting
        wait = self.wait(load, now)
        lost = overflow(load.decode_blocks * load.block_size + tokens, load.room_tokens, tokens, load.room_loss)
        driven_out = max(lost - credit, 0)
        credit = staying(max(credit - lost, 0), load.loss_rate * min(wait, load.loss_seconds))
        prefill = charged = _prefill(load, max(tokens - credit, 0), tokens)
        first_token = load.first_seconds + wait + prefill
        if shared.most > credit:
            least = _prefill(load, max(tokens - shared.most, 0), tokens)
            charged = least + (prefill - least) / shared.holders
        evicted = _prefill(load, driven_out, tokens)
        mates = self.mates(load, max(tokens - credit, 0))
        later = min(load.urgency * (wait + prefill * 0.5), self.later_max)
        decoding = (active - waiting) * self.decode_price if active > waiting else 0.0
        own = prefill if waiting > 0 else charged
        price = load.first_seconds + wait + own + evicted + self.running(load)
        price += (charged + evicted) * (self.work_price + mates + later + decoding + load.miss_price)
        return Cost(wait, prefill, first_token, price, mates, charged, evicted, credit)

    @property
    def weights(self) -> tuple[float, ...]:
        """The same knobs for the native core."""
        load = self.request_tokens, self.context_tokens, self.step_tokens
        return *load, self.work_price, self.decode_price, self.later_max, self.affinity


def _prefill(load: RankLoad, fresh: int, tokens: int) -> float:
    """Seconds for the last `fresh` tokens of a prompt."""
    return fresh * load.token_seconds + fresh * (2.0 * tokens - fresh) * 0.5 * load.pair_seconds
