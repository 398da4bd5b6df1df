"""Requests that wait for a rank with room, and those that are turned away; without sockets, time moved by hand."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from kvrouter.errors import (
    KvrouterError,
    NoWorkerError,
    ShedError,
    UnknownModelError,
)
from kvrouter.service.proxy import Route, error_reply
from kvrouter.settings import Settings
from tests.service.inprocess import InProcess
from tests.service.waiting_fleet import TENANT, Fleet, turns


def _refused(found: "asyncio.Future[Route]") -> tuple[int, str | None, int]:
    """Status, code and Retry-After of what a request that waited was told."""
    error = found.exception()
    assert isinstance(error, KvrouterError)
    return _told(error)


def _told(error: KvrouterError) -> tuple[int, str | None, int]:
    reply = error_reply(error)
    return reply.status, getattr(error, "code", None), int(dict(reply.headers).get(b"retry-after", b"0"))


def test_without_bounds_there_is_no_queue() -> None:
    """The plain dispatcher is used, and hints are nobody's business."""
    service = InProcess()
    service.add(url="http://a:1", model="m", block_size=16)
    request = service.request("POST", "/v1/completions", {"model": "m", "prompt": [1]}, {"x-kvrouter-priority": "odd"})

    route = service.service.dispatcher.route(request, ())

    assert isinstance(route, Route)
    assert service.service.admission is None
    assert type(service.service.dispatcher).__name__ == "RequestDispatcher"
    assert Settings().queue.rank_requests_max == Settings().queue.ttft_seconds_max == 0


async def test_a_request_waits_while_no_rank_has_room() -> None:
    """And goes as soon as one has, with a decision of that moment."""
    fleet = Fleet()
    first = fleet.sent()
    second = fleet.waiting()
    fleet.service.clock.now += 2.0

    fleet.end(first)

    assert second.result().worker_id == "a"
    assert fleet.active == 1
    assert fleet.admission.counters.ended["admitted"] == 1
    assert fleet.admission.counters.wait_seconds.total == pytest.approx(2.0)


async def test_the_first_token_makes_room_where_prefill_is_bounded() -> None:
    """However long the answer goes on."""
    fleet = Fleet(rank_requests_max=0, rank_prefill_tokens_max=100)
    first, second = fleet.sent(tokens=64), fleet.sent(start=1000, tokens=64)
    third = fleet.waiting(start=2000)

    fleet.dispatcher.first_token(first)

    assert third.done()
    assert fleet.active == 3
    fleet.end(second)


async def test_an_idle_rank_takes_a_prompt_of_any_length() -> None:
    """Otherwise it would wait for ever."""
    fleet = Fleet(rank_requests_max=0, rank_prefill_tokens_max=16)

    assert fleet.sent(tokens=4096).worker_id == "a"
    fleet.waiting(start=9000)


async def test_a_rank_without_room_is_passed_over() -> None:
    """Also within a worker of several ranks, and although it holds the prompt."""
    fleet = Fleet("")
    fleet.add("a", ranks=2)
    fleet.add("b")

    ranks = {fleet.sent().token.decision.source for _ in range(3)}  # type: ignore[attr-defined]

    assert len(ranks) == 3
    fleet.waiting()


async def test_who_comes_first_goes_first() -> None:
    """Unless asked otherwise."""
    fleet = Fleet()
    running: Any = fleet.sent()
    order = []
    waiting = {}
    for number in range(4):
        fleet.service.clock.now += 0.1
        waiting[number] = fleet.waiting()
    for _ in range(4):
        fleet.end(running)
        number, running = next((number, each) for number, each in waiting.items() if each.done())
        order.append(number)
        del waiting[number]

    assert order == [0, 1, 2, 3]


