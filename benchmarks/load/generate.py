"""A load generator process of our own: `python -m benchmarks.load.generate closed|paced …`, result as one JSON line.

`closed` keeps every connection busy and counts: the stand-in where wrk is not installed. `paced` sends at a fixed
rate whatever comes back, and times each answer, which is how added latency is measured.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from benchmarks import event_loop
from benchmarks.load.client import Answer, Connection, connect
from benchmarks.load.workload import Workload

_GRACE_SECONDS = 20.0
_CONNECTIONS, _WARM_UP_ROUNDS = 8, 2


def main() -> int:
    """Run one generator."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.generate", description=__doc__)
    parser.add_argument("mode", choices=("closed", "paced"))
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run = _closed if arguments.mode == "closed" else _paced
    sys.stdout.write(json.dumps(event_loop.run(run(arguments))) + "\n")
    return 0


async def _closed(arguments: argparse.Namespace) -> dict[str, int]:
    """Keep `connections` busy for `seconds`; like wrk, stop without waiting for the last answers, but for one."""
    workload, host = Workload.load(arguments.workload), f"127.0.0.1:{arguments.port}"
    requests, failed, running, counter = 0, 0, True, 0

    def again(connection: Connection, answer: Answer) -> None:
        nonlocal requests, failed, counter
        requests += answer.status == 200
        failed += answer.status != 200
        if running and answer.status:
            counter += 1
            connection.send(workload.request(counter, arguments.seed, host))

    connections = [await connect("127.0.0.1", arguments.port, again) for _ in range(arguments.connections)]
    started = time.monotonic()
    for connection in connections:
        counter += 1
        connection.send(workload.request(counter, arguments.seed, host))
    await asyncio.sleep(arguments.seconds)
    while not requests + failed and time.monotonic() < started + arguments.seconds + _GRACE_SECONDS:
        await asyncio.sleep(0.001)
    running, seconds = False, time.monotonic() - started
    result = {"requests": requests, "microseconds": round(seconds * 1e6), "failed": failed}
    result["bytes"] = sum(connection.bytes_received for connection in connections)
    for connection in connections:
        connection.close()
    return result


async def _paced(arguments: argparse.Namespace) -> dict[str, object]:
    """Send `rate` requests a second over as many kept connections as the answers need."""
    workload, host = Workload.load(arguments.workload), f"127.0.0.1:{arguments.port}"
    loop = asyncio.get_running_loop()
    answers: list[Answer] = []
    idle: list[Connection] = []

    def answered(connection: Connection, answer: Answer) -> None:
        answers.append(answer)
        idle.append(connection)

    count, interval = max(1, round(arguments.seconds * arguments.rate)), 1 / arguments.rate
    idle += [await connect("127.0.0.1", arguments.port, answered) for _ in range(_CONNECTIONS)]
    # The first requests open the router's connections to its workers; they are sent and not counted.
    for warm_up in range(1, _WARM_UP_ROUNDS + 1):
        for number in range(_CONNECTIONS):
            idle.pop().send(workload.request(warm_up * _CONNECTIONS + number, arguments.seed + 1, host))
        await _wait_for(answers, warm_up * _CONNECTIONS)
    answers.clear()
    started = loop.time() + interval
    for number in range(count):
        request = workload.request(number, arguments.seed, host)
        await asyncio.sleep(max(0.0, started + number * interval - loop.time()))
        connection = idle.pop(0) if idle else await connect("127.0.0.1", arguments.port, answered)
        connection.send(request)
    await _wait_for(answers, count)
    good = [answer for answer in answers if answer.status == 200]
    return {
        "requests": len(good),
        "failed": count - len(good),
        "seconds": sorted(answer.ended - answer.sent for answer in good),
        "first_byte_seconds": sorted(answer.first_byte - answer.sent for answer in good),
    }


async def _wait_for(answers: list[Answer], count: int) -> None:
    """Wait until `count` answers are there, or give up on the missing ones."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while len(answers) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
