"""Split requests between real processes: engines that keep to vLLM's and SGLang's conventions, and refuse the rest."""

import signal
from typing import Any

import httpx
import pytest

from tests.service.processes import Engine, Processes, Router, eventually

PROMPT = list(range(1000, 2600))
SHORT = list(range(64))
SOON = httpx.Timeout(20, read=0.5)
INSTANT = ("--prefill-tokens-per-second", "1e9", "--step-seconds", "0", "--decode-seconds", "0.001")


class Fleet:
    """Engines with roles behind one router."""

    def __init__(self, processes: Processes, dialect: str) -> None:
        self.processes, self.dialect = processes, dialect
        self.engines: dict[str, Engine] = {}

    def add(self, name: str, role: str | None, *options: str) -> Engine:
        """Start an engine."""
        part = ("--role", role) if role else ()
        self.engines[name] = self.processes.engine(*INSTANT, "--dialect", self.dialect, *part, *options)
        return self.engines[name]

    def spec(self, name: str) -> str:
        """The engine as the router is told of it."""
        engine = self.engines[name]
        options = engine.options
        role = f",role={options[options.index('--role') + 1]}" if "--role" in options else ""
        ranks = f",ranks={engine.ready['ranks']}"
        port = f",bootstrap_port={engine.ready['side_port']}" if engine.ready["side_port"] else ""
        return f"{engine.spec},id={name},engine={self.dialect}{role}{ranks}{port}"

    def route(self, *options: str) -> Router:
        """Start a router over all of them."""
        workers = [each for name in self.engines for each in ("--worker", self.spec(name))]
        return self.processes.router(*workers, *options, workers=len(self.engines))

    def transfers(self, name: str) -> dict[str, Any]:
        """What an engine says of its transfers."""
        answer: dict[str, Any] = httpx.get(self.engines[name].url + "/transfers", timeout=20).json()
        return answer


