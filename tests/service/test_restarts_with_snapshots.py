"""A router that was restarted knows at once what the one before it knew: real processes, real stores."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from kvrouter.store.redis_connection import ANSWER_SECONDS
from tests.servers import nats_server, redis_server
from tests.service.processes import Engine, Processes, Router, eventually

PROMPT = list(range(200))
USABLE = 192


@contextmanager
def store(kind: str, processes: Processes) -> Iterator[str]:
    """Where routers keep what they know."""
    if kind == "nats":
        with nats_server(processes.folder) as nats:
            yield f"{nats.url}/KV"
    elif kind == "redis":
        with redis_server(processes.folder) as redis:
            yield f"{redis.url}/0/kv"
    else:
        yield str(processes.folder / "snapshots")


def compute(engine: Engine) -> None:
    """Have the engine cache the prompt."""
    model = httpx.get(f"{engine.url}/v1/models", timeout=60).json()["data"][0]["id"]
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1}
    httpx.post(f"{engine.url}/v1/completions", json=body, timeout=60).raise_for_status()


def known_tokens(router: Router) -> int:
    """How much of the prompt the router believes to be cached."""
    answer = router.post("/overlap_scores", {"token_ids": PROMPT}).json()
    return max((int(each["usable_tokens"]) for each in answer["workers"]), default=0)


def without_replay(engine: Engine) -> str:
    """A worker whose engine repeats nothing: what is not kept is lost."""
    return f"{engine.url},events={engine.ready['events']},id=sim"


@pytest.mark.parametrize("kind", ["file", "nats", "redis"])
def test_what_is_known_outlives_the_router(processes: Processes, kind: str) -> None:
    """A-320: the engine says nothing again; the next router has it from the store, in doubt until it hears more."""
    engine = processes.engine()
    with store(kind, processes) as url:
        first = processes.router("--worker", without_replay(engine), "--snapshots", url, workers=1)
        eventually(lambda: first.get("/sources")[0]["connected"])
        compute(engine)
        eventually(lambda: known_tokens(first) == USABLE)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0

        second = processes.router("--worker", without_replay(engine), "--snapshots", url, workers=1)
        known = known_tokens(second)
        (source,) = second.get("/sources")

    assert known == USABLE
    assert source["state"] == "suspect"
    assert second.event("snapshot_loaded")["sources"] == 1


def test_a_publisher_that_answers_makes_what_was_kept_certain(processes: Processes) -> None:
    """It repeats the last batch that was applied, so nothing was missed."""
    engine = processes.engine()
    options = ("--worker", f"{engine.spec},id=sim", "--snapshots", str(processes.folder / "kept"))
    first = processes.router(*options, workers=1)
    compute(engine)
    eventually(lambda: known_tokens(first) == USABLE)
    first.signal(signal.SIGTERM)
    first.wait()

    second = processes.router(*options, workers=1)
    eventually(lambda: second.get("/sources")[0]["state"] == "live")

    assert known_tokens(second) == USABLE
    assert "kvrouter_snapshot_restored_blocks 12.0" in httpx.get(f"{second.url}/metrics").text


def test_an_engine_that_was_restarted_meanwhile_is_not_believed_to_hold_anything(processes: Processes) -> None:
    """The state that is kept is of its former life."""
    engine = processes.engine()
    options = ("--worker", f"{engine.spec},id=sim", "--snapshots", str(processes.folder / "kept"))
    first = processes.router(*options, workers=1)
    compute(engine)
    eventually(lambda: known_tokens(first) == USABLE)
    first.signal(signal.SIGTERM)
    first.wait()
    engine.stop()

    processes.again(engine)
    second = processes.router(*options, workers=1)

    eventually(lambda: second.get("/sources")[0]["state"] == "live")
    assert known_tokens(second) == 0


def test_a_router_that_was_killed_left_the_snapshot_before(processes: Processes) -> None:
    """SIGKILL saves nothing; the interval bounds what is lost, and a worker registered later gets its part."""
    engine = processes.engine()
    kept = ("--snapshots", str(processes.folder / "kept"), "--events-snapshot-seconds", "1")
    first = processes.router("--worker", without_replay(engine), *kept, workers=1)
    eventually(lambda: first.get("/sources")[0]["connected"])
    compute(engine)
    eventually(lambda: known_tokens(first) == USABLE)
    saved = 'kvrouter_snapshot_saves_total{outcome="saved"}'
    before = _metric(first, saved)
    eventually(lambda: _metric(first, saved) >= before + 2)
    first.stop()

    second = processes.router(*kept)
    second.post("/workers", {"url": engine.url, "id": "sim", "events": engine.ready["events"]}).raise_for_status()

    assert known_tokens(second) == USABLE


def test_a_router_without_workers_hands_on_what_it_was_left(processes: Processes) -> None:
    """Workers that are registered over HTTP come after the start; a router that stops before must not lose them."""
    engine = processes.engine()
    kept = ("--snapshots", str(processes.folder / "kept"))
    first = processes.router("--worker", without_replay(engine), *kept, workers=1)
    eventually(lambda: first.get("/sources")[0]["connected"])
    compute(engine)
    eventually(lambda: known_tokens(first) == USABLE)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    for _ in range(4):
        between = processes.router(*kept)
        between.signal(signal.SIGTERM)
        assert between.wait() == 0

    last = processes.router("--worker", without_replay(engine), *kept, workers=1)

    assert known_tokens(last) == USABLE


def test_a_store_that_stands_still_does_not_hold_up_the_end(processes: Processes) -> None:
    """The router ends long before it would give the store up, and what was kept before stays."""
    engine = processes.engine()
    with redis_server(processes.folder) as redis:
        router = processes.router(
            "--worker", without_replay(engine), "--snapshots", f"{redis.url}/0/kv", "--drain-seconds", "1", workers=1
        )
        compute(engine)
        eventually(lambda: known_tokens(router) == USABLE)
        with redis.paused():
            router.signal(signal.SIGTERM)
            code = router.wait(ANSWER_SECONDS - 3)

    assert code == 0


def test_a_store_that_is_not_there_costs_the_head_start_only(processes: Processes) -> None:
    """It is said, counted, and the router serves."""
    engine = processes.engine()

    router = processes.router(
        "--worker", engine.spec, "--snapshots", "redis://127.0.0.1:9/0/kv", "--events-snapshot-seconds", "1", workers=1
    )

    assert router.event("snapshot_not_loaded")["level"] == "warning"
    eventually(lambda: _metric(router, 'kvrouter_snapshot_saves_total{outcome="failed"}') > 0)


def _metric(router: Router, name: str) -> float:
    for line in httpx.get(f"{router.url}/metrics", timeout=60).text.splitlines():
        if line.startswith(name):
            return float(line.rpartition(" ")[2])
    return 0.0
