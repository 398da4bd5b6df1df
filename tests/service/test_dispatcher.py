"""What is decided about a request, and what is learnt from its end; without sockets."""

import asyncio
import json
from typing import Any

import pytest

from kvrouter.errors import KvrouterError, NoWorkerError, RequestError, SettingsError, UnknownModelError
from kvrouter.routing import Decision
from kvrouter.routing.load import LoadBook
from kvrouter.service.dispatcher import Flight
from kvrouter.service.proxy import Outcome, Route, Usage
from kvrouter.service.whole_answers import WholeAnswers
from kvrouter.settings import AuthSettings, RoutingSettings
from tests.service.inprocess import InProcess

BODY = {"model": "m", "prompt": list(range(64)), "max_tokens": 4, "stream": True}
WHOLE = {**BODY, "prompt": list(range(8000)), "stream": False}


@pytest.fixture
def service() -> InProcess:
    """Two healthy workers of one model."""
    service = InProcess()
    for name in "ab":
        service.add(url=f"http://{name}:1", worker_id=name, model="m", block_size=16)
    return service


def _route(
    service: InProcess, body: Any = None, path: str = "/v1/completions", excluded: tuple[str, ...] = ()
) -> Route:
    return _settled(service.service.dispatcher.route(service.request("POST", path, body or BODY), excluded))


def _settled(found: object) -> Route:
    """The route that a dispatcher found, also where it has to be awaited."""
    if not isinstance(found, Route):

        async def wait() -> Any:
            return await found  # type: ignore[misc]

        found = asyncio.run(wait())
    assert isinstance(found, Route)
    return found


def _loads(service: InProcess) -> list[tuple[int, int]]:
    book = service.service.router.book
    return [(book.load(rank).active_requests, book.load(rank).prefill_tokens) for rank in (0, 1)]


@pytest.mark.parametrize(
    "outcome",
    ["ok", "error_status", "client_gone", "connect_failed", "saturated", "upstream_lost", "timeout", "bad_response"],
)
def test_however_an_attempt_ends_its_load_is_given_back(service: InProcess, outcome: Outcome) -> None:
    """Before and after the first token."""
    dispatcher = service.service.dispatcher
    for answered in (False, True):
        route = _route(service)
        busy = _loads(service)
        if answered:
            dispatcher.first_token(route)
        dispatcher.finished(route, outcome, None)

        assert sum(active for active, _ in busy) == 1
        assert _loads(service) == [(0, 0), (0, 0)]
        service.clock.now += 60
        service.service.registry.check_passed(service.service.registry.find("a"), now=service.clock.now)
        service.service.registry.check_passed(service.service.registry.find("b"), now=service.clock.now)
    assert [worker.active for worker in service.service.registry] == [0, 0]


def test_the_first_token_ends_the_prefill(service: InProcess) -> None:
    """From then on the request weighs only as an active one, and its time is known."""
    route = _route(service)
    service.clock.now += 0.2

    service.service.dispatcher.first_token(route)

    assert sorted(_loads(service)) == [(0, 0), (1, 0)]
    assert service.service.traffic.ttft_seconds.total == pytest.approx(0.2)


def _decision(route: Route) -> Decision:
    """What was decided."""
    assert isinstance(route.token, Flight)
    return route.token.decision


def _rates(service: InProcess) -> list[tuple[float, ...]]:
    """What is believed of both ranks' speed after some seconds more."""
    service.clock.now += 5.0
    service.service.router.expire(service.clock.now)
    loads = [service.service.router.book.load(rank) for rank in (0, 1)]
    return [(load.first_seconds, load.token_seconds, load.pair_seconds) for load in loads]


