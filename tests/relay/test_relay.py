"""What goes through a relay arrives as the engine meant it: in order, once, and another life as another life."""

import time
from collections.abc import Mapping, Sequence

from kvrouter.blocks import Prompt
from kvrouter.errors import SettingsError
from kvrouter.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    Source,
    decode_envelope,
    encode_batch,
)
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.relay import Relay
from kvrouter_publishers.core import PublisherCore

SOURCE = Source("worker", 0)


def chain(*numbers: int, parent: int | None = None, medium: str = "GPU") -> BlockStored:
    """Blocks of four tokens that follow from their numbers, one after the other."""
    tokens = tuple(token for number in numbers for token in range(4 * number, 4 * number + 4))
    hashes = tuple(100 + number for number in numbers)
    parent_hash = None if parent is None else 100 + parent
    return BlockStored(
        block_hashes=hashes, parent_block_hash=parent_hash, token_ids=tokens, block_size=4, medium=medium
    )


def batch(*events: Event, at: float = 1.0) -> bytes:
    """A batch as an engine sends it."""
    return encode_batch(EventBatch(timestamp=at, events=events, data_parallel_rank=0))


class Line:
    """The way behind a relay: real publishers' cores, one per life, whose frames a router takes."""

    def __init__(self, *, hash_only: bool = False) -> None:
        self.router = Ingest(PrefixIndex())
        self.router.open(SOURCE, 0, now=0.0)
        self.router.connected(SOURCE, now=0.0)
        self.router.replay_finished(SOURCE, now=0.0, complete=True)
        self.cores: list[PublisherCore] = []
        self.frames: list[bytes] = []
        self.now = 0.0
        self.address_taken = False
        self.relay = Relay(self._make, hash_only=hash_only, clock=lambda: self.now)
        self.relay.open(SOURCE)
        self.relay.connected(SOURCE, now=0.0)
        self.relay.replay_finished(SOURCE, now=0.0, complete=True)

    def _make(self, source: Source) -> "Core":
        if self.address_taken:
            raise SettingsError("cannot bind: Address already in use")
        core = PublisherCore(worker_id=source.worker_id, rank=source.rank)
        self.cores.append(core)
        return Core(self, core)

    def carry(self, core: PublisherCore) -> None:
        """Bring what a core has to say to the router."""
        while (frame := core.take(time.monotonic())) is not None:
            self.frames.append(frame.payload)
            envelope = decode_envelope(frame.payload)
            self.router.receive(
                SOURCE,
                envelope.sequence,
                envelope.payload,
                now=0.0,
                incarnation=envelope.incarnation,
                digest=envelope.digest,
            )

    def tokens(self, *numbers: int) -> int:
        """How much of a prompt of these blocks, and one token more, the router can use."""
        prompt = [token for number in numbers for token in range(4 * number, 4 * number + 4)]
        return self.router.usable_tokens(Prompt([*prompt, 0])).get(0, 0)


class Core:
    """A publisher without a network: what is published is at the router at once."""

    def __init__(self, line: Line, core: PublisherCore) -> None:
        self._line, self._core = line, core

    def publish(self, events: Sequence[Event]) -> None:
        """Hand over one step."""
        self._core.put(events)
        self._line.carry(self._core)

    def close(self) -> None:
        """Nothing waits."""

    def statistics(self) -> Mapping[str, int]:
        """What the core counts."""
        return self._core.statistics()


def test_batches_arrive_in_order_and_once() -> None:
    """Late, early and repeated ones: the router sees a stream without any of that."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1)), now=0.0)

    gap = line.relay.receive(SOURCE, 2, batch(chain(3, parent=2)), now=0.0)
    between = line.tokens(1, 2, 3)
    line.relay.receive(SOURCE, 1, batch(chain(2, parent=1)), now=0.0, replayed=True)
    line.relay.receive(SOURCE, 1, batch(chain(2, parent=1)), now=0.0)

    assert (gap.outcome, gap.replay_from, between) == ("gap", 1, 4)
    assert line.tokens(1, 2, 3) == 12
    (counts,) = line.relay.statistics().values()
    assert (counts["gaps"], counts["duplicates"], counts["batches"]) == (1, 1, 3)


def test_another_life_of_the_engine_is_another_life_behind_the_relay() -> None:
    """The router forgets what the old one held, in every tier."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1, 2), chain(1, medium="CPU")), now=0.0)
    line.relay.receive(SOURCE, 1, batch(chain(3, parent=2)), now=0.0)

    receipt = line.relay.receive(SOURCE, 0, batch(chain(7), at=50.0), now=0.0)

    assert receipt.outcome == "restarted"
    assert (line.tokens(1), line.tokens(7)) == (0, 4)
    assert line.router.tier_blocks(Prompt(list(range(4, 9)))) == {}
    assert len({core.incarnation for core in line.cores}) == len(line.cores) == 2


