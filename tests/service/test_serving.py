"""A real router in front of real (simulated) engines, as clients see it."""

import asyncio
import json

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.processes import Engine, Processes, Router, eventually, raw_server

PROMPT = list(range(1000, 1200))


@pytest.fixture
def engines(processes: Processes) -> list[Engine]:
    """Two engines with quick prefill."""
    return [processes.engine(), processes.engine()]


@pytest.fixture
def router(processes: Processes, engines: list[Engine]) -> Router:
    """A router that knows both, by the names a and b."""
    flags = [
        each for engine, name in zip(engines, "ab", strict=True) for each in ("--worker", f"{engine.spec},id={name}")
    ]
    return processes.router(*flags, workers=2)


def _complete(router: Router, prompt: object = None, **fields: object) -> httpx.Response:
    body = {"model": "simulated", "prompt": prompt or PROMPT, "max_tokens": 4, **fields}
    return router.post("/v1/completions", body)


def test_a_prompt_comes_back_to_the_worker_that_holds_it(router: Router) -> None:
    """A-374, A-503, A-504: what is promised in the header is what the engine's usage says."""
    first = _complete(router)
    again = _complete(router)

    assert first.status_code == again.status_code == 200
    assert first.headers["x-kvrouter-overlap-tokens"] == "0"
    assert again.headers["x-kvrouter-worker"] == first.headers["x-kvrouter-worker"]
    cached = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == int(again.headers["x-kvrouter-overlap-tokens"]) == 192


def test_different_prompts_are_spread(router: Router) -> None:
    """Without overlap, load and turn decide."""
    workers = {
        _complete(router, prompt=list(range(start, start + 64))).headers["x-kvrouter-worker"]
        for start in range(0, 8000, 1000)
    }

    assert workers == {"a", "b"}


def test_a_decision_can_be_explained(router: Router) -> None:
    """By the id of the answer: candidates, overlap, load, cost."""
    answer = _complete(router)

    decision = router.get(f"/decisions/{answer.headers['x-request-id']}")

    assert decision["worker_id"] == answer.headers["x-kvrouter-worker"]
    assert {each["worker_id"] for each in decision["candidates"]} == {"a", "b"}
    assert decision["prompt_tokens"] == len(PROMPT)
    assert router.get("/decisions")[0]["id"] == answer.headers["x-request-id"]
    assert router.get("/decisions/none")["error"]["code"] == "decision_not_found"


def test_models_are_the_union_even_with_a_dead_worker(router: Router) -> None:
    """`/v1/models` is answered here and never fails because of one worker."""
    router.post("/workers", {"url": "http://127.0.0.1:9", "worker_id": "dead", "model": "other"})

    listing = router.get("/v1/models")

    assert [each["id"] for each in listing["data"]] == ["other", "simulated"]
    assert router.get("/v1/models/simulated")["object"] == "model"
    assert router.get("/v1/models/none")["error"]["code"] == "model_not_found"


def test_an_unknown_model_is_404_with_the_known_ones(router: Router) -> None:
    """A typing mistake is answered in a way that helps."""
    answer = _complete(router, model="simulate")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "simulated" in answer.json()["error"]["message"]


def test_no_worker_is_503_with_retry_after(processes: Processes) -> None:
    """A fleet that is not there yet is worth another try."""
    router = processes.router("--worker", "http://127.0.0.1:9")

    answer = _complete(router)

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "no_worker"


def test_other_v1_paths_go_to_a_worker(router: Router) -> None:
    """What we do not know is the engine's to answer."""
    answer = router.post("/v1/unheard_of", {"model": "simulated"})

    assert answer.status_code == 404
    assert answer.headers["x-kvrouter-worker"] in "ab"


def test_sources_tell_what_was_applied(router: Router) -> None:
    """One row per rank, with the meaning and the transport of its events."""
    _complete(router)

    eventually(lambda: sum(row["blocks"] for row in router.get("/sources")) == 12)
    rows = {row["worker_id"]: row for row in router.get("/sources")}

    assert set(rows) == {"a", "b"}
    assert all(row["state"] == "live" and row["transport"] == "zmq" for row in rows.values())


def test_promises_are_compared_with_what_engines_report(router: Router) -> None:
    """Per worker: tokens promised and tokens found cached, for the same answers."""
    _complete(router)
    worker = _complete(router).headers["x-kvrouter-worker"]

    told = eventually(
        lambda: [w["cached_tokens"] for w in router.get("/workers") if w["cached_tokens"]["reports"] == 2]
    )

    assert told == [{"reports": 2, "prompt": 400, "promised": 192, "actual": 192}], worker