@pytest.mark.parametrize(
    ("body", "path", "teaches"),
    [
        ({"stream": True}, "/v1/completions", True),
        ({"max_tokens": 1}, "/v1/completions", True),
        ({}, "/v1/completions", False),
        ({"max_tokens": None}, "/v1/completions", False),
    ],
)
def test_only_first_tokens_teach_how_fast_prompts_are_computed(
    service: InProcess, body: dict[str, Any], path: str, teaches: bool
) -> None:
    """An answer in one piece begins after all of its tokens: that is no time of a prompt."""
    before = _rates(service)
    for number in range(20):
        prompt = list(range(number * 8000, number * 8000 + 8000))
        route = _route(service, {**WHOLE, "prompt": prompt, **body}, path)
        service.clock.now += 40.0
        service.service.dispatcher.first_token(route)
        service.service.dispatcher.finished(route, "ok", Usage(8000, 4, 0))

    assert (_rates(service) != before) is teaches
    told = [service.service.router.book.load(rank).first_tokens for rank in (0, 1)]
    assert sum(told) == (20 if teaches else 0)


def test_what_other_paths_take_teaches_nothing(service: InProcess) -> None:
    """Nothing is known of what their workers compute, and so nothing of how long it should take."""
    route = _route(service, {"model": "m", "query": "a"}, "/v1/rerank")
    service.clock.now += 30.0
    service.service.dispatcher.first_token(route)
    service.service.dispatcher.finished(route, "ok", None)

    assert sum(service.service.router.book.load(rank).first_tokens for rank in (0, 1)) == 0
    assert {first for first, _, _ in _rates(service)} == {0.0}


def test_embeddings_have_no_token_after_the_first(service: InProcess) -> None:
    """Their answer is there when the prompt is computed."""
    route = _route(service, {"model": "m", "input": list(range(800))}, "/v1/embeddings")
    service.clock.now += 0.3
    service.service.dispatcher.first_token(route)

    assert sum(service.service.router.book.load(rank).first_tokens for rank in (0, 1)) == 1


def test_a_prompt_of_which_nobody_tells_is_computed_when_its_time_is_over(service: InProcess) -> None:
    """The rank goes on with others long before the answer, which comes in one piece, is complete."""
    dispatcher = service.service.dispatcher
    route = _route(service, WHOLE)
    predicted = _decision(route).cost

    service.clock.now += predicted / 2
    dispatcher.advance(service.clock.now)
    half = _loads(service)
    service.clock.now += predicted
    dispatcher.advance(service.clock.now)
    over = _loads(service)
    service.clock.now += 30
    dispatcher.first_token(route)
    dispatcher.finished(route, "ok", Usage(8000, 4, 0))

    assert sorted(half) == [(0, 0), (1, 8000)]
    assert sorted(over) == [(0, 0), (1, 0)]
    assert _loads(service) == [(0, 0), (0, 0)]
    assert _decision(route).first_token_seconds is None


def test_a_long_answer_in_one_piece_makes_no_rank_look_stopped(service: InProcess) -> None:
    """A conversation comes back to the rank that still writes for another one."""
    dispatcher = service.service.dispatcher
    service.store(service.service.registry.find("a"), list(range(8000)))
    first = _route(service, WHOLE)
    service.clock.now += 60

    second = _route(service, {**WHOLE, "prompt": list(range(8040))})
    dispatcher.finished(first, "ok", None)

    assert (first.worker_id, second.worker_id) == ("a", "a")
    assert _decision(second).cost < 0.1


def test_those_that_ended_are_not_kept() -> None:
    """What is waited for is bounded by what is under way."""
    book = LoadBook()
    whole = WholeAnswers(book)
    for number in range(5000):
        booking = book.take(number, book.load(0), 10, prompt_tokens=10, blocks=1, now=0.0)
        whole.expect(number, due=1000.0)
        assert booking.is_waiting
        book.free(number, now=0.0)

    assert len(whole) <= 1026
    assert not whole.advance(2000.0)
    assert len(whole) == 0


def test_a_failed_worker_is_not_asked_again_for_the_same_request(service: InProcess) -> None:
    """The next attempt goes to the other one, and after that nobody is left."""
    first = _route(service)
    second = _route(service, excluded=(first.worker_id,))

    assert {first.worker_id, second.worker_id} == {"a", "b"}
    with pytest.raises(NoWorkerError):
        _route(service, excluded=("a", "b"))


