"""Findings from the answers of a router; the answers are those of a healthy one, changed in one place."""

from typing import Any

import pytest

from kvrouter.doctor.findings import Finding, Severity, examine


def readiness(**fields: Any) -> dict[str, Any]:
    """What `/readyz` says of a router that serves one model."""
    models = {"llama": {"workers": 1, "schedulable_workers": 1, "prompts": "tokenizer: prompts are tokenised here"}}
    return {"ready": True, "reasons": [], "models": models, **fields}


def worker(**fields: Any) -> dict[str, Any]:
    """The record of a worker that serves and is heard."""
    return {
        "worker_id": "one",
        "models": ["llama"],
        "url": "http://10.0.0.1:8000",
        "block_size": 16,
        "kv_events_endpoints": {"0": "tcp://10.0.0.1:5557"},
        "not_schedulable_reasons": [],
        "state": "active",
        "health": {"state": "ready", "last_error": None},
        "requests": {"active": 0, "total": 100},
        "cached_tokens": {"reports": 100, "prompt": 200_000, "promised": 100_000, "actual": 99_000},
        "ranks": [{"dp_rank": 0, "audit": {"demoted": False}}],
        **fields,
    }


def source(**fields: Any) -> dict[str, Any]:
    """The record of a source that lacks nothing."""
    return {
        "worker_id": "one",
        "rank": 0,
        "endpoint": "tcp://10.0.0.1:5557",
        "replay_endpoint": None,
        "topic": "",
        "state": "live",
        "connected": True,
        "block_size": 16,
        "announced_rank": 0,
        "applied_sequence": 7,
        "applied_batches": 8,
        "messages": 8,
        "quarantined": 0,
        "malformed": 0,
        "skipped": {},
        "gaps": 0,
        "gaps_lost": 0,
        "orphans": 0,
        "lag": 0,
        "starved": False,
        "doubt": None,
        "last_error": None,
        **fields,
    }


def only(
    router: dict[str, Any] | None = None, one: dict[str, Any] | None = None, heard: dict[str, Any] | None = None
) -> Finding:
    """Return the one finding about a deployment that differs from the healthy one in one part."""
    (finding,) = examine(router or readiness(), [one or worker()], [heard or source()])
    return finding


def test_of_a_healthy_deployment_nothing_is_found() -> None:
    """No finding means that nothing needs to be done."""
    assert examine(readiness(), [worker()], [source()]) == []


@pytest.mark.parametrize(
    ("changed", "severity", "said"),
    [
        ({"connected": False, "last_error": "refused"}, "error", "it is not connected: refused"),
        (
            {"applied_sequence": None, "messages": 0},
            "error",
            "nothing has come though its worker was sent 100 requests",
        ),
        ({"announced_rank": 1}, "error", "what comes there is of rank 1"),
        ({"quarantined": 2, "skipped": {"unknown": 3}, "last_error": "bad"}, "warning", "5 batches or events"),
        ({"malformed": 1}, "warning", "1 batches or events"),
        ({"gaps": 3, "gaps_lost": 2}, "warning", "2 of 3 gaps could not be filled"),
        ({"state": "suspect", "doubt": "batches were lost"}, "warning", "it is suspect"),
        ({"orphans": 4}, "note", "4 blocks wait for a beginning"),
        ({"lag": 2_000}, "warning", "2,000 batches are known and not applied"),
        ({"starved": True}, "warning", "the index is at its bound"),
    ],
)
def test_what_a_source_lacks_is_found(changed: dict[str, Any], severity: str, said: str) -> None:
    """Each finding names the source and its endpoint."""
    finding = only(heard=source(**changed))

    assert finding.severity == severity
    assert finding.about == "source one/0 (tcp://10.0.0.1:5557)"
    assert said in finding.what
    assert finding.remedy


def test_an_idle_engine_may_be_silent() -> None:
    """Engines publish when they store; who had no request has nothing to say."""
    idle = worker(requests={"active": 0, "total": 0})

    finding = only(one=idle, heard=source(applied_sequence=None, messages=0))

    assert finding.severity is Severity.NOTE
    assert "nothing has come yet" in finding.what


def test_a_rank_without_events_is_a_matter_of_its_worker() -> None:
    """It is listed among the sources all the same, with nothing that a subscriber would know."""
    silent = source(endpoint=None, state="predicted", connected=False)
    for name in ("messages", "malformed", "replay_endpoint", "topic"):
        del silent[name]

    finding = only(one=worker(kv_events_endpoints={}), heard=silent)

    assert finding.about == "worker one"
    assert "no event source" in finding.what


