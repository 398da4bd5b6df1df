"""The cost of a rank for a prompt, in one unit: predicted seconds to the first token.

First form, with priors instead of learnt speeds: prompts are computed in turn at a known speed, and every running
request and every KV block in use delays them a little.
"""

from kvrouter.routing.settings import RoutingSettings

__all__ = ["CostModel"]


class CostModel:
    """Turns what is to be done on a rank into seconds."""

    __slots__ = ("block_seconds", "request_seconds", "token_seconds")

    def __init__(self, settings: RoutingSettings) -> None:
        self.token_seconds = 1.0 / settings.prefill_tokens_per_second
        self.request_seconds = settings.request_tokens * self.token_seconds
        self.block_seconds = settings.block_tokens * self.token_seconds

    def seconds(self, prefill_tokens: int, active_requests: int, decode_blocks: int) -> float:
        """Time until a prompt's first token, when `prefill_tokens` are to be computed up to and including its own."""
        return (
            prefill_tokens * self.token_seconds
            + active_requests * self.request_seconds
            + decode_blocks * self.block_seconds
        )
