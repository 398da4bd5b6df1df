"""A worker's speed is measured from outside: exactly where time is exact, and over a real connection."""

from __future__ import annotations

import socket
import time

import pytest

from kvrouter.errors import KvrouterError, SettingsError
from kvrouter.replay.calibrate import Calibration, calibrate, fit_prefill, measure_worker
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.worker_client import Timed, WorkerClient
from tests.replay.serving import engine_process

DEADLINE_SECONDS = 90.0
METRICS = """\
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="1"} 1
"""


class Exact:
    """A worker that takes exactly as long as its rates say."""

    url, model = "http://exact", "exact"

    def __init__(self, rates: EngineRates, *, context_tokens: int | None = 32_768, metrics: str = "") -> None:
        self.rates, self.context_tokens, self._metrics = rates, context_tokens, metrics
        self.longest = 0

    def complete(self, prompt: str, answer_tokens: int) -> Timed:
        tokens = 2 * len(prompt.split())
        self.longest = max(self.longest, tokens)
        first = self.rates.step_seconds + self.rates.prefill_seconds(tokens)
        per_token = self.rates.step(0.0, 1, tokens)
        return Timed(
            prompt_tokens=tokens, answer_tokens=answer_tokens, first_token_seconds=first, token_seconds=per_token
        )

    def metrics(self) -> str:
        return self._metrics


def quietly(_text: str) -> None:
    """Say nothing."""


def test_a_prompts_time_tells_rate_and_attention() -> None:
    """Three terms from times that have them."""
    rates = EngineRates(prefill_tokens_per_second=5000.0, attention_tokens=20_000.0)
    lengths = [256.0, 1024.0, 4096.0, 16_384.0]

    constant, rate, attention = fit_prefill(lengths, [0.03 + rates.prefill_seconds(int(each)) for each in lengths])

    assert constant == pytest.approx(0.03, rel=1e-3)
    assert rate == pytest.approx(5000.0, rel=1e-3)
    assert attention == pytest.approx(20_000.0, rel=1e-3)


def test_times_without_attention_have_none() -> None:
    """A line stays a line, also with some noise."""
    _, rate, attention = fit_prefill([256, 1024, 4096, 8192], [0.0338, 0.1279, 0.5125, 1.0235])

    assert attention == 0.0
    assert rate == pytest.approx(8000, rel=0.01)


def test_a_worker_that_computes_nothing_is_refused() -> None:
    """Longer prompts that are faster are no prompts."""
    with pytest.raises(KvrouterError, match="were not slower"):
        fit_prefill([256, 1024, 4096], [0.5, 0.4, 0.3])


def test_what_is_measured_is_what_the_worker_does() -> None:
    """All rates of a worker whose time is exact."""
    worker = Exact(EngineRates(prefill_tokens_per_second=6000.0, attention_tokens=30_000.0), metrics=METRICS)
    found = measure_worker(worker, tell=quietly)

    assert found.rates.prefill_tokens_per_second == pytest.approx(6000.0, rel=0.02)
    assert found.rates.attention_tokens == pytest.approx(30_000.0, rel=0.05)
    decode = found.rates.step_seconds + found.rates.decode_seconds + found.rates.decode_seconds_per_request
    assert decode == pytest.approx(0.002 + 0.012 + 0.0003, rel=0.02)
    assert (found.cache_known, found.rates.cache_tokens) == (True, 32_000)


def test_prompts_stay_within_the_context() -> None:
    """A worker of 4096 tokens is asked for no more."""
    worker = Exact(EngineRates(), context_tokens=4096)
    measure_worker(worker, tell=quietly)

    assert worker.longest <= 4096


def test_sglangs_metrics_tell_the_cache_too() -> None:
    """In tokens."""
    worker = Exact(EngineRates(), metrics='sglang:max_total_num_tokens{model_name="m"} 70000.0\n')

    assert measure_worker(worker, tell=quietly).rates.cache_tokens == 70_000


def test_without_metrics_the_cache_is_unknown() -> None:
    """And said to be; no flag pretends otherwise."""
    found = measure_worker(Exact(EngineRates()), tell=quietly)

    assert not found.cache_known
    assert "--cache-tokens" not in found.text()
    assert "--prefill-rate 8000" in found.text()
    assert found.document()["model"] == "exact"


def test_a_real_connection_tells_tokens_and_times() -> None:
    """One answer of the simulated engine, as a process."""
    with engine_process() as (_, ready):
        client = WorkerClient(ready["url"])
        answer = client.complete("one two three " * 30, 5)

        assert (client.model, client.context_tokens) == ("simulated", 32_768)
        assert answer.answer_tokens == 5
        assert answer.prompt_tokens > 60
        assert answer.first_token_seconds > 0
        assert "vllm:cache_config_info" in client.metrics()


def test_the_simulated_engine_is_no_faster_than_it_says() -> None:
    """Measured over a real connection; how much slower, the machine decides, which may spoil a measurement."""
    speed = ("--prefill-tokens-per-second", "4000", "--step-seconds", "0.002", "--decode-seconds", "0.02")
    with engine_process(*speed, "--blocks", "2000") as (_, ready):
        answer = WorkerClient(ready["url"]).complete("one two three " * 300, 1)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := _measured(ready["url"])) is None:
            assert time.monotonic() < deadline, "no measurement could be used"

    assert answer.first_token_seconds > answer.prompt_tokens / 4000
    assert found.rates.prefill_tokens_per_second > 0
    assert found.rates.cache_tokens == 2000 * 16
    assert found.rates.step_seconds + found.rates.decode_seconds > 0.015


def _measured(url: str) -> Calibration | None:
    try:
        return measure_worker(WorkerClient(url), tell=quietly, lengths=(256, 1024, 2048))
    except KvrouterError:
        return None


@pytest.mark.parametrize("url", ["worker:8000", "ftp://worker", "http://"])
def test_other_addresses_are_wrong_calls(url: str) -> None:
    """HTTP only."""
    with pytest.raises(SettingsError, match="must be like http://HOST:PORT"):
        calibrate(url, tell=quietly)


def test_nobody_there_is_said_in_a_sentence() -> None:
    """And so is a model that is not served, and a page that is not an API."""
    with engine_process() as (_, ready):
        with pytest.raises(KvrouterError, match="there is no model 'absent'"):
            WorkerClient(ready["url"], model="absent")
        with pytest.raises(KvrouterError, match="answered 404"):
            WorkerClient(ready["url"] + "/elsewhere")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(KvrouterError, match="/v1/models"):
            WorkerClient(f"http://127.0.0.1:{nobody.getsockname()[1]}")
