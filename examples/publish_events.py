"""An engine's side: tell routers what was stored and evicted. Needs pyzmq and msgpack only.

Run it with: python examples/publish_events.py tcp://127.0.0.1:5557
Watch it with: kvrouter events tail tcp://127.0.0.1:5557
"""

import argparse
import time

from kvrouter.events import BlockRemoved, BlockStored
from kvrouter_publishers import ZmqEventPublisher

BLOCK = 16


def main(endpoint: str, seconds: float) -> None:
    """Store a growing chain of blocks, and evict the oldest leaf now and then."""
    with ZmqEventPublisher(endpoint, bind=True) as publisher:
        parent: int | None = None
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            number += 1
            tokens = tuple(range(number * BLOCK, (number + 1) * BLOCK))
            publisher.publish(
                [BlockStored(block_hashes=(number,), parent_block_hash=parent, token_ids=tokens, block_size=BLOCK)]
            )
            parent = number
            if number % 10 == 0:
                publisher.publish([BlockRemoved(block_hashes=(number,))])
                parent = number - 1
            time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="an engine that only has events")
    parser.add_argument("endpoint", help="where to publish, such as tcp://127.0.0.1:5557")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="default: 60")
    given = parser.parse_args()
    main(given.endpoint, given.seconds)
