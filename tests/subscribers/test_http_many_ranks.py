"""As many ranks as a large deployment has, behind one publisher's server."""

from kvrouter.events import Source
from kvrouter_publishers import HttpEventPublisher, HttpEventServer
from kvrouter_subscribers import HttpEventSubscriber
from tests.subscribers.scene import RecordingSink, run, until

RANKS = 100


def test_every_rank_of_a_server_is_followed_by_more_than_one_router() -> None:
    """Each of them keeps a poll waiting."""

    async def scenario() -> None:
        sources = [Source("worker", rank) for rank in range(RANKS)]
        server = HttpEventServer("127.0.0.1:0")
        publishers = [HttpEventPublisher(server, worker_id="worker", rank=rank) for rank in range(RANKS)]
        sinks = [RecordingSink(), RecordingSink()]
        async with HttpEventSubscriber(sinks[0]) as one, HttpEventSubscriber(sinks[1]) as two:
            for router, sink in zip((one, two), sinks, strict=True):
                for source in sources:
                    sink.ingest.open(source, source.rank, now=0.0)
                    router.add(source, str(publishers[0].endpoint))
            await until(lambda: all(status.state == "live" for sink in sinks for status in sink.ingest.status(now=0.0)))
        for publisher in publishers:
            publisher.close()
        server.close()

    run(scenario())
