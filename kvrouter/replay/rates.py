"""How fast a simulated worker is: seconds of a step, and of many decode steps in a row. No clock is read here."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

__all__ = ["EngineRates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """Speed and size of one worker. The defaults resemble an 8 B model on one data-centre GPU.

    The model is that of `kvrouter.replay.engine.timing` with two terms more: attention, which makes a prompt token
    dearer the more tokens are before it, and the reading of the running requests' caches by each decode step.

    Attributes:
        prefill_tokens_per_second: at the beginning of a prompt.
        attention_tokens: so far into a prompt a token costs twice as much as at its beginning; 0: never.
        step_seconds: what each step costs beside its work.
        decode_seconds: reading the weights once for all that decode.
        decode_seconds_per_request: each of them makes the step longer by this.
        decode_seconds_per_token: and by this for each token of its context.
        cache_tokens: KV cache of a worker.
        running_max: requests that run at a time; others wait.
        step_tokens_max: tokens that one step computes at most; longer prompts are computed in chunks.
    """

    prefill_tokens_per_second: float = 8000.0
    attention_tokens: float = 65_536.0
    step_seconds: float = 0.002
    decode_seconds: float = 0.012
    decode_seconds_per_request: float = 0.0003
    decode_seconds_per_token: float = 0.0
    cache_tokens: int = 1_000_000
    running_max: int = 256
    step_tokens_max: int = 8192

    def prefill_seconds(self, tokens: int, context: int = 0) -> float:
        """Return the time to compute `tokens` of a prompt after `context` others of it."""
        work = float(tokens)
        if self.attention_tokens:
            work += tokens * (context + tokens / 2) / self.attention_tokens
        return work / self.prefill_tokens_per_second

    def step(self, prefill_seconds: float, decoding: int, context_tokens: int) -> float:
        """Return the duration of one step; arithmetic and the reading of weights overlap."""
        decode = self.decode_seconds if decoding else 0.0
        return (
            self.step_seconds
            + max(prefill_seconds, decode)
            + self.decode_seconds_per_request * decoding
            + self.decode_seconds_per_token * context_tokens
        )

    def steps(self, count: int, decoding: int, context_tokens: int) -> float:
        """Return the duration of `count` steps that only decode; each adds a token to each context."""
        growth = self.decode_seconds_per_token * decoding * count * (count - 1) / 2
        return count * self.step(0.0, decoding, context_tokens) + growth

    def steps_within(self, seconds: float, decoding: int, context_tokens: int) -> int:
        """Return after how many whole decode steps at least `seconds` are over; at least 1."""
        first = self.step(0.0, decoding, context_tokens)
        growth = self.decode_seconds_per_token * decoding
        if seconds <= first:
            return 1
        if growth:
            linear = first - growth / 2
            count = max(1, ceil((sqrt(linear * linear + 2 * growth * seconds) - linear) / growth - 1e-9))
        else:
            count = max(1, ceil(seconds / first - 1e-9)) if first else 1
        return count