@pytest.mark.parametrize(("prompt", "severity"), [(14, "note"), (160, "error")])
def test_prompts_shorter_than_a_block_leave_an_engine_silent(prompt: int, severity: str) -> None:
    """The first hello of a newcomer is no fault; a longer prompt that nobody tells of is one."""
    greeted = worker(
        requests={"active": 0, "total": 1},
        cached_tokens={"reports": 1, "prompt": prompt, "promised": 0, "actual": 0},
    )

    finding = only(one=greeted, heard=source(applied_sequence=None, messages=0, block_size=None))

    assert finding.severity == severity


def test_a_worker_behind_a_request_plane_has_no_address_to_ask() -> None:
    """Its record has no URL, so none is named."""
    finding = only(one=worker(url=None, not_schedulable_reasons=["not reached yet"]))

    assert "engine" in finding.remedy
    assert "None" not in finding.remedy


def test_the_topic_that_nothing_came_under_is_named() -> None:
    """A topic of another name is the usual reason."""
    finding = only(heard=source(applied_sequence=None, messages=0, topic="kv@llama"))

    assert "'kv@llama'" in finding.what


@pytest.mark.parametrize(
    ("changed", "severity", "said"),
    [
        ({"not_schedulable_reasons": ["health: failed"]}, "error", "it gets no requests: health: failed"),
        ({"kv_events_endpoints": {}}, "warning", "no event source"),
        ({"ranks": [{"dp_rank": 3, "audit": {"demoted": True}}]}, "warning", "promises of rank 3 failed"),
        (
            {"cached_tokens": {"reports": 50, "prompt": 90_000, "promised": 50_000, "actual": 20_000}},
            "warning",
            "20,000 of 50,000 promised tokens in its cache (40%)",
        ),
        (
            {"cached_tokens": {"reports": 50, "prompt": 90_000, "promised": 0, "actual": 60_000}},
            "warning",
            "60,000 tokens in its cache where 0 were promised",
        ),
    ],
)
def test_what_a_worker_lacks_is_found(changed: dict[str, Any], severity: str, said: str) -> None:
    """Each finding names the worker."""
    finding = only(one=worker(**changed))

    assert (finding.severity, finding.about) == (severity, "worker one")
    assert said in finding.what


def test_the_last_error_of_a_failing_check_is_repeated() -> None:
    """It mostly says what is wrong."""
    failing = worker(not_schedulable_reasons=["health"], health={"state": "failed", "last_error": "connection refused"})

    assert "connection refused" in only(one=failing).what


def test_who_is_drained_is_noted_only() -> None:
    """Somebody wanted it so."""
    finding = only(one=worker(not_schedulable_reasons=["draining"], state="draining"))

    assert finding.severity is Severity.NOTE
    assert "/resume" in finding.remedy


def test_few_reports_say_nothing() -> None:
    """A first request that finds nothing is no reason to doubt."""
    few = {"reports": 3, "prompt": 90_000, "promised": 50_000, "actual": 0}

    assert examine(readiness(), [worker(cached_tokens=few)], [source()]) == []


def test_a_model_without_tokens_cannot_use_events() -> None:
    """The hash of bytes is never that of tokens: the router would be blind and not say so."""
    models = {"llama": {"workers": 1, "schedulable_workers": 1, "prompts": "byte-blocks: no tokenizer"}}

    finding = only(readiness(models=models))

    assert (finding.severity, finding.about) == (Severity.ERROR, "model llama")
    assert "--tokenizer llama=" in finding.remedy


def test_block_sizes_that_differ_are_named() -> None:
    """Each size costs another hashing of each prompt, and prefixes of workers cannot be compared."""
    workers = [worker(), worker(worker_id="two")]
    sources = [source(), source(worker_id="two", block_size=64)]

    (finding,) = examine(readiness(), workers, sources)

    assert "blocks of 16, 64 tokens" in finding.what


@pytest.mark.parametrize("reason", ["stopping", "no worker is registered", "no worker is schedulable"])
def test_a_router_that_is_not_ready_says_why(reason: str) -> None:
    """Whatever keeps it from serving is an error."""
    finding = only(readiness(ready=False, reasons=[reason]))

    assert (finding.severity, finding.about) == (Severity.ERROR, "router")


def test_the_worst_comes_first() -> None:
    """A long list is read from the top."""
    findings = examine(readiness(), [worker()], [source(orphans=1, lag=5_000, connected=False)])

    assert [finding.severity for finding in findings] == [Severity.ERROR, Severity.WARNING, Severity.NOTE]
