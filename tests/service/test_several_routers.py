"""Several real routers in front of one fleet, over real stores: each knows what the others have under way."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from tests.servers import nats_server, redis_server
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


def _chosen(router: Router, start: int) -> Any:
    """Where a prompt goes that nobody knows; its answer has one token."""
    body = {"prompt": list(range(start, start + 64)), "max_tokens": 1}
    answer = router.post("/v1/completions", body)
    assert answer.status_code == 200
    return answer.headers["x-kvrouter-worker"]


def test_requests_of_one_router_make_the_other_choose_another_worker(processes: Processes) -> None:
    """What is booked elsewhere counts as load, is not counted twice, and dies with its router."""
    with nats_server(processes.folder) as nats:
        first, second = _pair(processes, f"{nats.url}/KV")
        with _held(first, HELD):
            eventually(lambda: _elsewhere(second, "one") == HELD)
            chosen = [_chosen(second, 50_000 + 1000 * each) for each in range(3)]
            known, metrics = second.get("/replicas")["replicas"], httpx.get(f"{second.url}/metrics", timeout=60).text

            first.stop()  # killed: it takes nothing back
            eventually(lambda: not second.get("/replicas")["replicas"])
        forgotten = _elsewhere(second, "one")

    assert chosen == ["two"] * 3
    assert 'kvrouter_rank_elsewhere_requests{rank="0",worker="one"} 2.0' in metrics
    assert 'kvrouter_rank_active_requests{rank="0",worker="one"} 0.0' in metrics
    assert "kvrouter_replicas 1.0" in metrics
    assert [(each["active_requests"], each["unknown_ranks"]) for each in known] == [(HELD, 0)]
    assert forgotten == 0


def test_a_store_that_is_gone_costs_what_others_have_booked_and_nothing_else(processes: Processes) -> None:
    """Requests go on; who stops answering is forgotten, and found again when the store is back."""
    with redis_server(processes.folder) as redis:
        first, second = _pair(processes, f"{redis.url}/0/kv")
        with _held(first, HELD):
            eventually(lambda: _elsewhere(second, "one") == HELD)

            redis.kill()
            silent = second.event("replica_silent")
            told = second.event("replica_state_not_told")
            failing = second.get("/replicas")
            alone = {_chosen(second, 50_000 + 1000 * each) for each in range(4)}
            redis.start()
            eventually(lambda: _elsewhere(second, "one") == HELD)
            eventually(lambda: second.get("/replicas")["store_state"] == "following")

    assert silent["replica"]
    assert told["error"]
    assert failing["last_error"]
    assert (failing["store_state"], failing["replicas"]) == ("failing", [])
    assert alone == {"one", "two"}


def test_routers_of_two_namespaces_do_not_know_of_each_other(processes: Processes) -> None:
    """One store may serve several fleets; without any store there is nothing to show."""
    store = str(processes.folder / "store")
    flags = ("--replica-store", store)
    router = processes.router(*flags)
    processes.router(*flags, "--planes-namespace", "other")
    same = processes.router(*flags)
    lonely = processes.router("--replica-store", "off")

    (known,) = eventually(lambda: router.get("/replicas")["replicas"])

    assert known["replica_id"] == same.get("/replicas")["replica_id"]
    assert lonely.get("/replicas") == {"enabled": False, "replicas": []}
