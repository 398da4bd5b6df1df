"""One process changes an index as fast as it goes while others match in it; any of them may be killed at any moment."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import BusyIndexError, StaleIndexError
from kvrouter.index.mapped import MappedIndex, share
from tests.index.mapped_side import prompts

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 200
READ_SECONDS = "100"
TRIES, MATCHES_LEAST = 30_000, 20

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 60)


class Sides:
    """Processes of `mapped_side`; all of them end with the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start one and wait until it is at it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.index.mapped_side", arguments[0], str(self.path), *arguments[1:]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        return process

    def write(self, rounds: int = 0) -> "subprocess.Popen[str]":
        """Start to write, for ever or for so many rounds."""
        return self.start("write", str(rounds))

    def read(self, *, matches: int = 0, seconds: str = READ_SECONDS) -> "subprocess.Popen[str]":
        """Start to read: so often, for so long, or until the writer is gone."""
        return self.start("read", str(matches), seconds)

    def stop(self) -> None:
        """End all."""
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    """Around one path."""
    sides = Sides(tmp_path / "index")
    yield sides
    sides.stop()


def found_by(reader: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a reader says at its end."""
    assert reader.stdout is not None
    # Not `communicate`: it does not know what came together with the first line.
    output = reader.stdout.read()
    assert reader.wait(PATIENCE_SECONDS) == 0
    found: dict[str, Any] = json.loads(output)
    return found


def test_no_reader_ever_sees_what_never_was(sides: Sides) -> None:
    """While tables grow and shrink, sets come and go, and ranks are cleared."""
    writer = sides.write()
    readers = [sides.read(matches=TRIES) for _ in range(3)]

    found = [found_by(reader) for reader in readers]

    assert [each["wrong"] for each in found] == [[]] * 3
    assert [each["stale"] for each in found] == [False] * 3
    assert all(each["matches"] >= MATCHES_LEAST for each in found)
    assert writer.poll() is None


def test_readers_of_a_killed_writer_are_told(sides: Sides) -> None:
    """Whatever it was in the midst of; and another one can take its place."""
    for _ in range(3):
        writer = sides.write()
        readers = [sides.read() for _ in range(2)]
        writer.kill()

        found = [found_by(reader) for reader in readers]

        assert [(each["stale"], each["wrong"]) for each in found] == [(True, [])] * 2
        with pytest.raises(StaleIndexError):
            MappedIndex(sides.path)


def test_a_killed_reader_disturbs_nobody(sides: Sides) -> None:
    """Readers leave no trace."""
    writer = sides.write()
    for _ in range(3):
        sides.read().kill()
    last = sides.read(matches=2000)

    found = found_by(last)

    assert (found["wrong"], found["stale"]) == ([], False)
    assert writer.poll() is None


def test_an_index_can_be_mapped_at_any_moment(sides: Sides) -> None:
    """Also while its file grows, again and again."""
    writer = sides.write()

    for _ in range(2000):
        MappedIndex(sides.path).close()

    assert writer.poll() is None


def test_what_a_writer_leaves_frozen_is_whole(sides: Sides) -> None:
    """After its last round one rank holds all of each prompt, and the other one nothing."""
    writer = sides.write(rounds=6)
    writer.communicate(timeout=PATIENCE_SECONDS)

    with MappedIndex(sides.path) as mapped:
        for number, prompt in enumerate(prompts()):
            depths = mapped.match_depths(prompt)
            assert depths[2 * number] == len(prompt)
            assert 2 * number + 1 not in depths


def test_a_reader_in_the_writers_own_process_waits_for_nothing(tmp_path: Path) -> None:
    """There is no change that it could meet."""
    index: Any = share(tmp_path / "index", capacity_bytes=1 << 28)
    mapped = MappedIndex(tmp_path / "index", patience_seconds=0)
    known = prompts()

    for turn in range(200):
        prompt = known[turn % len(known)]
        index.store_chain(turn % 50, prompt)
        index.remove((turn - 30) % 50, known[(turn - 30) % len(known)])
        with suppress(BusyIndexError):
            assert mapped.match_depths(prompt) == index.match_depths(prompt)

    assert mapped.counts()["retries"] == 0
