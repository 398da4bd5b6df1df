"""Measures how fast a real worker is, by a few requests to its OpenAI API, as the rates that simulations need.

Prompts of random words and growing length give the prefill rate and the attention term, answers to few and to many
at a time the decode step; the size of the KV cache is in the worker's /metrics, if it has them. The worker should have
nothing else to do meanwhile. About a hundred thousand prompt tokens are computed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from random import Random
from statistics import median
from typing import Any, Final, Protocol

import numpy as np

from kvrouter.errors import KvrouterError
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.worker_client import Timed, WorkerClient

__all__ = ["LENGTHS", "Calibration", "Completing", "calibrate", "fit_prefill", "measure_worker"]

LENGTHS: Final = (256, 1024, 2048, 4096, 8192, 16_384)
_LENGTH_MAX: Final = 8192
_REPEATS: Final = 3
_CROWDS: Final = (1, 4, 8)
_ANSWER_TOKENS: Final = 48
_SYLLABLES: Final = ("ka", "ro", "mi", "te", "lu", "sa", "no", "vi", "da", "pe", "gu", "zo")
# A quadratic term that adds less than this to the longest prompt is noise.
_ATTENTION_SHARE_MIN: Final = 0.05
_GPU_BLOCKS = re.compile(r"^vllm:cache_config_info\{(?P<labels>[^}]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TOTAL_TOKENS = re.compile(r"^sglang:max_total_num_tokens(?:\{[^}]*\})? ([0-9.eE+]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured. `cache_known` is false where the worker did not say how large its cache is."""

    url: str
    model: str
    rates: EngineRates
    cache_known: bool
    requests: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return plain values for programs."""
        return asdict(self)

    def text(self) -> str:
        """Return what a person wants to read, with the flags that say the same."""
        rates = self.rates
        attention = (
            f"twice as slow after {rates.attention_tokens:,.0f}" if rates.attention_tokens else "as fast to the end"
        )
        cache = f"{rates.cache_tokens:,} tokens" if self.cache_known else "unknown (no /metrics that say it)"
        flags = [
            f"--prefill-rate {rates.prefill_tokens_per_second:.0f}",
            f"--attention-tokens {rates.attention_tokens:.0f}",
            f"--step-seconds {rates.step_seconds:.5f}",
            f"--decode-seconds {rates.decode_seconds:.5f}",
            f"--decode-seconds-per-request {rates.decode_seconds_per_request:.6f}",
            f"--decode-seconds-per-token {rates.decode_seconds_per_token:.3g}",
            *([f"--cache-tokens {rates.cache_tokens}"] if self.cache_known else []),
        ]
        return (
            f"{self.model} at {self.url}, by {self.requests} requests in {self.seconds:.0f} s\n"
            f"  prefill   {rates.prefill_tokens_per_second:,.0f} tokens/s, {attention}\n"
            f"  decode    {1000 * (rates.step_seconds + rates.decode_seconds):.1f} ms a step, "
            f"{1000 * rates.decode_seconds_per_request:.2f} ms more for each request in it\n"
            f"  KV cache  {cache}\n"
            f"replay with it: kvrouter replay TRACE {' '.join(flags)}\n"
        )


class Completing(Protocol):
    """A worker that can be asked. May be called from several threads at a time."""

    url: str
    model: str
    context_tokens: int | None

    def complete(self, prompt: str, answer_tokens: int) -> Timed:
        """Answer a prompt with so many tokens and tell how long it took."""
        ...

    def metrics(self) -> str:
        """Return the text of /metrics; nothing if there is none."""
        ...


def calibrate(
    url: str, *, api_key: str | None = None, model: str | None = None, tell: Callable[[str], object]
) -> Calibration:
    """Measure the worker at `url`; `tell` hears what is being done.

    Raises:
        SettingsError: the URL is not one of HTTP.
        KvrouterError: the worker does not answer as it should.
    """
    return measure_worker(WorkerClient(url, api_key=api_key, model=model), tell=tell)


def measure_worker(
    client: Completing, *, tell: Callable[[str], object], lengths: Sequence[int] = LENGTHS
) -> Calibration:
    """Measure whoever answers behind `client`, with prompts of about `lengths` tokens as far as its context allows."""
    return _Measuring(client, tell, lengths).calibration()


def fit_prefill(lengths: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit constant + tokens / rate + attention to times of prompts; returns (constant, rate, attention tokens).

    Attention tokens are 0 where the times do not show any. Relative errors count, so that short prompts do too.

    Raises:
        KvrouterError: longer prompts did not take longer.
    """
    length, time_of = np.asarray(lengths, dtype=float), np.asarray(seconds, dtype=float)
    weights = 1.0 / time_of
    constant, linear, square = _least_squares([np.ones_like(length), length, length**2], time_of, weights)
    longest = float(length.max())
    if square * longest < _ATTENTION_SHARE_MIN * linear or linear <= 0:
        square = 0.0
        constant, linear = _least_squares([np.ones_like(length), length], time_of, weights)
    if linear <= 0:
        raise KvrouterError("longer prompts were not slower: is the worker busy, or does it compute nothing?")
    return max(0.0, constant), 1.0 / linear, linear / (2 * square) if square else 0.0


