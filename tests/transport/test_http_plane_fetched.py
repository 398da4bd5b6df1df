"""Answers that a plain HTTP client fetches after the request was taken: one consumer, resuming, stopping."""

import asyncio

from kvrouter.transport.http_app import HttpAppOptions
from tests.transport.conformance import eventually
from tests.transport.http_scene import SSE, Worker, attached, message, scene


def test_an_answer_has_one_consumer() -> None:
    """B.9: 404 unknown, 409 while somebody has it, 410 when it is over."""

    async def scenario(served: Worker) -> None:
        assert (await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))).status == 202
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 409
        assert (await served.ask("POST", "/v1/rpc/echo", message(name="s", **attached("one")))).status == 409
        served.handlers.release.set()
        assert b"event: done" in await asyncio.to_thread(response.read)
        connection.close()
        await eventually(lambda: not len(served.server.app.answers))
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 410

    scene(scenario)


def test_an_answer_that_nobody_fetches_is_dropped() -> None:
    """B.9: after the deadline, and its work is killed."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"", **attached("one")))
        await eventually(lambda: served.handlers.cancelled == ["r"])
        assert (await served.ask("GET", "/v1/rpc/response/one")).status == 410
        assert served.server.app.answers.expired == 1

    scene(scenario, options=HttpAppOptions(attach_seconds=0.2))


def test_an_answer_that_nobody_fetches_yet_is_bounded() -> None:
    """B.9: at most 64 items wait."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/count", message("count", b"1000", **attached("one")))
        answer = served.server.app.answers.find("one")
        await eventually(lambda: answer.has(64))
        assert not answer.has(66)
        reply = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"id: 999\ndata: 999\n\n" in reply.body

    scene(scenario)


def test_a_lost_consumer_may_come_back() -> None:
    """B.9: with the number of the last item that it has seen, as long as the next one is kept; else 410."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/count", message("count", b"100", **attached("one")))
        first = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"id: 99\n" in first.body
        await eventually(lambda: not len(served.server.app))
        again = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE, Last_Event_ID="97")
        assert again.body.endswith(b"id: 98\ndata: 98\n\nid: 99\ndata: 99\n\nevent: done\ndata: {}\n\n")
        await eventually(lambda: not len(served.server.app))
        assert b"id: 97" not in again.body
        assert (await served.ask("GET", "/v1/rpc/response/one", Last_Event_ID="3")).status == 410
        assert (await served.ask("GET", "/v1/rpc/response/one", Last_Event_ID="x")).status == 400

    scene(scenario, options=HttpAppOptions(resume_seconds=60))


def test_a_consumer_that_comes_back_in_time_keeps_the_work_alive() -> None:
    """B.9: a cut connection is not the end, where resuming is offered."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        connection.close()
        response.close()
        await eventually(lambda: not len(served.server.app))
        served.handlers.release.set()
        again = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE, Last_Event_ID="0")
        assert b"id: 1\ndata: released\n\n" in again.body
        assert served.handlers.cancelled == []

    scene(scenario, options=HttpAppOptions(resume_seconds=60))


def test_a_consumer_that_leaves_ends_the_work() -> None:
    """B.5, B.9: a lost client kills, where resuming is not offered."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", **attached("one")))
        connection = await asyncio.to_thread(served.open, "GET", "/v1/rpc/response/one", Accept=SSE)
        response = await asyncio.to_thread(connection.getresponse)
        connection.close()
        response.close()
        await eventually(lambda: served.handlers.cancelled == ["r"])

    scene(scenario)


def test_an_answer_is_stopped_by_name() -> None:
    """B.5: POST {root}/{subject}/stop lets the handler end by itself; DELETE kills."""

    async def scenario(served: Worker) -> None:
        await served.ask("POST", "/v1/rpc/until_stopped", message("until_stopped", **attached("one")))
        assert (await served.ask("POST", "/v1/rpc/response/one/stop")).status == 202
        reply = await served.ask("GET", "/v1/rpc/response/one", Accept=SSE)
        assert b"data: last\n\n" in reply.body
        await served.ask("POST", "/v1/rpc/hang", message("hang", b"1", "s", **attached("two")))
        assert (await served.ask("DELETE", "/v1/rpc/response/two")).status == 204
        await eventually(lambda: served.handlers.cancelled == ["s"])

    scene(scenario)
