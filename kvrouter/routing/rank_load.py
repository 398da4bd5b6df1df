"""What one rank is busy with, and how fast it is known to be.

This is the reference implementation; the native core has one with the same contract, which a choice among many ranks
reads without asking Python. `load.py` takes the core's where it is present.
"""

__all__ = ["RankLoad", "pairs_of"]

# Of a prompt of three million tokens; a million of those fit into 64 bits.
_PAIRS_MAX = 1 << 42


class RankLoad:
    """Requests, uncached prompt tokens not yet computed, KV blocks in use; and when the rank was chosen last.

    `rank` is its dense number. `turn` is the number of the decision that chose it last: ties go to the one that waited
    longest. `block_size` is in tokens. `arrivals` counts the requests that ever came. Loads are equal if they are
    equally busy.

    `waiting` of the requests have no first token yet. Their prompts take time for each token, and for each pair of a
    token and one before it: `prefill_tokens` and `prefill_pairs`. The front one, `head_...`, is in work since
    `head_since`. The rest is what the router has learnt and `cost.py` multiplies with it: `token_seconds`,
    `pair_seconds` and `first_seconds`, the price of delay `urgency`, and `miss_price`. Of the tokens that it promises
    to have cached, `belief` is the share that is believed (`audit.py`).
    """

    __slots__ = (
        "active_requests", "arrivals", "belief", "block_size", "decode_blocks", "first_seconds", "head_pairs",
        "head_since", "head_tokens", "miss_price", "pair_seconds", "prefill_pairs", "prefill_tokens", "rank",
        "token_seconds", "turn", "urgency", "waiting",
    )  # fmt: skip

    def __init__(
        self, active_requests: int = 0, prefill_tokens: int = 0, decode_blocks: int = 0, rank: int = 0
    ) -> None:
        self.active_requests = active_requests
        self.prefill_tokens = prefill_tokens
        self.decode_blocks = decode_blocks
        self.rank = rank
        self.block_size = 16
        self.prefill_pairs = self.waiting = self.turn = self.arrivals = 0
        self.head_tokens = self.head_pairs = 0
        self.head_since = 0.0
        self.token_seconds = 1.0 / 8000.0
        self.pair_seconds = self.first_seconds = self.urgency = self.miss_price = 0.0
        self.belief = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankLoad) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]  # a load changes all the time

    def __repr__(self) -> str:
        return "RankLoad(active_requests={}, prefill_tokens={}, decode_blocks={})".format(*self._fields())

    def add(self, requests: int, tokens: int, blocks: int, pairs: int = 0, waiting: int = 0, /) -> None:
        """Change them all at once."""
        self.active_requests += requests
        self.arrivals += max(requests, 0)
        self.prefill_tokens += tokens
        self.decode_blocks += blocks
        self.prefill_pairs += pairs
        self.waiting += waiting

    def begin(self, tokens: int, pairs: int, since: float, /) -> None:
        """Say which prompt is in work, and since when."""
        self.head_tokens, self.head_pairs, self.head_since = tokens, pairs, since

    def _fields(self) -> tuple[int, int, int]:
        return self.active_requests, self.prefill_tokens, self.decode_blocks


def pairs_of(prefill_tokens: int, prompt_tokens: int) -> int:
    """Pairs of a token and one before it, for the last `prefill_tokens` of a prompt; bounded, so that sums fit."""
    return min(prefill_tokens * (2 * prompt_tokens - prefill_tokens) // 2, _PAIRS_MAX)