def test_promised_tokens_are_compared_with_usage(service: InProcess) -> None:
    """Per worker, for the answers that told."""
    route = _route(service)
    service.service.dispatcher.finished(route, "ok", Usage(64, 4, None))
    route = _route(service)
    service.service.dispatcher.finished(route, "ok", Usage(64, 4, 32))

    counters = service.service.registry.find(route.worker_id).counters
    assert (counters.usage_reports, counters.usage_prompt_tokens) == (2, 128)
    assert (counters.usage_promised_tokens, counters.usage_cached_tokens) == (48, 32)


def test_an_unknown_model_is_404_although_a_worker_was_never_reached(service: InProcess) -> None:
    """Somebody who is silent could serve anything; saying so would help nobody."""
    service.add(healthy=False, url="http://silent:1")

    with pytest.raises(UnknownModelError) as caught:
        _route(service, {**BODY, "model": "typo"})

    assert caught.value.known == ("m",)


def test_while_nobody_was_reached_every_model_is_worth_waiting_for() -> None:
    """503, not 404."""
    service = InProcess()
    service.add(healthy=False, url="http://silent:1")

    with pytest.raises(NoWorkerError):
        _route(service)


def test_a_session_is_read_from_header_or_body() -> None:
    """A sticky policy keeps a conversation on one worker, whatever it says."""
    service = InProcess(routing=RoutingSettings(policy="sticky"))
    for number in range(8):
        service.add(url=f"http://{number}:1", model="m")

    def chosen(headers: dict[str, str], **fields: Any) -> str:
        body = {"model": "m", "prompt": list(range(service.service.traffic.routed, 90)), **fields}
        route = service.service.dispatcher.route(service.request("POST", "/v1/completions", body, headers), ())
        assert isinstance(route, Route)
        return route.worker_id

    by_header = {chosen({"x-session-id": "one"}) for _ in range(6)}
    by_body = {chosen({}, session_id="one") for _ in range(6)}
    several = {chosen({"x-kvrouter-session": str(number)}) for number in range(20)}

    assert len(by_header) == 1
    assert by_body == by_header
    assert len(several) > 1


def test_a_rank_is_named_to_engines_that_have_several(service: InProcess) -> None:
    """And only to them."""
    plain = _route(service)
    service.add(url="http://dp:1", model="dp", ranks=2)

    ranks = {
        _route(service, {**BODY, "model": "dp", "prompt": list(range(n, n + 64))}).extra_headers for n in (0, 1000)
    }

    assert plain.extra_headers == b""
    assert ranks == {b"X-data-parallel-rank: 0\r\n", b"X-data-parallel-rank: 1\r\n"}


def test_an_adapter_never_shares_blocks_with_its_base_model(service: InProcess) -> None:
    """Equal tokens, other weights."""
    registry = service.service.registry
    worker = service.add(url="http://lora:1")
    registry.models_found(worker, [{"id": "base"}, {"id": "lora", "parent": "base"}], now=service.clock.now)

    overlaps = [_route(service, {**BODY, "model": model}).overlap_tokens for model in ("base", "lora", "base", "lora")]

    assert overlaps == [0, 0, 48, 48]


def test_only_post_reaches_inference(service: InProcess) -> None:
    """A GET is a mistake, not a request for a worker."""
    with pytest.raises(RequestError) as caught:
        service.service.dispatcher.route(service.request("GET", "/v1/completions"), ())

    assert caught.value.status == 405


def test_unknown_paths_are_not_sent_to_workers(service: InProcess) -> None:
    """Without an admin application behind them they are 404."""
    with pytest.raises(RequestError) as caught:
        service.service.dispatcher.route(service.request("GET", "/etc/passwd"), ())

    assert caught.value.status == 404


def test_a_request_without_a_key_is_refused_before_its_body() -> None:
    """`admit` sees only the head."""
    service = InProcess(auth=AuthSettings(api_keys=("key",)))

    with pytest.raises(KvrouterError):
        service.service.dispatcher.admit(service.request("POST", "/v1/completions"))
    good = service.request("POST", "/v1/completions", headers={"authorization": "Bearer key"})
    assert service.service.dispatcher.admit(good) is None


