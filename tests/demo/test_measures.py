"""How the demo counts, and what it tells programs."""

import pytest

from kvrouter.demo.client import Answer
from kvrouter.demo.display import comparison_table
from kvrouter.demo.measures import Measures, comparison, percentile


def measured(*seconds: float, cached: int = 50) -> Measures:
    """Return measures of requests with these times to first token and 100 prompt tokens each."""
    measures = Measures()
    for each in seconds:
        measures.add(
            Answer(
                first_token_seconds=each,
                seconds=1.0,
                tokens=[1, 2],
                prompt_tokens=100,
                cached_tokens=cached,
                worker="engine-0",
            )
        )
    measures.elapsed_seconds = 2.0
    return measures


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: int) -> None:
    """The smallest that so many do not exceed."""
    assert percentile(list(range(100, 0, -1)), share) == value


def test_nothing_measured_is_zero() -> None:
    """Progress is shown before the first answer."""
    nothing = Measures()

    assert (nothing.cached_token_share, nothing.ttft_mean_seconds, nothing.ttft_seconds(0.5)) == (0, 0, 0)
    assert nothing.requests_per_second == 0


def test_the_figures_are_those_of_the_answers() -> None:
    """Shares by tokens, times by requests, rate by the clock."""
    measures = measured(0.1, 0.2, 0.6, cached=25)

    assert measures.as_dict() == {
        "requests": 3,
        "prompt_tokens": 300,
        "cached_tokens": 75,
        "cached_token_share": 0.25,
        "ttft_mean_seconds": 0.3,
        "ttft_p50_seconds": 0.2,
        "ttft_p99_seconds": 0.6,
        "requests_per_second": 1.5,
        "elapsed_seconds": 2.0,
        "requests_by_worker": {"engine-0": 3},
    }


def test_a_comparison_says_how_much_faster() -> None:
    """With keys that programs rely on."""
    result = comparison(measured(0.4, 0.8), measured(0.1, 0.2), policy="least-loaded", workload={"seed": 1})

    assert result.keys() >= {"round_robin", "least_loaded", "workload", "machine"}
    assert (result["speedup_ttft_mean"], result["speedup_ttft_p99"]) == (4.0, 4.0)


def test_a_comparison_with_nothing_has_no_ratio() -> None:
    """Rather than an error or an infinity, which JSON has not."""
    result = comparison(measured(0.4), Measures(), policy="kv", workload={})

    assert result["speedup_ttft_mean"] is None
    assert comparison_table(measured(0.4), Measures(), policy="kv").row_count == 5