@pytest.fixture(params=["vllm", "sglang"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Whose conventions."""
    name: str = request.param
    return name


@pytest.fixture
def fleet(processes: Processes, dialect: str) -> Fleet:
    """One prefill and one decode engine, of either kind."""
    fleet = Fleet(processes, dialect)
    fleet.add("p", "prefill")
    fleet.add("d", "decode")
    return fleet


def _ask(router: Router, prompt: list[int] | None = None, **more: Any) -> httpx.Response:
    body = {"model": "simulated", "prompt": prompt or PROMPT, "max_tokens": 8, "ignore_eos": True, **more}
    return router.post("/v1/completions", body)


def _idle(router: Router) -> bool:
    return all(
        rank["active_requests"] == rank["prefill_tokens"] == rank["decode_blocks"] == 0
        for worker in router.get("/workers")
        for rank in worker["ranks"]
    ) and all(worker["requests"]["active"] == 0 for worker in router.get("/workers"))


def _metric(router: Router, name: str) -> dict[str, float]:
    lines = httpx.get(router.url + "/metrics", timeout=20).text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)}


def test_a_long_prompt_is_computed_by_one_and_answered_by_the_other(fleet: Fleet) -> None:
    """The decode engine fetches all of it; both stages are in the decision, booked off, and counted."""
    router = fleet.route()

    answer = _ask(router)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-kvrouter-worker"] == "d"
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1
    assert "kv_transfer_params" not in answer.json()
    decision = router.get(f"/decisions/{answer.headers['x-request-id']}")
    assert (decision["worker_id"], decision["prefill"]["worker_id"]) == ("d", "p")
    assert (decision["prefill_tokens"], decision["prefill"]["prefill_tokens"]) == (0, len(PROMPT))
    prefill, decode = fleet.transfers("p"), fleet.transfers("d")
    assert (prefill["prefilled"], prefill["served"], prefill["held"]) == (1, 1, 0)
    assert (decode["fetched"], decode["invalid"]) == (1, 0)
    eventually(lambda: _idle(router))
    assert _metric(router, "kvrouter_split_verdicts_total") == {'kvrouter_split_verdicts_total{verdict="split"}': 1}


def test_a_stream_is_split_as_a_whole_answer_is(fleet: Fleet) -> None:
    """The client gets every token, of one engine, and the usage that it asked for."""
    router = fleet.route()

    answer = _ask(router, stream=True, stream_options={"include_usage": True}, max_completion_tokens=8)

    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) == 8 + 1 + 1
    assert fleet.transfers("d")["fetched"] == 1
    eventually(lambda: _idle(router))


def test_equal_prompts_meet_the_cache_of_the_prefill_engine(fleet: Fleet) -> None:
    """Its rank is chosen by what it has: the second of two prefill engines is not asked for the same prompt."""
    fleet.add("q", "prefill")
    router = fleet.route()
    first = router.get(f"/decisions/{_ask(router).headers['x-request-id']}")["prefill"]["worker_id"]
    other = [*PROMPT[:1536], *range(5000, 5600)]

    decisions = [router.get(f"/decisions/{_ask(router, other).headers['x-request-id']}") for _ in range(2)]

    assert [each.get("prefill", {}).get("worker_id", first) for each in decisions] == [first, first]
    eventually(lambda: _idle(router))


def test_what_a_worker_refuses_the_client_is_told(fleet: Fleet) -> None:
    """A prompt that is too long is nobody's failure: nothing is tried again, and nobody is ejected."""
    router = fleet.route()

    answer = _ask(router, list(range(40_000)))

    assert answer.status_code == 400
    assert "maximum context length" in answer.json()["error"]["message"]
    eventually(lambda: _idle(router))
    assert [worker["health"]["state"] for worker in router.get("/workers")] == ["ready", "ready"]


def test_a_dead_prefill_worker_is_replaced_by_another(fleet: Fleet) -> None:
    """The client notices nothing, whichever of them was asked first."""
    fleet.add("q", "prefill")
    router = fleet.route("--health-interval-seconds", "3600")
    fleet.engines["p"].stop()

    answers = [_ask(router, list(range(start, start + 1600))) for start in range(10_000, 30_000, 5000)]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert fleet.transfers("q")["served"] == 4
    eventually(lambda: _idle(router))


def test_a_client_that_leaves_takes_both_stages_with_it(fleet: Fleet) -> None:
    """Whether the first one is still computing, or the second one answering."""
    router = fleet.route()
    for stalled in ("p", "d"):
        httpx.post(fleet.engines[stalled].url + "/fault", json={"kind": "stall"}, timeout=20)
        with httpx.Client() as client:
            body = {"model": "simulated", "prompt": PROMPT, "max_tokens": 8, "stream": True}
            request = client.build_request("POST", router.url + "/v1/completions", json=body, timeout=SOON)
            with pytest.raises(httpx.ReadTimeout):
                client.send(request)

        eventually(lambda: _idle(router))
        httpx.post(fleet.engines[stalled].url + "/fault", json={"kind": "none"}, timeout=20)

    assert _ask(router).status_code == 200
    eventually(lambda: _idle(router))


def test_every_rank_takes_its_part(processes: Processes, dialect: str) -> None:
    """The decode engine asks the very rank for the blocks that has them, and answers from the one that was chosen."""
    ranked = Fleet(processes, dialect)
    ranked.add("p", "prefill", "--ranks", "3")
    ranked.add("d", "decode", "--ranks", "2")
    # In turn: a machine that stalls would teach `kv` that some ranks are slow.
    router = ranked.route("--policy", "round-robin")

    answers = [_ask(router, list(range(start, start + 1600))) for start in range(10_000, 28_000, 2000)]

    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    decisions = [router.get(f"/decisions/{answer.headers['x-request-id']}") for answer in answers]
    assert {each["prefill"]["dp_rank"] for each in decisions} == {0, 1, 2}
    assert {each["dp_rank"] for each in decisions} == {0, 1}
    eventually(lambda: _idle(router))


def test_a_router_that_stops_leaves_no_first_stage_behind(fleet: Fleet) -> None:
    """It ends with 0 although an engine never answers."""
    router = fleet.route("--drain-seconds", "0")
    httpx.post(fleet.engines["p"].url + "/fault", json={"kind": "stall"}, timeout=20)
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(router.url + "/v1/completions", json={"model": "simulated", "prompt": PROMPT}, timeout=SOON)

    router.signal(signal.SIGTERM)

    assert router.wait() == 0


# -- what only one of them can do --------------------------------------------------------------------------------------


def test_a_short_prompt_goes_straight_to_a_decode_engine_that_computes(processes: Processes) -> None:
    """What vLLM has can; so can one whose prompt is cached there."""
    fleet = Fleet(processes, "vllm")
    fleet.add("p", "prefill")
    fleet.add("d", "decode")
    router = fleet.route()

    answers = [_ask(router, SHORT), _ask(router), _ask(router, PROMPT[:-3])]

    assert [answer.headers["x-kvrouter-worker"] for answer in answers] == ["d"] * 3
    assert fleet.transfers("p")["prefilled"] == 1
    verdicts = _metric(router, "kvrouter_split_verdicts_total")
    assert {name.split('"')[1]: count for name, count in verdicts.items()} == {"short": 2, "split": 1}


def test_a_short_prompt_is_split_where_nobody_takes_it_whole(processes: Processes) -> None:
    """SGLang's decode servers compute no prompts; a plain server beside them does."""
    fleet = Fleet(processes, "sglang")
    fleet.add("p", "prefill")
    fleet.add("d", "decode")
    router = fleet.route()
    assert _ask(router, SHORT).status_code == 200
    assert fleet.transfers("p")["served"] == 1

    fleet.add("w", None)
    url, *rest = fleet.spec("w").split(",")
    fields: dict[str, Any] = dict(each.split("=", 1) for each in rest)
    fields["ranks"] = 1
    assert router.post("/workers", {"url": url, **fields}).status_code == 201
    eventually(lambda: router.schedulable(3))

    assert _ask(router, SHORT).headers["x-kvrouter-worker"] == "w"
    assert fleet.transfers("p")["served"] == 1


def test_several_prompts_of_one_request_meet_in_several_rooms(processes: Processes) -> None:
    """SGLang takes lists; vLLM hands over one prompt at a time, so its decode engine computes them."""
    for dialect, served in (("sglang", 2), ("vllm", 0)):
        fleet = Fleet(processes, dialect)
        fleet.add("p", "prefill")
        fleet.add("d", "decode")
        router = fleet.route()
        body = {"model": "simulated", "prompt": [PROMPT, PROMPT[5:]], "max_tokens": 2}

        answer = router.post("/v1/completions", body)

        assert (answer.status_code, len(answer.json()["choices"])) == (200, 2)
        assert fleet.transfers("p")["served"] == served


def test_without_any_prefill_worker_left_the_decode_engine_computes(processes: Processes) -> None:
    """That is slower, but it is an answer."""
    fleet = Fleet(processes, "vllm")
    fleet.add("p", "prefill")
    fleet.add("d", "decode")
    router = fleet.route("--health-interval-seconds", "3600")
    fleet.engines["p"].stop()

    answer = _ask(router)

    assert (answer.status_code, answer.headers["x-kvrouter-worker"]) == (200, "d")
    assert _metric(router, "kvrouter_split_fallbacks_total") == {"kvrouter_split_fallbacks_total": 1}
    assert _ask(router, list(range(20_000, 21_600))).status_code == 200  # nobody computes prompts now
    eventually(lambda: _idle(router))


def test_an_engine_without_a_connector_is_no_reason_to_fail(processes: Processes) -> None:
    """It computes the prompt and says nothing of blocks; the decode engine computes it again."""
    fleet = Fleet(processes, "vllm")
    fleet.add("d", "decode")
    plain = processes.engine(*INSTANT)
    router = fleet.processes.router(
        *("--worker", fleet.spec("d"), "--worker", f"{plain.spec},id=p,role=prefill"), workers=2
    )

    assert _ask(router).status_code == 200
    assert _metric(router, "kvrouter_split_fallbacks_total") == {"kvrouter_split_fallbacks_total": 1}


def test_a_plain_fleet_is_never_split(processes: Processes) -> None:
    """Whoever says no roles gets none; and roles may be given without splitting."""
    fleet = Fleet(processes, "vllm")
    fleet.add("p", "prefill")
    fleet.add("d", "decode")
    router = fleet.route("--no-placement-split")

    assert _ask(router).headers["x-kvrouter-worker"] == "d"
    assert fleet.transfers("p")["prefilled"] == 0
    assert _metric(router, "kvrouter_split_verdicts_total") == {}