async def test_priority_overtakes() -> None:
    """The header's and the body's have vLLM's sense: the smaller number goes first."""
    fleet = Fleet()
    running = fleet.sent()
    usual = fleet.waiting()
    by_body = fleet.waiting(priority=-1)
    by_header = fleet.waiting(priority=50, x_kvrouter_priority=-2)

    done = []
    for _ in range(3):
        fleet.end(running)
        running = next(each for each in (usual, by_body, by_header) if each.done() and each not in done).result()
        done = [each for each in (usual, by_body, by_header) if each.done()]
        assert done == [by_header, by_body, usual][: len(done)] or set(done) <= {by_header, by_body, usual}
    assert usual.done()


async def test_the_shortest_uncached_prefill_goes_first() -> None:
    """What is cached does not count."""
    fleet = Fleet(order="shortest")
    worker = fleet.service.service.registry.find("a")
    fleet.service.store(worker, list(range(50_000, 52_048)))
    running = fleet.sent()
    long = fleet.waiting(start=100_000, tokens=2000)
    short = fleet.waiting(start=200_000, tokens=500)
    cached = fleet.waiting(start=50_000, tokens=2048)

    fleet.end(running)
    first = cached.done(), short.done(), long.done()
    fleet.end(cached)
    second = cached.done(), short.done(), long.done()

    assert first == (True, False, False)
    assert second == (True, True, False)


async def test_the_earliest_deadline_goes_first() -> None:
    """A deadline is counted from the request's arrival; either header says it."""
    fleet = Fleet(order="deadline")
    running = fleet.sent()
    none = fleet.waiting()
    late = fleet.waiting(x_kvrouter_deadline_ms=20_000)
    soon = fleet.waiting(x_slo_ttft_ms="9000.5")

    fleet.end(running)

    assert (none.done(), late.done(), soon.done()) == (False, False, True)


async def test_tenants_share_by_weight() -> None:
    """However many requests one of them has waiting before the other one comes."""
    fleet = Fleet(**TENANT, quantum_tokens=600, tenant_weights=("paying=2",))
    running: Any = fleet.sent("greedy")
    waiting = [("greedy", fleet.waiting("greedy", start=1000 * n)) for n in range(60)]
    waiting += [("paying", fleet.waiting("paying", start=500_000 + 1000 * n)) for n in range(60)]
    served = []
    for _ in range(60):
        fleet.end(running)
        tenant, running = next(each for each in waiting if each[1].done())
        waiting.remove((tenant, running))
        served.append(tenant)

    # A quantum is two requests of 64 + 240 tokens, and one may be ahead.
    assert abs(served.count("paying") - 2 * served.count("greedy")) <= 8


async def test_a_client_that_leaves_frees_its_place() -> None:
    """Whether it waits still, or was admitted in that very moment."""
    fleet = Fleet()
    first = fleet.sent()
    leaving, staying = fleet.waiting(), fleet.waiting()

    leaving.cancel()
    fleet.end(first)
    await turns()

    assert staying.done()
    assert fleet.admission.queue.requests == 0
    assert fleet.admission.counters.ended["client_gone"] == 1
    assert fleet.active == 1


async def test_a_wait_is_bounded() -> None:
    """503 says when to come again."""
    fleet = Fleet(seconds_max=5.0)
    fleet.sent()
    waiting = fleet.waiting()

    fleet.later(4.9)
    before = waiting.done()
    fleet.later(0.2)

    assert not before
    status, code, retry_after = _refused(waiting)
    assert (status, code) == (503, "queue_timeout")
    assert retry_after >= 1
    assert fleet.admission.counters.shed["queue_timeout"] == 1


async def test_a_deadline_ends_a_wait() -> None:
    """504: an answer after it would be worth nothing."""
    fleet = Fleet()
    fleet.sent()
    waiting = fleet.waiting(x_kvrouter_deadline_ms=3000)

    fleet.later(3.0)

    assert _refused(waiting)[:2] == (504, "deadline_exceeded")


async def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    """Before anything is spent on it, here or on a worker."""
    fleet = Fleet()

    with pytest.raises(ShedError) as caught:
        fleet.ask(tokens=8000, x_kvrouter_deadline_ms=500)

    assert _told(caught.value)[:2] == (504, "deadline_unreachable")
    assert fleet.active == 0


