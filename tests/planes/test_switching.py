"""The preferred plane is changed while the router runs: for what begins, and not for what runs."""

import json
from pathlib import Path

import pytest

from kvrouter.discovery.records import BUCKET
from kvrouter.service.planes.request_planes import RequestPlanes
from kvrouter.service.planes.switching import encode_preference, preference_key
from kvrouter.store.local_keys import LocalKeyValueStore
from kvrouter.transport.plane_settings import RequestPlane
from tests.planes.inprocess import Routed, Words, admin, eventually, routed, run, worker

SWITCHED_TO: tuple[RequestPlane, ...] = ("http", "zmq")
KEY = preference_key(("kvrouter", "backend", "generate"))


def test_new_streams_take_the_new_plane_and_running_ones_finish_on_the_old(tmp_path: Path) -> None:
    """A-303, A-018, A-028, D-13: one key of the store switches every router of an endpoint, and back."""

    async def scenario() -> None:
        words, store = Words("a"), LocalKeyValueStore(str(tmp_path / "records"))
        bucket = store.bucket(BUCKET)
        async with worker(tmp_path, words, "tcp", "http", "zmq"), routed(tmp_path) as router:
            await router.ready()
            async with router.stream("wait bye") as heard:
                assert await anext(heard) == "a"
                for plane in SWITCHED_TO:
                    await bucket.put(KEY, encode_preference(plane))
                    await prefers(router, plane)
                    before = sent(router, plane)
                    assert await router.said() == "a hello"
                    assert sent(router, plane) > before
                words.release.set()
                assert [word async for word in heard] == ["wait", "bye"]
            await bucket.delete(KEY)
            await prefers(router, "tcp")
            assert router.figure("request_plane_changes_total") == 3
            assert router.figure("transport_errors_total", transport="tcp", error_type="connection") == 0
        await store.close()

    run(scenario())


@pytest.mark.parametrize("value", [b"http", b'{"request_plane":"pigeon"}', b"[]"])
def test_a_plane_that_is_none_changes_nothing(tmp_path: Path, value: bytes) -> None:
    """A-303: a slip of the hand must not stop a fleet."""

    async def scenario() -> None:
        store = LocalKeyValueStore(str(tmp_path / "records"))
        await store.bucket(BUCKET).put(KEY, value)
        async with worker(tmp_path, Words("a")), routed(tmp_path) as router:
            await eventually(lambda: router.figure("request_plane_refused_changes_total") == 1)
            assert planes_of(router).ways.preferred == "tcp"
            await router.ready()
            assert await router.said() == "a hello"
        await store.close()

    run(scenario())


def test_an_operator_switches_over_the_admin_api(tmp_path: Path) -> None:
    """A-303: what is written there every router of the endpoint reads."""

    async def scenario() -> None:
        async with (
            worker(tmp_path, Words("a"), "tcp", "http"),
            routed(tmp_path) as router,
            routed(tmp_path) as other,
            admin(router) as client,
        ):
            told = (await client.put("/request-plane/http")).json()
            assert told == {"request_plane": "http", "key": KEY}
            for each in (router, other):
                await prefers(each, "http")
            await client.delete("/request-plane")
            for each in (router, other):
                await prefers(each, "tcp")
            refused = await client.put("/request-plane/pigeon")
            assert refused.status_code == 400
            assert json.loads(refused.text)["error"]["param"] == "plane"

    run(scenario())


def planes_of(router: Routed) -> RequestPlanes:
    """The planes of a router that follows discovery."""
    assert router.service.planes is not None
    return router.service.planes


async def prefers(router: Routed, plane: str) -> None:
    """Wait until a router prefers a plane."""
    await eventually(lambda: planes_of(router).ways.preferred == plane)


def sent(router: Routed, plane: str) -> float:
    """Requests that were sent over a plane."""
    return router.figure("transport_requests_total", transport=plane, plane="request")
