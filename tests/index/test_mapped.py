"""A shared index passes the contract; a mapped one answers as it does, and refuses whatever is no index."""

import random
import stat
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvrouter import native_core
from kvrouter.errors import BusyIndexError, MappingError, SnapshotError, StaleIndexError
from kvrouter.index import PrefixIndex
from kvrouter.index.mapped import MappedIndex, map_snapshot, share
from kvrouter.ingest import Ingest
from tests.index.contract import PrefixIndexContract
from tests.ingest.engines import SOURCE, payload, removed, stored, tokens

CAPACITY = 256 << 20
STATE_AT = 88
"""Where the state is in the head."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an index may be."""
    return tmp_path / "index"


class TestShared(PrefixIndexContract):
    """The same suite that holds every index."""

    @pytest.fixture
    def index(self, path: Path) -> PrefixIndex:
        return share(path, capacity_bytes=CAPACITY)


def prompts(draw: np.random.Generator, number: int, longest: int) -> list[NDArray[np.uint64]]:
    """Some prompts; half of them begin as the one before."""
    made: list[NDArray[np.uint64]] = []
    for at in range(number):
        fresh = draw.integers(1, 2**63, int(draw.integers(1, longest)), dtype=np.uint64)
        made.append(np.concatenate([made[-1][: len(made[-1]) // 2], fresh]) if at % 2 else fresh)
    return made


def change(indexes: list[Any], prompt: NDArray[np.uint64], draw: np.random.Generator) -> None:
    """The same random change to all."""
    rank, kind, tier = int(draw.integers(130)), draw.random(), ["gpu", "cpu", "disk"][int(draw.integers(3))]
    length = int(draw.integers(len(prompt) + 1))
    for index in indexes:
        if kind < 0.5:
            index.store_chain(rank, prompt[:length], tier=tier)
        elif kind < 0.6:
            index.store(rank, prompt[length:], tier)
        elif kind < 0.95:
            index.remove(rank, prompt[length // 2 :], tier)
        else:
            index.clear(rank)


@pytest.mark.parametrize(("number", "longest", "steps"), [(20, 40, 3000), (300, 400, 1500), (4, 9000, 150)])
def test_every_answer_is_that_of_the_index(path: Path, number: int, longest: int, steps: int) -> None:
    """Few blocks, many, and long prompts; whole, by tiers, and the best ones."""
    draw = np.random.default_rng(steps)
    known = prompts(draw, number, longest)
    shared: Any = share(path, capacity_bytes=CAPACITY)
    other: Any = PrefixIndex()
    mapped = MappedIndex(path)

    for _ in range(steps):
        change([shared, other], known[int(draw.integers(number))], draw)
        prompt = known[int(draw.integers(number))]
        depths = other.match_depths(prompt)
        assert mapped.match_depths(prompt) == depths == shared.match_depths(prompt)
        assert mapped.match_best(prompt, 3) == other.match_best(prompt, 3)
        assert mapped.match(prompt, tiers=["cpu", "none"]).depths() == other.match_depths(prompt, ["cpu"])
    assert mapped.match_depths(known[0].tolist()) == other.match_depths(known[0])
    assert mapped.match_depths([]) == {}
    assert set(mapped.tiers()) == set(other.tiers())


def test_readers_follow_the_file_as_it_grows(path: Path) -> None:
    """What lies behind the end of a mapping is mapped when it is met."""
    index = share(path, capacity_bytes=CAPACITY)
    mapped = MappedIndex(path)
    before = path.stat().st_size
    chains = [np.arange(start + 1, start + 2001, dtype=np.uint64) for start in range(0, 400_000, 2000)]

    for rank, chain in enumerate(chains):
        index.store_chain(rank % 16, chain)
        assert mapped.match_depths(chain) == {rank % 16: 2000}

    assert path.stat().st_size > 4 * before
    assert mapped.counts()["remaps"] >= 2
    assert mapped.counts()["bytes"] == path.stat().st_size
    assert all(mapped.match_depths(chain) == {rank % 16: 2000} for rank, chain in enumerate(chains))


def test_what_is_given_back_is_used_again(path: Path) -> None:
    """However often blocks come and go, the file stays about as large as it has to be."""
    index = share(path, capacity_bytes=CAPACITY)
    draw = np.random.default_rng(5)
    sizes = []

    for turn in range(12):
        rows = [draw.integers(1, 2**63, 500, dtype=np.uint64) for _ in range(100)]
        for row in rows:
            index.store_chain(turn, row)
        for row in rows:
            index.remove(turn, row)
        sizes.append(path.stat().st_size)

    assert len(index) == 0
    assert sizes[-1] <= 2 * sizes[1]


def test_ingest_feeds_a_shared_index(path: Path) -> None:
    """It is an index as any other."""
    index = share(path, capacity_bytes=CAPACITY)
    ingest, mapped = Ingest(index), MappedIndex(path)
    ingest.open(SOURCE, 3, block_size=4, now=0.0)
    keys = [int(key) for key in _keys(8)]

    ingest.receive(SOURCE, 0, payload(stored(range(1, 9), tokens(8))), now=0.0)
    whole = mapped.match_depths(keys)
    ingest.receive(SOURCE, 1, payload(removed(6)), now=0.0)

    assert whole == {3: 8}
    assert mapped.match_depths(keys) == {3: 5}
    ingest.close(SOURCE)
    assert mapped.match_depths(keys) == {}


def _keys(blocks: int) -> NDArray[np.uint64]:
    from kvrouter.blocks import sequence_hashes  # noqa: PLC0415 - one test needs it

    return sequence_hashes(list(tokens(blocks)), 4)


def test_without_room_an_index_is_whole_and_so_is_what_readers_see(path: Path) -> None:
    """A change that does not fit raises; what was there before is there afterwards."""
    index: Any = share(path, capacity_bytes=3 << 20)
    mapped = MappedIndex(path)
    chains = (np.arange(start + 1, start + 1001, dtype=np.uint64) for start in count(0, 1000))
    stored_chains: list[NDArray[np.uint64]] = []

    def store_all() -> None:
        for chain in chains:
            index.store_chain(0, chain)
            stored_chains.append(chain)

    with pytest.raises(MemoryError):
        store_all()

    assert len(stored_chains) > 20
    for chain in stored_chains:
        assert mapped.match_depths(chain) == index.match_depths(chain) == {0: 1000}
    index.clear(0)
    index.store_chain(1, stored_chains[0])
    assert mapped.match_depths(stored_chains[0]) == {1: 1000}


def test_a_snapshot_can_be_mapped_and_never_changes(path: Path) -> None:
    """No writer is needed; any number of readers may come later."""
    draw = np.random.default_rng(2)
    index: Any = PrefixIndex()
    known = prompts(draw, 50, 200)
    for _ in range(400):
        change([index], known[int(draw.integers(50))], draw)

    map_snapshot(index.snapshot(), path)

    for mapped in (MappedIndex(path), MappedIndex(path)):
        mapped.check()
        assert all(mapped.match_depths(prompt) == index.match_depths(prompt) for prompt in known)
    with pytest.raises(SnapshotError):
        map_snapshot(index.snapshot()[:-1], path)
    map_snapshot(PrefixIndex().snapshot(), path)
    assert MappedIndex(path).match_depths(known[0]) == {}


def test_a_frozen_index_goes_on_empty(path: Path) -> None:
    """What it held is left to its readers."""
    index = share(path, capacity_bytes=CAPACITY)
    index.store_chain(1, [1, 2, 3])
    mapped = MappedIndex(path)

    index.freeze()
    index.store_chain(2, [1, 2])

    assert mapped.match_depths([1, 2, 3]) == {1: 3}
    assert index.match_depths([1, 2, 3]) == {2: 2}
    with pytest.raises(RuntimeError, match="not shared"):
        index.freeze()


def test_a_closed_index_is_stale_and_leaves_nothing_behind(path: Path) -> None:
    """Its readers learn that at once; the next one has the path for itself."""
    index = share(path, capacity_bytes=CAPACITY)
    index.store_chain(1, [1, 2, 3])
    mapped = MappedIndex(path)
    private = stat.S_IMODE(path.stat().st_mode)

    del index

    assert private == 0o600
    assert list(path.parent.iterdir()) == []
    for ask in (mapped.check, mapped.tiers, lambda: mapped.match_depths([1])):
        with pytest.raises(StaleIndexError, match="closed"):
            ask()
    again = share(path, capacity_bytes=CAPACITY)
    again.store_chain(2, [1, 2, 3])
    assert MappedIndex(path).match_depths([1, 2, 3]) == {2: 3}


def test_a_path_has_one_writer(path: Path) -> None:
    """The second one is refused, and changes nothing."""
    index = share(path, capacity_bytes=CAPACITY)
    index.store_chain(1, [1, 2, 3])

    with pytest.raises(MappingError, match="another process does"):
        share(path, capacity_bytes=CAPACITY)

    assert MappedIndex(path).match_depths([1, 2, 3]) == {1: 3}
    assert [each.name for each in path.parent.iterdir()] == ["index"]


def test_what_cannot_be_shared_is_refused_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind."""
    with pytest.raises(MappingError, match="No such file"):
        share(path / "nowhere")
    with pytest.raises(MappingError, match="Invalid argument"):
        share(path, capacity_bytes=1000)
    with pytest.raises(RuntimeError, match="only a new index"):
        share(path, capacity_bytes=CAPACITY).share(0, "", 0)
    assert not path.exists()
    monkeypatch.setattr(native_core, "present", False)
    with pytest.raises(MappingError, match="native core"):
        share(path)
    with pytest.raises(MappingError, match="native core"):
        MappedIndex(path)


def test_what_is_no_index_is_refused_in_words(path: Path, tmp_path: Path) -> None:
    """Files of others, of other versions, damaged and torn ones."""
    with pytest.raises(MappingError, match="No such file"):
        MappedIndex(path)
    with pytest.raises(MappingError, match="too short"):
        MappedIndex(tmp_path)
    map_snapshot(PrefixIndex().snapshot(), path)
    whole = path.read_bytes()
    for damaged, words in (
        (b"", "too short"),
        (whole[:1000], "too short"),
        (b"x" + whole[1:], "not a shared index"),
        (whole[:8] + b"\x07" + whole[9:], "another version"),
        (whole[:40] + b"\x07" + whole[41:], "checksum"),
        (whole[: len(whole) // 2], "shorter than it says"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(MappingError, match=words):
            MappedIndex(path)


def test_a_closed_mapping_says_so(path: Path) -> None:
    """Twice is as good as once."""
    map_snapshot(PrefixIndex().snapshot(), path)
    with MappedIndex(path) as mapped:
        mapped.close()

    with pytest.raises(StaleIndexError, match="mapping was closed"):
        mapped.match_depths([1])


def test_a_copy_of_the_file_has_no_writer(path: Path, tmp_path: Path) -> None:
    """It is as stale as what a dead process left."""
    index = share(path, capacity_bytes=CAPACITY)
    index.store_chain(1, [1, 2, 3])
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())

    with pytest.raises(StaleIndexError, match="gone"):
        MappedIndex(copy)


@pytest.mark.parametrize("seed", range(6))
def test_garbage_is_never_followed(path: Path, tmp_path: Path, seed: int) -> None:
    """Whatever stands in the tables: an answer, or that there is none; no fault, no endless search."""
    choose, draw = random.Random(seed), np.random.default_rng(seed)
    index: Any = PrefixIndex()
    known = prompts(draw, 40, 300)
    for _ in range(300):
        change([index], known[int(draw.integers(40))], draw)
    map_snapshot(index.snapshot(), path)
    whole = path.read_bytes()
    damaged = tmp_path / "damaged"
    answers = 0

    for _ in range(40):
        content = bytearray(whole)
        for _ in range(choose.choice([1, 20, 2000])):
            at = choose.randrange(STATE_AT + 8, len(content) - 8)
            wild = choose.choice([b"\xff" * 8, choose.randbytes(8), content[at - 8 : at], bytes(8)])
            content[at : at + 8] = wild
        damaged.write_bytes(content)
        mapped = MappedIndex(damaged, patience_seconds=0)
        for prompt in known[:10]:
            try:
                mapped.match_depths(prompt)
                answers += 1
            except BusyIndexError:
                continue

    assert answers > 0


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/dev/fd").iterdir()))


def test_nothing_is_left_open(path: Path) -> None:
    """Neither by mappings that are closed or dropped, nor by those that never came to be."""
    map_snapshot(PrefixIndex().snapshot(), path)
    MappedIndex(path).close()
    before = open_files()

    for _ in range(50):
        MappedIndex(path).close()
        MappedIndex(path)
        with pytest.raises(MappingError):
            MappedIndex(path.parent)
        share(path.parent / "other", capacity_bytes=CAPACITY)
        with pytest.raises(MappingError):
            share(path.parent / "other", capacity_bytes=1)

    assert open_files() < before + 20
