"""The same key means the same request: done once, answered as often as asked (A-406)."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import pytest

from kvrouter.errors import GatewayError
from kvrouter.gateway.answers import Answer
from kvrouter.gateway.idempotency import AnswerStore, RequestKey, body_digest
from tests.gateway.scene import INFER, GatewayProcess, ScriptedProcess, infer


class Clock:
    """A time that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Works:
    """Work that is counted, and answers how often it was done."""

    def __init__(self, status: int = 200, size: int = 0) -> None:
        self.done = 0
        self._status, self._size = status, size

    async def __call__(self) -> Answer:
        self.done += 1
        return Answer(self._status, b"%d" % self.done + b" " * self._size)


KEY = RequestKey("tenant", "user", "route", "key")
DIGEST = body_digest("/path", b"body")


def store(
    clock: Clock | None = None, *, answers_max: int = 10, bytes_max: int = 10_000
) -> tuple[AnswerStore, Counter[str]]:
    """A store and what it counts."""
    events: Counter[str] = Counter()
    made = AnswerStore(
        seconds=600,
        answers_max=answers_max,
        bytes_max=bytes_max,
        clock=clock or Clock(),
        count=lambda event: events.update([event]),
    )
    return made, events


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run one."""

    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_a_second_request_is_answered_from_memory_until_it_is_old() -> None:
    """The work is done again only after the time that answers are kept."""
    clock, works = Clock(), Works()
    answers, events = store(clock)

    async def scenario() -> None:
        first = await answers.answer(KEY, DIGEST, works)
        second = await answers.answer(KEY, DIGEST, works)
        clock.now = 600.0
        third = await answers.answer(KEY, DIGEST, works)

        assert (first.body, second.body, third.body) == (b"1", b"1", b"2")
        assert (b"idempotent-replayed", b"true") in second.headers
        assert (b"idempotent-replayed", b"true") not in first.headers

    in_loop(scenario)
    assert events == {"kept": 2, "replayed": 1}


def test_a_key_with_another_body_is_a_conflict() -> None:
    """A client's mistake is not answered with somebody else's answer."""
    answers, events = store()

    async def scenario() -> None:
        await answers.answer(KEY, DIGEST, Works())
        with pytest.raises(GatewayError) as caught:
            await answers.answer(KEY, body_digest("/path", b"other"), Works())
        assert (caught.value.status, caught.value.code) == (409, "CONFLICT")

    in_loop(scenario)
    assert events["conflict"] == 1


@pytest.mark.parametrize("other", [KEY._replace(tenant_id="t"), KEY._replace(user_id="u"), KEY._replace(route="r")])
def test_keys_of_others_are_other_keys(other: RequestKey) -> None:
    """Nobody reads another one's answer by guessing a key."""
    answers, _ = store()
    works = Works()

    async def scenario() -> None:
        await answers.answer(KEY, DIGEST, works)
        assert (await answers.answer(other, DIGEST, works)).body == b"2"

    in_loop(scenario)


@pytest.mark.parametrize(("status", "done"), [(200, 1), (404, 1), (429, 2), (500, 2), (503, 2), (504, 2)])
def test_only_what_was_decided_is_kept(status: int, done: int) -> None:
    """After a failure on the way, trying again tries again."""
    answers, _ = store()
    works = Works(status)

    async def scenario() -> None:
        await answers.answer(KEY, DIGEST, works)
        await answers.answer(KEY, DIGEST, works)

    in_loop(scenario)
    assert works.done == done


def test_the_oldest_answers_go_when_there_are_too_many() -> None:
    """By number, and by bytes; one that is larger than all of it is not kept."""
    answers, events = store(answers_max=2, bytes_max=1000)

    async def scenario() -> None:
        for number in range(3):
            await answers.answer(KEY._replace(key=str(number)), DIGEST, Works())
        assert (len(answers), events["evicted"]) == (2, 1)
        await answers.answer(KEY._replace(key="large"), DIGEST, Works(size=300))
        assert (len(answers), events["evicted"]) == (2, 2)
        await answers.answer(KEY._replace(key="too large"), DIGEST, Works(size=4000))
        assert len(answers) == 2
        assert answers.bytes <= 1000

    in_loop(scenario)


def test_who_asked_first_may_leave() -> None:
    """Others have joined; the work goes on, once."""
    answers, events = store()
    go = asyncio.Event()

    async def slow() -> Answer:
        await go.wait()
        return Answer(200, b"done")

    async def scenario() -> None:
        first = asyncio.ensure_future(answers.answer(KEY, DIGEST, slow))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(answers.answer(KEY, DIGEST, slow))
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        assert (await second).body == b"done"

    in_loop(scenario)
    assert events == {"joined": 1, "kept": 1}


@pytest.mark.parametrize("in_body", [True, False])
def test_a_retry_through_the_gateway_does_the_work_once(shared: GatewayProcess, in_body: bool) -> None:
    """A-406, A-419: the key may be in the body or a header; the service sees it in its meta data."""
    name = f"retry-{in_body}"
    body = infer("count", name) | ({"idempotency_key": name} if in_body else {})
    headers = {} if in_body else {"idempotency-key": name}

    answers = [shared.post(INFER, body, **headers) for _ in range(3)]

    assert [answer.json()["output"]["text"] for answer in answers] == ["1", "1", "1"]
    assert answers[0].json()["meta"]["idempotency_key"] == name
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    conflict = shared.post(INFER, infer("count", "another") | {"idempotency_key": name})
    assert conflict.status_code == 409


def test_two_keys_that_differ_are_a_mistake(shared: GatewayProcess) -> None:
    """Which of them is meant is not ours to guess."""
    answer = shared.post(INFER, infer("echo") | {"idempotency_key": "a"}, idempotency_key="b")

    assert answer.status_code == 400


def test_the_key_is_a_header_of_the_message_too(shared: GatewayProcess) -> None:
    """A-406: also where JetStream takes the subject, which must not take one user's request for another's."""
    body = infer("echo") | {"idempotency_key": "sent"}
    answer = shared.post(INFER, body, x_tenant_id="t1", x_user_id="ann").json()

    assert '"Idempotency-Key": "sent"' in answer["generation_id"]
    assert '"Nats-Msg-Id": "ai/llm/infer:t1:ann:sent"' in answer["generation_id"]


def test_requests_under_one_key_at_a_time_are_one_request(shared: GatewayProcess, service: ScriptedProcess) -> None:
    """The second waits for the first and gets its answer."""
    body = infer("count:wait", "together") | {"idempotency_key": "together"}
    found: list[httpx.Response] = []
    before = shared.metric("gateway_idempotency_total", event="joined")

    def ask() -> None:
        found.append(httpx.post(shared.url + INFER, json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    shared.eventually_metric("gateway_idempotency_total", before + 1, event="joined")
    service.go("together")
    for thread in threads:
        thread.join()

    assert [answer.json()["output"]["text"] for answer in found] == ["1", "1"]
    assert shared.metric("gateway_idempotency_answers") >= 1
