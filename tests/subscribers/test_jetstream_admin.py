"""Looking after a stream: who reads it, and that a purge never takes what somebody still needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvrouter.errors import SettingsError
from kvrouter_subscribers import StreamAdministration
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import STREAM, client, following, frame, put
from tests.subscribers.scene import run, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without any stream."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


async def fill(server: NatsServer, messages: int) -> None:
    """Make the stream, with so many messages."""
    async with client(server.url) as connected:
        await connected.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.*"])
        await put(connected, *[frame(number, number) for number in range(messages)])


def test_contents_and_consumers_are_listed(endpoint: str, server: NatsServer) -> None:
    """An operator sees who reads, how far it is, and how much there is."""

    async def scenario() -> None:
        await fill(server, 10)
        async with following(name="router-a") as scene, StreamAdministration(endpoint) as stream:
            scene.listen(endpoint)
            await until(lambda: scene.stream().acknowledged == 10)
            contents, (consumer,) = await stream.contents(), await stream.consumers()

            assert (contents.messages, contents.first, contents.last) == (10, 1, 10)
            assert (consumer.name, consumer.delivered, consumer.pending) == ("router-a", 10, 0)
            assert await stream.consumer_count() == 1

    run(scenario())


def test_a_consumer_can_be_deleted_and_its_reader_makes_it_anew(endpoint: str, server: NatsServer) -> None:
    """Nothing is read twice or missed by that."""

    async def scenario() -> None:
        await fill(server, 10)
        async with following(name="router-a") as scene, StreamAdministration(endpoint) as stream:
            scene.listen(endpoint)
            await until(lambda: scene.stream().position == 10)

            assert await stream.delete_consumer("router-a")
            assert not await stream.delete_consumer("nobody")
            await until(lambda: scene.stream().connects == 2)
            async with client(server.url) as connected:
                await put(connected, frame(10, 10))
            await until(lambda: scene.stream().position == 11)

        assert scene.stream().messages == 11
        assert scene.state().gaps == 0

    run(scenario())


def test_more_consumers_than_one_page_are_all_listed(endpoint: str, server: NatsServer) -> None:
    """The server lists 256 at a time; the floor of a purge needs every one."""

    async def scenario() -> None:
        await fill(server, 1)
        async with client(server.url) as connected, StreamAdministration(endpoint) as stream:
            for number in range(300):
                await connected.jetstream().add_consumer(STREAM, durable_name=f"reader-{number}")

            assert len(await stream.consumers()) == 300
            assert await stream.consumer_count() == 300

    run(scenario())


@pytest.mark.parametrize(("applied", "slow", "floor"), [(50, 30, 30), (20, 30, 20), (50, 0, 0), (0, 30, 0)])
def test_a_purge_keeps_what_anybody_needs(
    endpoint: str, server: NatsServer, applied: int, slow: int, floor: int
) -> None:
    """A-321: the floor is the least of what is stored and what each consumer has done; none done is nothing purged."""

    async def scenario() -> None:
        await fill(server, 50)
        async with client(server.url) as connected, StreamAdministration(endpoint) as stream:
            jetstream = connected.jetstream()
            for name, read in (("quick", 50), ("slow", slow)):
                reader = await jetstream.pull_subscribe(f"{STREAM}.queue", durable=name, stream=STREAM)
                for message in await reader.fetch(read) if read else []:
                    await message.ack_sync()

            assert await stream.purge_floor(applied) == floor
            assert await stream.purge(applied) == floor
            assert (await stream.contents()).first == floor + 1

    run(scenario())


def test_a_stream_without_readers_is_purged_up_to_what_is_stored(endpoint: str, server: NatsServer) -> None:
    """Whoever comes later begins with the state that was stored."""

    async def scenario() -> None:
        await fill(server, 50)
        async with StreamAdministration(endpoint) as stream:
            assert await stream.purge(applied=50) == 50
            assert (await stream.contents()).messages == 0

    run(scenario())


def test_a_malformed_endpoint_is_refused() -> None:
    """Before anything is opened."""
    with pytest.raises(SettingsError):
        StreamAdministration("nats://host")