def test_load_is_given_back_when_answers_end(router: Router) -> None:
    """Nothing stays booked, neither after an answer nor after a client that left."""
    _complete(router)
    with httpx.stream(
        "POST",
        f"{router.url}/v1/completions",
        json={"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True, "stream": True},
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        busy = [rank["active_requests"] for worker in router.get("/workers") for rank in worker["ranks"]]

    assert sum(busy) == 1
    eventually(
        lambda: all(
            rank["active_requests"] == rank["prefill_tokens"] == rank["decode_blocks"] == 0
            for worker in router.get("/workers")
            for rank in worker["ranks"]
        )
    )


def test_a_real_openai_client_is_content(router: Router) -> None:
    """Chat and completions, streaming and not, and its errors are its own types."""
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="simulated", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
        pieces = client.chat.completions.create(
            model="simulated", messages=[{"role": "user", "content": "hello"}], max_tokens=5, stream=True
        )
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        text = client.completions.create(model="simulated", prompt="hello", max_tokens=5)
        models = [model.id for model in client.models.list()]

        assert chat.choices[0].message.content == streamed
        assert text.choices[0].text
        assert models == ["simulated"]
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="none", prompt="hello")


def test_a_real_asynchronous_openai_client_is_content(router: Router) -> None:
    """The same, many at once."""

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                pieces = await client.chat.completions.create(
                    model="simulated",
                    messages=[{"role": "user", "content": f"hello {number}"}],
                    max_tokens=5,
                    stream=True,
                )
                return "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])

            plain = await client.chat.completions.create(
                model="simulated", messages=[{"role": "user", "content": "hello 0"}], max_tokens=5
            )
            return [plain.choices[0].message.content or "", *await asyncio.gather(*map(one, range(16)))]

    plain, *streamed = asyncio.run(run())

    assert len(streamed) == 16
    assert streamed[0] == plain
    assert all(streamed)


def test_several_ranks_are_several_caches(processes: Processes) -> None:
    """The chosen rank is named to the engine, and its events are its own."""
    engine = processes.engine("--ranks", "2")
    router = processes.router("--worker", f"{engine.spec},id=a,ranks=2", workers=1)

    answers = [_complete(router), _complete(router, prompt=list(range(5000, 5200))), _complete(router)]

    ranks = [router.get(f"/decisions/{answer.headers['x-request-id']}")["dp_rank"] for answer in answers]
    assert ranks == [0, 1, 0]
    assert answers[2].json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 192


def test_metrics_are_well_formed_and_count(router: Router) -> None:
    """A-504: every family parses, has a proper name, and what happened is in it."""
    _complete(router)
    _complete(router, model="none")

    families = {
        family.name: family
        for family in text_string_to_metric_families(httpx.get(f"{router.url}/metrics").text)
        if family.name.startswith("kvrouter_")
    }

    routed = families["kvrouter_routed_requests"].samples
    assert [(sample.labels, sample.value) for sample in routed] == [({"policy": "kv"}, 1.0)]
    refused = {sample.labels["reason"]: sample.value for sample in families["kvrouter_unroutable_requests"].samples}
    assert refused == {"unknown_model": 1.0, "no_worker": 0.0}
    assert len(families) >= 40
    assert families["kvrouter_time_to_first_token_seconds"].type == "histogram"
    assert not [name for name in families if ":" in name]


def test_a_body_that_was_changed_arrives_whole(processes: Processes) -> None:
    """Its length is its own, and the engine sees no argument that would make it repeat itself."""
    seen: list[bytes] = []

    def answer(asked: bytes) -> bytes:
        if asked.startswith(b"POST"):
            seen.append(asked)
        body = b'{"object":"list","data":[{"id":"m"}]}'
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with raw_server(answer) as port:
        router = processes.router("--worker", f"http://127.0.0.1:{port},model=m", workers=1)
        body = {"model": "m", "prompt": PROMPT, "vllm_xargs": {"kv_cache_report_mode": "full"}}
        status = router.post("/v1/completions", body).status_code

    head, _, sent = seen[0].partition(b"\r\n\r\n")
    assert status == 200
    assert json.loads(sent) == {"model": "m", "prompt": PROMPT}
    assert b"content-length: %d" % len(sent) in head.lower()
