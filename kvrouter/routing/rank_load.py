"""What one rank is busy with.

This is the reference implementation; the native core has one with the same contract, which a choice among many ranks
reads without asking Python. `load.py` takes the core's where it is present.
"""

__all__ = ["RankLoad"]


class RankLoad:
    """Requests, uncached prompt tokens not yet computed, KV blocks in use; and when the rank was chosen last.

    `rank` is its dense number. `turn` is the number of the decision that chose it last: ties go to the one that waited
    longest. Loads are equal if they are equally busy.
    """

    __slots__ = ("active_requests", "decode_blocks", "prefill_tokens", "rank", "turn")

    def __init__(
        self, active_requests: int = 0, prefill_tokens: int = 0, decode_blocks: int = 0, rank: int = 0
    ) -> None:
        self.active_requests = active_requests
        self.prefill_tokens = prefill_tokens
        self.decode_blocks = decode_blocks
        self.rank = rank
        self.turn = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankLoad) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]  # a load changes all the time

    def __repr__(self) -> str:
        return "RankLoad(active_requests={}, prefill_tokens={}, decode_blocks={})".format(*self._fields())

    def add(self, requests: int, tokens: int, blocks: int, /) -> None:
        """Change all three at once."""
        self.active_requests += requests
        self.prefill_tokens += tokens
        self.decode_blocks += blocks

    def _fields(self) -> tuple[int, int, int]:
        return self.active_requests, self.prefill_tokens, self.decode_blocks
