"""Several real routers in front of one fleet, over a real store: each knows what the others have under way."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from tests.servers import redis_server
from tests.service.processes import Engine, Processes, Router, eventually

HELD = 2
# Longer than a busy machine keeps a router from saying that it is there.
LEASE_SECONDS = "12"
# An answer lasts longer than any test.
SLOW = ("--decode-seconds", "1", "--no-events")


def _pair(processes: Processes, store: str) -> tuple[Router, Router]:
    """One router that knows one engine only, and one that knows two."""
    one, two = processes.engine(*SLOW), processes.engine(*SLOW)
    flags = ("--replica-store", store, "--replica-lease", LEASE_SECONDS, "--policy", "least-loaded")
    first = processes.router("--worker", _worker(one, "one"), *flags, workers=1)
    second = processes.router("--worker", _worker(one, "one"), "--worker", _worker(two, "two"), *flags, workers=2)
    eventually(lambda: len(first.get("/replicas")["replicas"]) == len(second.get("/replicas")["replicas"]) == 1)
    return first, second


def _worker(engine: Engine, name: str) -> str:
    return f"{engine.url},id={name}"


@contextmanager
def _held(router: Router, requests: int) -> Iterator[None]:
    """Requests under way: each has its first token, and its answer goes on."""
    with ExitStack() as held:
        answers = []  # one that nobody holds is closed
        for number in range(requests):
            prompt = list(range(1000 * number, 1000 * number + 64))
            body = {"prompt": prompt, "max_tokens": 600, "stream": True}
            answer = held.enter_context(httpx.stream("POST", f"{router.url}/v1/completions", json=body, timeout=60))
            assert answer.status_code == 200
            answers.append(answer.iter_lines())
            next(answers[-1])
        yield


def _elsewhere(router: Router, worker: str) -> int:
    """Requests that others have on a worker, as a router knows it."""
    (rank,) = router.get(f"/workers/{worker}")["ranks"]
    return int(rank["elsewhere"]["active_requests"])


def _gone(router: Router) -> list[Any]:
    """The others that a router said it has forgotten."""
    return [line for line in router.lines() if line.get("event") in ("replica_silent", "replica_left")]


def _chosen(router: Router, start: int) -> Any:
    """Where a prompt goes that nobody knows; its answer has one token."""
    body = {"prompt": list(range(start, start + 64)), "max_tokens": 1}
    answer = router.post("/v1/completions", body)
    assert answer.status_code == 200
    return answer.headers["x-kvrouter-worker"]


def test_routers_know_of_each_other_while_the_store_is_there_and_both_live(processes: Processes) -> None:
    """What one has under way sends the other's requests elsewhere; without the store nothing fails; the dead count not.

    One scene, because its processes are dear.
    """
    with redis_server(processes.folder) as redis:
        first, second = _pair(processes, f"{redis.url}/0/kv")
        with _held(first, HELD):
            eventually(lambda: _elsewhere(second, "one") == HELD)
            chosen = [_chosen(second, 50_000 + 1000 * each) for each in range(3)]
            known, metrics = second.get("/replicas")["replicas"], httpx.get(f"{second.url}/metrics", timeout=60).text

            redis.kill()
            told, silent = second.event("replica_state_not_told"), second.event("replica_silent")
            failing = second.get("/replicas")
            alone = [_chosen(second, 60_000 + 1000 * each) for each in range(4)]

            redis.start()
            eventually(lambda: _elsewhere(second, "one") == HELD)
            eventually(lambda: second.get("/replicas")["store_state"] == "following")

            first.stop()  # killed: it takes nothing back
            eventually(lambda: len(_gone(second)) >= 2)
            eventually(lambda: not second.get("/replicas")["replicas"])
        forgotten = _elsewhere(second, "one")

    assert chosen == ["two"] * 3
    assert 'kvrouter_rank_elsewhere_requests{rank="0",worker="one"} 2.0' in metrics
    assert 'kvrouter_rank_active_requests{rank="0",worker="one"} 0.0' in metrics
    assert "kvrouter_replicas 1.0" in metrics
    assert [(each["active_requests"], each["unknown_ranks"]) for each in known] == [(HELD, 0)]
    assert told["error"]
    assert silent["replica"] == known[0]["replica_id"]
    assert failing["last_error"]
    assert (failing["store_state"], failing["replicas"]) == ("failing", [])
    assert "one" in alone
    assert forgotten == 0