async def test_a_deadline_that_waiting_made_unreachable_spares_the_worker() -> None:
    """Its prefill alone would take longer than what is left."""
    fleet = Fleet()
    running = fleet.sent()
    waiting = fleet.waiting(start=9000, tokens=8000, x_kvrouter_deadline_ms=20_000)
    fleet.service.clock.now += 19.5

    fleet.end(running)

    assert _refused(waiting)[:2] == (504, "deadline_unreachable")
    assert fleet.active == 0


async def test_too_late_a_first_token_is_refused_without_a_queue() -> None:
    """With a bound on the predicted time alone nobody waits."""
    fleet = Fleet(rank_requests_max=0, ttft_seconds_max=2.0)
    fleet.sent(tokens=8000)
    fleet.sent(start=100_000, tokens=64)

    with pytest.raises(ShedError) as caught:
        fleet.ask(start=200_000, tokens=16_000)

    status, code, retry_after = _told(caught.value)
    assert (status, code) == (503, "overloaded")
    assert 1 <= retry_after <= 10


async def test_the_more_wait_the_later_the_first_token_is_predicted() -> None:
    """Until a new request would come too late; who has more than its share is told so."""
    fleet = Fleet(**TENANT, ttft_seconds_max=20.0)
    fleet.sent(tokens=4000)
    fleet.waiting("small", start=900_000)
    told = []
    for number in range(50):
        try:
            fleet.waiting("greedy", start=10_000 * number, tokens=4000)
        except ShedError as error:
            told.append(_told(error)[:2])
            break

    assert told == [(429, "tenant_over_share")]
    assert 1 < fleet.admission.queue.requests < 50


async def test_a_full_queue_refuses_the_last_one() -> None:
    """One tenant alone can blame nobody."""
    fleet = Fleet(requests_max=3)
    fleet.sent()
    waiting = [fleet.waiting() for _ in range(3)]

    with pytest.raises(ShedError) as caught:
        fleet.ask()

    assert _told(caught.value)[:2] == (503, "queue_full")
    assert not any(each.done() for each in waiting)


async def test_who_fills_the_queue_makes_room_for_others() -> None:
    """The last one of the tenant with most waiting goes."""
    fleet = Fleet(**TENANT, requests_max=3)
    fleet.sent("greedy")
    greedy = [fleet.waiting("greedy") for _ in range(3)]

    modest = fleet.waiting("modest")

    assert [each.done() for each in greedy] == [False, False, True]
    assert _refused(greedy[-1])[:2] == (429, "tenant_over_share")
    assert not modest.done()


async def test_bytes_that_wait_are_bounded() -> None:
    """A few large bodies are as much as many small ones."""
    fleet = Fleet(bytes_max=2000)
    fleet.sent()
    fleet.waiting(tokens=100)

    with pytest.raises(ShedError):
        fleet.ask(tokens=1000)

    assert fleet.admission.queue.requests == 1
    assert fleet.admission.queue.bytes <= 2000


async def test_a_new_worker_takes_those_who_wait() -> None:
    """As soon as it is ready."""
    fleet = Fleet()
    fleet.sent()
    waiting = [fleet.waiting(), fleet.waiting()]

    fleet.add("b")
    fleet.later(0.0)

    assert [each.done() for each in waiting] == [True, False]
    assert waiting[0].result().worker_id == "b"


async def test_an_ejected_worker_is_waited_for() -> None:
    """As long as a wait may take, and then the answer says why."""
    fleet = Fleet(seconds_max=10.0)
    registry, clock = fleet.service.service.registry, fleet.service.clock
    running = fleet.sent()
    first, second = fleet.waiting(), fleet.waiting()
    registry.connect_failed(registry.find("a"), now=clock.now)
    fleet.end(running)
    while_gone = first.done()

    clock.now += 5.0
    registry.check_passed(registry.find("a"), now=clock.now)
    fleet.later(0.0)
    when_back = first.done()
    registry.remove("a", now=clock.now)
    fleet.later(5.0)

    assert not while_gone
    assert when_back
    assert isinstance(second.exception(), NoWorkerError)
    assert fleet.admission.counters.ended["failed"] == 1