def test_decisions_kept_are_bounded_and_hold_no_prompts() -> None:
    """The ring forgets the oldest; nothing in it can show what was asked."""
    service = InProcess(routing=RoutingSettings(decisions_kept=3))
    service.add(url="http://a:1", model="m")

    for number in range(5):
        request = service.request("POST", "/v1/completions", {"model": "m", "prompt": [number] * 40})
        request.id = f"r{number}"
        service.service.dispatcher.route(request, ())

    ring = service.service.decisions
    assert [each["id"] for each in ring.latest(10)] == ["r4", "r3", "r2"]
    assert [each["id"] for each in ring.latest(1)] == ["r4"]
    assert ring.explain("r0") is None
    assert "prompt" not in (ring.explain("r4") or {})


def test_without_a_ring_nothing_is_kept() -> None:
    """0 turns it off."""
    service = InProcess(routing=RoutingSettings(decisions_kept=0))
    service.add(url="http://a:1", model="m")

    _route(service)

    assert service.service.decisions.latest(5) == []
    assert service.service.decisions.recorded == 1


def test_only_events_that_should_come_can_be_missed(service: InProcess) -> None:
    """A worker without event endpoint degrades nothing; a silent source does, until it is live."""
    worker = service.add(url="http://c:1", model="m", events="tcp://c:5557")
    before = service.call("GET", "/readyz")[1]["events"]
    service.store(worker, list(range(16)))

    assert before["degraded"] is True
    assert service.call("GET", "/readyz")[1]["events"] == {"ranks": {"predicted": 2, "live": 1}, "degraded": False}


def test_readiness_tells_what_is_missing(service: InProcess) -> None:
    """Workers per model, how prompts are read, how far events can be trusted."""
    status, ready = service.call("GET", "/readyz")

    assert status == 200
    assert ready["models"]["m"]["schedulable_workers"] == 2
    assert ready["models"]["m"]["prompts"].startswith("worker")
    assert ready["events"] == {"ranks": {"predicted": 2}, "degraded": False}
    for worker in list(service.service.registry):
        service.service.registry.remove(worker.spec.worker_id, now=service.clock.now)
    assert service.call("GET", "/readyz")[1]["reasons"] == ["no worker is registered"]
    assert service.call("GET", "/livez") == (200, {"status": "ok"})
    assert service.call("HEAD", "/livez")[0] == 200


def test_an_engine_that_does_not_have_what_it_announced_is_doubted(service: InProcess) -> None:
    """And believed again when it does; answers that do not say what was cached prove nothing."""
    worker = service.service.registry.find("a")
    service.store(worker, list(range(64)))
    dense = worker.ranks[0]
    audit = service.service.router.learning.audit
    states, beliefs = [], []

    for cached in (None, 0, 48):
        for _ in range(16):
            route = _route(service, excluded=("b",))  # it would have them all while this one is not believed
            service.service.dispatcher.finished(route, "ok", Usage(64, 4, cached))
        states.append(service.service.ingest.is_trusted(dense))
        beliefs.append(service.service.router.book.load(dense).belief)

    assert states == ["live", "suspect", "live"]
    assert beliefs == [1.0, 0.0, 1.0]
    assert (audit.rank(dense).demotions, audit.rank(dense).promotions) == (1, 1)


@pytest.mark.parametrize("body", [BODY, {**BODY, "prompt": "text"}, {"model": "m", "messages": []}])
def test_no_request_makes_an_engine_announce_its_blocks_again(service: InProcess, body: dict[str, Any]) -> None:
    """The argument is taken out, whatever form the prompt has; nothing else of the body changes."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    arguments = {"kv_cache_report_mode": "full", "other": 1}
    request = service.request("POST", path, {**body, "vllm_xargs": arguments})
    untouched = service.request("POST", path, {**body, "vllm_xargs": {"other": 1}})
    sent = untouched.body

    for each in (request, untouched):
        _settled(service.service.dispatcher.route(each, ()))

    assert json.loads(request.body) == {**body, "vllm_xargs": {"other": 1}}
    assert untouched.body is sent


def test_a_policy_that_is_nobodys_is_refused_at_the_start() -> None:
    """With the names that there are; likewise one that cannot be loaded."""
    for name, words in (("greedy", "known: kv, round-robin"), ("nowhere.at_all:make", "cannot be loaded")):
        with pytest.raises(SettingsError, match=words):
            InProcess(routing=RoutingSettings(policy=name))
