"""How long a step of the simulated engine takes. A model of speed only; no clock is read here.

One step is one forward pass over what the scheduler put together: prefill chunks of some requests and one token
each of others. Prefill is bound by arithmetic, so it costs by the token; decode is bound by reading the weights
once per step, plus each request's own cache, so a larger batch slows every step a little. Attention's growth
with the context is left out: it would flatter cache hits.
"""

from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The speed of one rank. The defaults resemble an 8 B model on one data-centre GPU."""

    prefill_tokens_per_second: float = 8000.0
    step_seconds: float = 0.002
    decode_seconds: float = 0.012
    decode_seconds_per_request: float = 0.0003

    def seconds(self, *, prefill_tokens: int, decoding: int) -> float:
        """Return the duration of a step that prefills so many tokens and decodes for so many requests.

        A prefill keeps the arithmetic units busy for longer than the weights take to arrive, so the two overlap
        and the longer one counts.
        """
        prefill = prefill_tokens / self.prefill_tokens_per_second
        decode = self.decode_seconds if decoding else 0.0
        return self.step_seconds + max(prefill, decode) + self.decode_seconds_per_request * decoding