async def test_who_cannot_be_served_at_all_does_not_wait() -> None:
    """An unknown model, and a fleet without a ready worker, are told at once."""
    fleet = Fleet()
    fleet.sent()

    with pytest.raises(UnknownModelError):
        fleet.ask(model="typo")
    registry = fleet.service.service.registry
    registry.connect_failed(registry.find("a"), now=fleet.service.clock.now)
    with pytest.raises(NoWorkerError):
        fleet.ask()


async def test_a_retry_waits_for_another_worker() -> None:
    """Not for the one that failed it."""
    fleet = Fleet("ab")
    fleet.sent()
    other = fleet.sent(start=1000)

    again = fleet.waiting(excluded=("a",))
    fleet.end(next(each for each in (other,)))

    expected = "b" if other.worker_id == "b" else None
    assert (again.result().worker_id if again.done() else None) == expected


async def test_a_request_that_its_only_worker_failed_waits_for_it() -> None:
    """If it could not be reached; one that took the request and lost it is not asked for it again."""
    fleet = Fleet()
    registry, clock = fleet.service.service.registry, fleet.service.clock
    worker = registry.find("a")
    lost = fleet.sent()
    fleet.dispatcher.finished(lost, "upstream_lost", None)
    with pytest.raises(NoWorkerError):
        fleet.ask(excluded=("a",))

    failed = fleet.sent()
    fleet.dispatcher.finished(failed, "connect_failed", None)
    again = fleet.waiting(excluded=("a",))
    clock.now += 5.0
    registry.check_passed(worker, now=clock.now)
    fleet.later(0.0)

    assert again.result().worker_id == "a"


async def test_room_that_a_failure_makes_is_not_used_at_once() -> None:
    """Who waits would run into the same failure; a moment later it is known how the worker is."""
    fleet = Fleet()
    running = fleet.sent()
    waiting = fleet.waiting()

    fleet.dispatcher.finished(running, "upstream_lost", None)
    at_once = waiting.done()
    fleet.later(0.5)

    assert not at_once
    assert waiting.done()


async def test_models_do_not_block_each_other() -> None:
    """A request whose model's workers are busy lets others pass."""
    fleet = Fleet()
    fleet.add("x", model="other")
    fleet.sent()
    blocked = fleet.waiting(priority=-100)

    free = fleet.sent(model="other")
    later = fleet.waiting(model="other")
    fleet.end(free)

    assert later.done()
    assert not blocked.done()


async def test_room_that_comes_without_a_word_is_found() -> None:
    """Reservations of the selection API and expired leases tell nobody."""
    fleet = Fleet()
    router = fleet.service.service.router
    dense_rank = fleet.service.service.registry.find("a").ranks[0]
    router.book.reserve("elsewhere", dense_rank, prefill_tokens=0, blocks=0, now=0.0)
    waiting = fleet.waiting()

    router.book.free("elsewhere")
    fleet.later(0.0)

    assert waiting.done()


async def test_prompts_that_are_read_later_wait_too() -> None:
    """And whoever leaves then gives back what came in that moment."""
    fleet = Fleet()
    first = fleet.sent()
    body = {"model": "m", "prompt": "a text", "max_tokens": 1}
    found = fleet.dispatcher.route(fleet.service.request("POST", "/v1/completions", body), ())
    assert isinstance(found, Awaitable)

    async def wait() -> Any:
        return await found

    task = asyncio.create_task(wait())
    while not fleet.admission.queue.requests:
        await asyncio.sleep(0)
    fleet.end(first)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert fleet.active == 0
    assert [worker.active for worker in fleet.service.service.registry] == [0]


async def test_a_retry_is_not_turned_away_for_being_late() -> None:
    """It was let in before; the worker that failed it is enough of a delay."""
    fleet = Fleet("ab", ttft_seconds_max=0.5)

    with pytest.raises(ShedError):
        fleet.ask(tokens=16_000)

    assert fleet.sent(tokens=16_000, excluded=("a",)).worker_id == "b"
