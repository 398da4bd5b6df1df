"""Headers, admin calls and ranks between real processes."""

from typing import Any

import httpx
import pytest

from tests.service.processes import Processes, Router, eventually

INSTANT = ("--prefill-tokens-per-second", "1e9", "--step-seconds", "0", "--decode-seconds", "0.001")
BODY = {"prompt": list(range(64)), "max_tokens": 1}


def _ask(router: Router, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(router.url + "/v1/completions", json=body or BODY, headers=named, timeout=30)


def test_headers_choose_the_worker_and_end_at_the_router(processes: Processes) -> None:
    """On one kept connection too, where each request may ask for something else."""
    plain, gpu = processes.engine(*INSTANT), processes.engine(*INSTANT)
    router = processes.router(
        *("--worker", f"{plain.spec},id=a", "--worker", f"{gpu.spec},id=b,labels=gpu=h100,taints=x:NoSchedule"),
        workers=2,
    )

    with httpx.Client(base_url=router.url, timeout=30) as client:
        chosen = [
            client.post("/v1/completions", json=BODY, headers=headers).headers["x-kvrouter-worker"]
            for headers in (
                {"X-Kvrouter-Require": "gpu", "X-Kvrouter-Tolerate": "x"},
                {},
                {"x-kvrouter-worker": "b"},
                {"x-kvrouter-tolerate": "*", "x-kvrouter-require": "!gpu"},
                {},
            )
        ]
        unmet = client.post("/v1/completions", json=BODY, headers={"x-kvrouter-require": "gpu=b200"})
        wrong = client.post("/v1/completions", json=BODY, headers={"x-kvrouter-require": "gpu=="})

    assert chosen == ["b", "a", "b", "a", "a"]
    assert (unmet.status_code, unmet.json()["error"]["code"]) == (422, "unmet_constraint")
    assert "retry-after" not in unmet.headers
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-kvrouter-require")


def test_labels_change_while_the_router_runs(processes: Processes) -> None:
    """Over the admin API, which shows them too."""
    engine = processes.engine(*INSTANT)
    router = processes.router("--worker", f"{engine.spec},id=a", workers=1)
    assert _ask(router, x_kvrouter_require="gpu=h100").status_code == 422

    changed = httpx.patch(f"{router.url}/workers/a", json={"labels": {"gpu": "h100"}, "zone": "east"}, timeout=30)

    assert (changed.json()["labels"], changed.json()["zone"]) == ({"gpu": "h100"}, "east")
    eventually(lambda: router.schedulable(1))
    assert _ask(router, x_kvrouter_require="gpu=h100,zone=east").status_code == 200


def test_a_conversation_is_shown_and_closed(processes: Processes) -> None:
    """And counted."""
    engines = [processes.engine(*INSTANT) for _ in range(2)]
    workers = [each for number, one in enumerate(engines) for each in ("--worker", f"{one.spec},id=w{number}")]
    router = processes.router(*workers, "--placement-sessions", "pin", workers=2)

    homes = {
        name: {_ask(router, x_session_id=name).headers["x-kvrouter-worker"] for _ in range(3)} for name in ("s", "t")
    }

    assert all(len(home) == 1 for home in homes.values())
    eventually(lambda: not any(row["active"] for row in router.get("/sessions")["sessions"]))
    shown = router.get("/sessions?limit=1")
    assert (shown["enabled"], shown["bound"], shown["sessions"][0]["session"]) == (True, 2, "t")
    assert (shown["sessions"][0]["requests"], shown["sessions"][0]["worker_id"]) == (3, *homes["t"])
    assert httpx.delete(f"{router.url}/sessions/t", timeout=30).json() == {"closed": 1}
    assert httpx.delete(f"{router.url}/sessions/t", timeout=30).status_code == 404
    assert router.get("/sessions")["bound"] == 1
    metrics = httpx.get(f"{router.url}/metrics", timeout=30).text
    for line in ("kvrouter_sessions 1.0", 'session_events_total{event="kept"} 4.0', 'events_total{event="closed"} 1.0'):
        assert line in metrics


def test_without_sessions_there_are_none(processes: Processes) -> None:
    """The page says so."""
    router = processes.router()

    assert router.get("/sessions") == {"enabled": False, "bound": 0, "workers": {}, "sessions": []}


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_an_engine_runs_a_request_on_the_rank_that_was_chosen(processes: Processes, dialect: str) -> None:
    """It would choose another one itself; whose conventions it understands, it says where it lists its models."""
    engine = processes.engine(*INSTANT, "--dialect", dialect, "--ranks", "3")
    router = processes.router("--worker", f"{engine.spec},id=w,ranks=3", workers=1)

    for rank in (2, 0, 1):
        prompt = list(range(1000 * rank, 1000 * rank + 320))
        body = {"prompt": prompt, "max_tokens": 1, "data_parallel_rank": 0, "stream": False}
        first, again = (_ask(router, body, x_kvrouter_worker=f"w/{rank}").json() for _ in range(2))

        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, again)]
        assert cached == [0, 304]
        other = _ask(router, body, x_kvrouter_worker=f"w/{(rank + 1) % 3}").json()
        assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
