"""What an engine may rely on, whatever transport carries its events."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from kvrouter.events import Event
from kvrouter.events.load import LoadReport

__all__ = ["EventPublisher"]


class EventPublisher(Protocol):
    """Announces what one rank's KV cache stores and removes.

    Guarantee: batches leave in the order of `publish` calls, numbered without holes. Steps that wait longer than
    there is room for them leave as one batch that says what they changed in sum. What a transport loses on its way
    is the transport's to state. An event that cannot be encoded is counted, and unless it was a store the stream
    says so (a skipped number and `AllBlocksCleared`), so that no consumer goes on believing in blocks whose removal
    was lost.

    Idempotence: publishing equal events twice announces two physical copies of the blocks; consumers count
    copies. Do not retry `publish`.

    Threading: one thread at a time calls `publish` (an engine's scheduler does); the order of events from
    threads that race has no meaning. `statistics` and `close` may be called from any thread.

    Cost: `publish` takes microseconds, whatever the state of the network. It never blocks, never raises, and
    keeps a reference to the events, which must not be changed afterwards.
    """

    def publish(self, events: Sequence[Event]) -> None:
        """Hand over the events of one engine step; an empty step publishes nothing."""
        ...

    def publish_load(self, report: LoadReport) -> None:
        """Tell how busy our rank is, under our own `worker_id` and `rank`, whatever the report names.

        The newest report replaces those before it. It is sent a millisecond after its figures stand still, at most ten
        times a second, and every five seconds if nothing changes, so call it after every step. It is not kept for who
        is not there. Figures that cannot be meant are left out; what is no report at all is counted. Like `publish`
        it takes microseconds, never blocks and never raises, and the same thread calls it.
        """
        ...

    def close(self) -> None:
        """Send what is waiting, within a bounded time, and stop. May be called again."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Return counters since the start, as plain integers under stable names."""
        ...
