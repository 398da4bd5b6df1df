"""The page about events over ZeroMQ says what the code does."""

import re
from pathlib import Path

from kvrouter.events.frames import SNAPSHOT_START
from kvrouter_publishers import ZmqEventPublisher
from kvrouter_publishers.replay_server import REPLAYS_MAX, SNAPSHOT_SECONDS_MAX, STALLED_SECONDS_MAX
from tests.publishers.wire import ANY_TCP

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "transport-zmq.md").read_text(encoding="utf-8")


def test_every_counter_is_on_the_page_and_no_other() -> None:
    """Under the names that dashboards use."""
    section = PAGE.partition("\n## Counters\n")[2]
    listed = {name for row in section.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)}
    listed -= {"close"}

    with ZmqEventPublisher(ANY_TCP) as publisher:
        assert listed == set(publisher.statistics())


def test_the_numbers_of_the_page_are_the_codes() -> None:
    """Written in two places."""
    words = " ".join(PAGE.split())

    assert f"The start `{SNAPSHOT_START.to_bytes(8).hex(' ')}`" in words
    assert f"at most {REPLAYS_MAX} answers under way" in words
    assert SNAPSHOT_SECONDS_MAX == 2.0
    assert f"takes nothing for {STALLED_SECONDS_MAX:g} seconds" in words
