"""`kvrouter events tail` shows what arrives: real processes for the way, the sink alone for the words."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvrouter import events_cli
from kvrouter.errors import SettingsError
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Source
from kvrouter.events.digest import DigestRow
from kvrouter.events_cli import tail as tail_command
from kvrouter.events_cli.tail import Tail
from kvrouter_publishers import ZmqEventPublisher
from tests.subscribers.scene import ANY_TCP, payload, stored

SOURCE = Source("tail", 0)
PROGRAM = """
import argparse, sys
from kvrouter import events_cli
parser = argparse.ArgumentParser()
events_cli.add_parser(parser.add_subparsers())
arguments = parser.parse_args(["events", "tail", *sys.argv[1:]])
sys.exit(arguments.run(arguments))
"""
COMMAND = (sys.executable, "-W", "error", "-c", PROGRAM)


@contextmanager
def published(*steps: list[Event]) -> Iterator[ZmqEventPublisher]:
    """A publisher that has these steps to replay."""
    with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP) as publisher:
        for step in steps:
            publisher.publish(step)
        yield publisher


def tail(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_replayed_events_are_printed_for_people() -> None:
    """Counts and hashes, one line per event; the token ids stay out of it."""
    steps: list[Event] = [stored(4_000_000), BlockRemoved(block_hashes=(1, 2, 3), medium="GPU"), AllBlocksCleared()]
    with published(*([step] for step in steps)) as publisher:
        done = tail(publisher.endpoint, "--replay", str(publisher.replay_endpoint), "--count", "3")

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].strip() == "connected"
    assert " ".join(lines[1].split()).startswith("0 replayed rank 0 stored 1 block of 4 (4 tokens) medium GPU hashes")
    assert "removed 3 blocks medium GPU hashes 0000000000000001 0000000000000002 and 1 more" in lines[2]
    assert lines[3].endswith("cleared")
    assert "3 batches, 3 events, 1 blocks stored, 3 blocks removed, 1 clears" in lines[-1]
    assert "16000000" not in done.stdout


def test_json_is_one_object_per_line() -> None:
    """For programs: every line parses, the last one sums up."""
    secret = BlockStored(
        block_hashes=(7,), token_ids=(987_654, 987_655), block_size=2, lora_name="a", cache_salt="very secret"
    )
    with published([secret, stored(2)], [stored(3)]) as publisher:
        replay = str(publisher.replay_endpoint)
        done = tail(publisher.endpoint, "--replay", replay, "--start", "0", "--count", "2", "--json")

    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["kind"] for record in records[:3]] == ["connected", "batch", "batch"]
    assert records[1]["events"][0] == {
        "type": "stored",
        "blocks": 1,
        "block_size": 2,
        "tokens": 2,
        "hashes": ["0000000000000007"],
        "lora": "a",
    }
    assert records[-1]["kind"] == "summary"
    assert records[-1]["blocks_stored"] == 3
    assert "secret" not in done.stdout
    assert "987654" not in done.stdout


def test_silence_is_an_exit_code() -> None:
    """A script can ask whether anything comes at all."""
    with published() as publisher:
        done = tail(publisher.endpoint, "--seconds", "0.2", "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["batches"] == 0
    assert "no events yet" in done.stderr or "not connected" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--count", "0"], "--count: must be a whole number of at least 1, got '0'"),
        (["--start", "-1", "--replay", "tcp://127.0.0.1:9"], "--start"),
        (["--start", "5"], "--start needs --replay"),
    ],
)
def test_an_option_that_can_do_nothing_is_refused(options: list[str], says: str) -> None:
    """Rather than ignored."""
    done = tail("tcp://127.0.0.1:9", *options)

    assert done.returncode != 0
    assert says in done.stderr
    assert not done.stdout


def test_a_malformed_endpoint_is_a_wrong_call() -> None:
    """Not something to wait for; the command line turns the error into one line and exit code 2."""
    parser = argparse.ArgumentParser()
    events_cli.add_parser(parser.add_subparsers())

    with pytest.raises(SettingsError, match=r"10\.0\.0\.5:5557"):
        tail_command.run(parser.parse_args(["events", "tail", "10.0.0.5:5557"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_the_summary(number: signal.Signals) -> None:
    """Ctrl-C is how one leaves a tail."""
    with published([stored(1)]) as publisher:
        process = subprocess.Popen(
            [*COMMAND, publisher.endpoint, "--json", "--replay", str(publisher.replay_endpoint)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as lines:
            while json.loads(lines.readline())["kind"] != "batch":
                pass
            process.send_signal(number)
            rest = [json.loads(line) for line in lines]

        assert process.wait(30) == 0
        assert rest[-1]["kind"] == "summary"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    """`kvrouter events tail ... | head -1`."""
    with published([stored(1)], [stored(2)]) as publisher:
        process = subprocess.Popen(
            [*COMMAND, publisher.endpoint],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout as lines, process.stderr as errors:
            lines.readline()
            lines.close()
            deadline = time.monotonic() + 90
            while process.poll() is None and time.monotonic() < deadline:
                publisher.publish([stored(3)])
                time.sleep(0.01)

            assert process.returncode == 0
            assert errors.read() == ""


class Story:
    """A tail whose records are kept."""

    def __init__(self, **options: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.tail = Tail(lambda record: self.records.append(dict(record)), **options)

    def kinds(self) -> list[str]:
        """What was told, by sequence where it is a batch."""
        return [str(r["sequence"]) if r["kind"] == "batch" else r["kind"] for r in self.records]


def test_a_gap_is_told_where_it_is() -> None:
    """The numbers before and after it are named."""
    story = Story()

    for sequence in (5, 6, 9):
        story.tail.receive(SOURCE, sequence, payload([stored(sequence)]), now=0.0)

    assert story.kinds() == ["5", "6", "gap", "9"]
    assert story.records[2] == {"kind": "gap", "expected": 7, "received": 9}


def test_live_batches_wait_for_the_replay_before_them() -> None:
    """Both ways bring the same numbers at about the same time; each is shown once, in order."""
    story = Story(replay=True)

    answer = story.tail.connected(SOURCE, now=0.0)
    story.tail.receive(SOURCE, 2, payload([stored(2)]), now=0.0)
    for sequence in (0, 1, 2):
        story.tail.receive(SOURCE, sequence, payload([stored(sequence)]), now=0.0, replayed=True)
    story.tail.receive(SOURCE, 3, payload([stored(3)]), now=0.0)
    story.tail.replay_finished(SOURCE, now=0.0, complete=True)

    assert answer.replay_from == 0
    assert story.kinds() == ["connected", "0", "1", "2", "replayed", "3"]
    assert story.tail.summary()["duplicates"] == 1


@pytest.mark.parametrize("first", [0, 3])
def test_a_new_life_is_told(first: int) -> None:
    """After a new connection lower numbers are another life, even if its first batches were missed."""
    story = Story()
    story.tail.connected(SOURCE, now=0.0)
    story.tail.receive(SOURCE, 8, payload([stored(8)]), now=0.0)

    story.tail.disconnected(SOURCE, now=0.0)
    story.tail.connected(SOURCE, now=0.0)
    story.tail.receive(SOURCE, first, payload([stored(first)]), now=0.0)

    assert story.kinds() == ["connected", "8", "disconnected", "connected", "restarted", str(first)]


def test_a_payload_that_is_not_understood_is_told() -> None:
    """Its size and the reason, not its bytes."""
    story = Story()

    story.tail.receive(SOURCE, 0, b"\xc1secret", now=0.0)

    assert story.records[0]["kind"] == "quarantined"
    assert story.tail.summary()["quarantined"] == 1
    assert "secret" not in str(story.records)


def test_batches_without_events_say_what_they_are_for() -> None:
    """The first one of a life, and those that carry a digest alone."""
    story = Story()
    digest = (DigestRow("GPU", 0, 120, 0xAB), DigestRow(None, 1, 3, 7))

    story.tail.receive(SOURCE, 0, payload([]), now=0.0, digest=())
    story.tail.receive(SOURCE, 1, payload([]), now=0.0)
    story.tail.receive(SOURCE, 2, payload([]), now=0.0, digest=digest)
    lines = [line for record in story.records for line in tail_command._line(record).splitlines()]

    assert [line.split("  ")[-1] for line in lines] == [
        "first of a life, nothing is cached yet",
        "digest: holds nothing",
        "empty",
        "digest: holds 120 in GPU group 0, 3 in no medium group 1",
    ]
    assert story.records[2]["digest"][0] == {"medium": "GPU", "group": 0, "blocks": 120, "xor": "00000000000000ab"}


def test_every_kind_of_record_has_a_line_for_people() -> None:
    """None of them is shown as a Python value."""
    kinds: list[dict[str, Any]] = [
        {"kind": "connected"},
        {"kind": "gap", "expected": 1, "received": 3},
        {"kind": "replayed", "complete": False},
        {"kind": "quarantined", "sequence": 1, "bytes": 9, "reason": "not msgpack"},
        {"kind": "batch", "sequence": 1, "replayed": False, "rank": None, "events": [], "skipped": {"unknown_tag": 2}},
    ]

    lines = [tail_command._line(record) for record in kinds]

    assert lines[1].split() == ["gap", "expected", "1,", "received", "3"]
    assert not any("{" in line or "None" in line for line in lines)


def test_the_command_is_known_to_the_parser() -> None:
    """`events` is a group; `tail` is its first command."""
    parser = argparse.ArgumentParser()
    events_cli.add_parser(parser.add_subparsers())

    arguments = parser.parse_args(["events", "tail", "tcp://127.0.0.1:1", "--count", "3"])

    assert arguments.run is tail_command.run
    assert arguments.count == 3