def _least_squares(columns: list[Any], values: Any, weights: Any) -> list[float]:
    matrix = np.stack(columns, axis=1) * weights[:, None]
    found: list[float] = np.linalg.lstsq(matrix, values * weights, rcond=None)[0].tolist()
    return found


class _Measuring:
    def __init__(self, client: Completing, tell: Callable[[str], object], lengths: Sequence[int]) -> None:
        self._client, self._tell, self._wanted = client, tell, lengths
        self._words_per_token = 0.5
        self._random = Random()  # another calibration must not find this one's prompts in the cache
        self._requests = 0

    def calibration(self) -> Calibration:
        began = time.monotonic()
        client = self._client
        longest = client.context_tokens or _LENGTH_MAX + _ANSWER_TOKENS
        lengths = [length for length in self._wanted if length + 2 * _ANSWER_TOKENS <= longest] or [longest // 2]
        self._tell(f"calibrate: prompts of {lengths[0]} to {lengths[-1]} tokens at {client.url}")
        self._ask(lengths[0], 2)  # the first request of a process is never typical
        # In rounds: what disturbs for a moment disturbs one round only.
        rounds = [[self._ask(length, 1) for length in lengths] for _ in range(_REPEATS)]
        fastest = [_fastest(repeats) for repeats in zip(*rounds, strict=True)]
        constant, rate, attention = fit_prefill(
            [each.prompt_tokens for each in fastest], [each.first_token_seconds for each in fastest]
        )
        self._tell("calibrate: answers, alone and together")
        steps = [(crowd, self._step_seconds(crowd, lengths[0])) for crowd in _CROWDS]
        per_request, base = _line(steps)
        far = lengths[-1]
        per_token = (self._step_seconds(1, far) - steps[0][1]) / max(1, far - lengths[0])
        step = min(constant, base / 2)
        cache_tokens = _cache_tokens(client.metrics())
        rates = EngineRates(
            prefill_tokens_per_second=rate,
            attention_tokens=attention,
            step_seconds=step,
            decode_seconds=max(0.0, base - step),
            decode_seconds_per_request=per_request,
            decode_seconds_per_token=per_token if per_token * far > 0.1 * base else 0.0,
        )
        if cache_tokens is not None:
            rates = replace(rates, cache_tokens=cache_tokens)
        return Calibration(
            url=client.url,
            model=client.model,
            rates=rates,
            cache_known=cache_tokens is not None,
            requests=self._requests,
            seconds=time.monotonic() - began,
        )

    def _step_seconds(self, crowd: int, length: int) -> float:
        """Return how long a decode step takes with so many requests."""
        with ThreadPoolExecutor(crowd) as pool:
            answers = list(pool.map(lambda _: self._ask(length, _ANSWER_TOKENS), range(crowd)))
        return median(each.token_seconds for each in answers)

    def _ask(self, length: int, answer_tokens: int) -> Timed:
        """Send a prompt of about `length` tokens; how many it has, the answer tells."""
        self._requests += 1
        count = max(1, int(length * self._words_per_token))
        answer = self._client.complete(
            " ".join("".join(self._random.choices(_SYLLABLES, k=2)) for _ in range(count)), answer_tokens
        )
        self._words_per_token = count / max(1, answer.prompt_tokens)  # the next ones are nearer to what was meant
        return answer


def _fastest(repeats: Sequence[Timed]) -> Timed:
    """Return the fastest for its length: whatever disturbs makes it slower."""
    return min(repeats, key=lambda each: each.first_token_seconds / each.prompt_tokens)


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return slope and value at 0 of the line through points; neither is below 0."""
    slope, start = np.polyfit([x for x, _ in points], [y for _, y in points], 1).tolist()
    if slope < 0:
        return 0.0, median(y for _, y in points)
    return slope, max(0.0, start)


def _cache_tokens(metrics: str) -> int | None:
    """Return the KV cache of all ranks together, as vLLM or SGLang tell it; None if they do not."""
    total = 0
    for config in _GPU_BLOCKS.finditer(metrics):
        labels = dict(_LABEL.findall(config["labels"]))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if blocks.isdigit() and size.isdigit():
            total += int(blocks) * int(size)
    for tokens in _TOTAL_TOKENS.findall(metrics):
        total += int(float(tokens))
    return total or None