def test_what_is_lost_for_good_is_no_longer_claimed() -> None:
    """A removal may have been in it; the engine's snapshot, where there is one, is asked for."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1, 2)), now=0.0)
    line.relay.receive(SOURCE, 5, batch(chain(9)), now=0.0)

    # The replay begins above what is missing: that has left the engine's memory.
    given_up = line.relay.receive(SOURCE, 4, batch(chain(8)), now=0.0, replayed=True)
    line.relay.replay_finished(SOURCE, now=0.0, complete=True)

    assert given_up.snapshot_wanted
    assert (line.tokens(1, 2), line.tokens(8), line.tokens(9)) == (0, 4, 4)


def test_a_batch_that_nobody_understands_begins_a_life_without_what_it_may_have_removed() -> None:
    """It is counted, and those after it are relayed."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1, 2)), now=0.0)

    receipt = line.relay.receive(SOURCE, 1, b"\xc1", now=0.0)
    line.relay.receive(SOURCE, 2, batch(chain(3)), now=0.0)

    assert (receipt.outcome, receipt.snapshot_wanted) == ("quarantined", True)
    assert (line.tokens(1, 2), line.tokens(3)) == (0, 4)
    assert line.relay.statistics()[SOURCE]["quarantined"] == 1


def test_a_snapshot_takes_the_place_of_what_was_known() -> None:
    """It begins a life; batches after it follow on, older snapshots change nothing."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1)), now=0.0, incarnation=5)

    taken = line.relay.snapshot(SOURCE, [batch(chain(2)), batch(chain(3))], sequence=7, incarnation=5, now=0.0)
    line.relay.receive(SOURCE, 8, batch(BlockRemoved(block_hashes=(103,), medium="GPU")), now=0.0, incarnation=5)
    stale = line.relay.snapshot(SOURCE, [batch(chain(9))], sequence=3, incarnation=5, now=0.0)

    assert (taken.outcome, stale.outcome) == ("applied", "duplicate")
    assert [line.tokens(number) for number in (1, 2, 3, 9)] == [0, 4, 0, 0]


def test_a_damaged_snapshot_changes_nothing() -> None:
    """It is refused whole."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1)), now=0.0, incarnation=5)

    refused = line.relay.snapshot(SOURCE, [batch(chain(2)), b"\xc1"], sequence=7, incarnation=5, now=0.0)

    assert refused.outcome == "quarantined"
    assert (line.tokens(1), line.tokens(2)) == (4, 0)


def test_no_token_leaves_a_relay_of_hashes() -> None:
    """And the router finds the blocks by the hashes alone."""
    line = Line(hash_only=True)

    line.relay.receive(SOURCE, 0, batch(chain(1, 2)), now=0.0)
    line.relay.receive(SOURCE, 1, batch(chain(3, parent=2), AllBlocksCleared(), chain(1)), now=0.0)

    assert (line.tokens(1), line.tokens(1, 2)) == (4, 4)
    assert all(b"token_ids\x90" in frame or b"token_ids" not in frame for frame in line.frames)
    assert line.relay.statistics()[SOURCE]["untold_blocks"] == 0


def test_a_source_that_was_not_opened_is_not_relayed() -> None:
    """A subscriber may be told later than we are."""
    line = Line()

    receipt = line.relay.receive(Source("other", 0), 0, batch(chain(1)), now=0.0)

    assert receipt.outcome == "unknown_source"


def test_a_life_that_cannot_be_opened_is_tried_again_and_made_whole() -> None:
    """Another process has the address for a while: what is lost is counted, and then asked for upstream."""
    line = Line()
    line.relay.receive(SOURCE, 0, batch(chain(1)), now=0.0, incarnation=5)
    line.address_taken = True

    restarted = line.relay.receive(SOURCE, 0, batch(chain(2)), now=0.0, incarnation=6)
    line.relay.receive(SOURCE, 1, batch(chain(3)), now=0.0, incarnation=6)
    refused = line.relay.snapshot(SOURCE, [batch(chain(2, 3))], sequence=1, incarnation=6, now=0.0)
    meanwhile = line.relay.statistics()[SOURCE]
    line.address_taken, line.now = False, 60.0
    opened = line.relay.receive(SOURCE, 2, batch(chain(4)), now=0.0, incarnation=6)
    line.relay.snapshot(SOURCE, [batch(chain(2, 3), chain(4))], sequence=2, incarnation=6, now=0.0)

    assert (restarted.snapshot_wanted, refused.outcome, opened.snapshot_wanted) == (False, "quarantined", True)
    assert (meanwhile["lives"], meanwhile["open_failures"], meanwhile["events_lost"]) == (1, 2, 2)
    assert [line.tokens(number) for number in (1, 2, 4)] == [0, 4, 4]
