"""Events over long polls, from publishers that do what they should."""

import asyncio
import ssl
from pathlib import Path

import pytest
import uvloop

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.load import LoadReport, load_record
from kvrouter_publishers import HttpEventPublisher
from kvrouter_publishers.http_request import Answer, Request, json_answer
from kvrouter_publishers.http_server import ServerLimits
from kvrouter_subscribers import HttpEventSubscriber
from tests.subscribers.http_scene import PATIENT, HttpSink, ScriptedCore, http_scene, publisher
from tests.subscribers.scene import WORKER, run, stored, until

CERTIFICATES = Path(__file__).parents[1] / "proxy" / "certificates"


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
def test_what_was_published_before_and_after_the_connection_arrives_once(loop: object) -> None:
    """A-301, A-501: the cursor begins at the publisher's first batch and never jumps."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene(PATIENT) as stage:
            for number in range(50):
                served.publish(core, number)
            stage.listen(served.endpoint)
            await stage.follows()
            for number in range(50, 100):
                served.publish(core, number)
                await asyncio.sleep(0)
            await stage.holds(*range(100))

            assert [sequence for _, sequence, _ in stage.sink.receipts] == list(range(100))
            assert stage.status().messages == 100
            assert stage.status().connected
            assert stage.status().transport == "http"
            assert stage.status().last_error is None
            assert stage.sink.finished == [True]

    loop.run(asyncio.wait_for(scenario(), 60))  # type: ignore[attr-defined]


def test_an_idle_publisher_is_polled_again_and_again_over_one_connection() -> None:
    """Each poll that ends with nothing is followed by the next one; nobody is told of a loss."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene() as stage:
            stage.listen(served.endpoint)
            await until(lambda: served.desk.requests >= 5)
            served.publish(core, 7)
            await stage.holds(7)

            assert stage.status().connects == 1
            assert stage.status().disconnects == 0
            assert len(served.server.connections) == 1

    run(scenario())


def test_a_hundred_sources_share_one_address() -> None:
    """Each has its own connection, cursor and blocks."""

    async def scenario() -> None:
        cores = [ScriptedCore(Source(f"worker-{number % 10}", number // 10)) for number in range(100)]
        async with publisher(*cores, limits=ServerLimits(connections_max=100)) as served, http_scene(PATIENT) as stage:
            for core in cores:
                stage.listen(served.endpoint, core.source)
            for number, core in enumerate(cores):
                served.publish(core, number)
            for number in range(len(cores)):
                await stage.holds(number, rank=number)

            assert all(stage.status(core.source).connected for core in cores)

    run(scenario())


def test_the_token_of_a_source_is_sent() -> None:
    """A publisher that asks for a key gets it, from `add` or from whoever knows the workers' keys."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core, key="secret") as served, http_scene() as stage:
            stage.listen(served.endpoint, token="wrong")
            await until(lambda: served.server.unauthorized >= 2)

            assert not stage.status().connected
            assert "401" in str(stage.status().last_error)

            stage.subscriber.add(WORKER, served.endpoint, token="secret")
            served.publish(core, 3)
            await stage.holds(3)

    run(scenario())


def test_a_source_that_is_not_published_there_is_named_in_the_error() -> None:
    """A wrong worker id is the commonest mistake, and the publisher says what it has."""

    async def scenario() -> None:
        async with publisher(ScriptedCore(Source("other", 0))) as served, http_scene() as stage:
            stage.listen(served.endpoint)
            await until(lambda: stage.status().last_error)

            assert "streams: other/0" in str(stage.status().last_error)
            assert not stage.status().connected

    run(scenario())


def test_a_removed_source_is_heard_no_more() -> None:
    """Nothing is handed over after `remove`, and its connection goes."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene() as stage:
            stage.listen(served.endpoint)
            await stage.follows()
            stage.subscriber.remove(WORKER)
            served.publish(core, 1)
            await until(lambda: not served.server.connections)

            assert stage.subscriber.status(WORKER) is None
            assert stage.sink.receipts == []
            assert ("disconnected", WORKER) not in stage.sink.calls

    run(scenario())


def test_load_reports_come_beside_the_events() -> None:
    """They are asked for between polls, where somebody wants them."""

    async def scenario() -> None:
        core = ScriptedCore()
        heard: list[LoadReport] = []
        async with publisher(core) as served, http_scene(on_load=heard.append) as stage:
            report = LoadReport(worker_id="worker", timestamp=5.0, num_requests_waiting=3, kv_active_blocks=10)
            served.streams[WORKER].load = report
            good = served.desk.answer

            async def answer(request: Request) -> Answer:
                """Add what is not this source's, and what is no report."""
                if request.path != "/kv_metrics":
                    return await good(request)
                other = load_record(LoadReport(worker_id="other", kv_active_blocks=1))
                return json_answer({"reports": [other, 7, load_record(report)]})

            served.server._answer = answer
            stage.listen(served.endpoint)
            await until(lambda: heard)

            assert heard[0] == report
            assert stage.status().malformed >= 1

    run(scenario())


def test_a_publisher_behind_tls_is_verified_and_followed() -> None:
    """With our own context for its certificate; the system's does not know it."""

    async def scenario() -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
        sink, stranger = HttpSink(), HttpSink()
        trusting = ssl.create_default_context(cafile=str(CERTIFICATES / "certificate.pem"))
        with HttpEventPublisher("127.0.0.1:0", worker_id="worker", tls=server) as served:
            async with (
                HttpEventSubscriber(sink, tls=trusting, limits=PATIENT) as subscriber,
                HttpEventSubscriber(stranger, limits=PATIENT) as other,
            ):
                sink.ingest.open(WORKER, 0, now=0.0)
                subscriber.add(WORKER, str(served.endpoint))
                other.add(WORKER, str(served.endpoint))
                served.publish([stored(1)])
                await until(lambda: sink.holds(1))
                await until(lambda: "CERTIFICATE" in str(other.status(WORKER)))

                assert stranger.receipts == []

    run(scenario())


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://host",
        "tcp://host:1",
        "http://host:1/a?b=c",
        "http://user:pass@host:1",
        "http://host:1/\u00e4\u20ac",
        "http://host:1/\x00",
        "ftp://host:1",
        "x",
    ],
)
def test_a_malformed_address_is_refused_at_once(endpoint: str) -> None:
    """Only one that merely does not answer is tried for ever."""
    subscriber = HttpEventSubscriber(HttpSink())

    with pytest.raises(SettingsError):
        subscriber.add(WORKER, endpoint)


def test_a_token_that_cannot_be_a_header_is_refused() -> None:
    """A line break in it would be another header."""
    subscriber = HttpEventSubscriber(HttpSink())

    with pytest.raises(SettingsError, match="token of worker"):
        subscriber.add(WORKER, "http://127.0.0.1:1", token="a\r\nb: c")
