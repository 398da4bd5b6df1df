"""The fleets that routers are put in front of: fast workers for plain answers, paced ones for streams."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import nginx
from benchmarks.peers import system_program
from benchmarks.processes import Child, Children, Cores, free_ports

__all__ = ["WORKERS", "Fleet", "start_plain_fleet", "start_streaming_fleet"]

WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Running workers: what serves them, and on which ports."""

    software: str
    processes: int
    ports: tuple[int, ...]

    @property
    def urls(self) -> list[str]:
        """Addresses as routers take them."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]


def start_plain_fleet(children: Children, cores: Cores) -> Fleet:
    """Start workers that answer at once: nginx, or our own backend where it is not installed."""
    program = system_program("nginx")
    if program is None:
        return _own_backend(children, cores)
    ports, processes = free_ports(WORKERS), max(1, len(cores.backend))
    configuration = nginx.workers_configuration(children.folder, ports, processes)
    start_nginx(children, "nginx workers", program, configuration, cores.backend).wait_for_port(ports[0])
    return Fleet(software="nginx", processes=processes, ports=tuple(ports))


def start_streaming_fleet(children: Children, cores: Cores) -> Fleet:
    """Start workers that stream: two processes if there are cores for them."""
    return _own_backend(children, cores)


def start_nginx(children: Children, name: str, program: Path, configuration: str, cores: Sequence[int]) -> Child:
    """Start nginx with `configuration` and nothing of the system's own."""
    path = children.folder / f"{name.replace(' ', '-')}.conf"
    path.write_text(configuration, encoding="utf-8")
    return children.start(name, [program, "-e", "stderr", "-p", children.folder, "-c", path], cores=cores)


def _own_backend(children: Children, cores: Cores) -> Fleet:
    ports, processes = free_ports(WORKERS), max(1, len(cores.backend))
    for number in range(processes):
        mine = ports[number::processes]
        child = children.start(
            "backend",
            [sys.executable, "-m", "benchmarks.fleet.backend", *map(str, mine)],
            cores=cores.backend[number : number + 1],
        )
        child.wait_for_port(mine[-1])
    return Fleet(software="own asyncio backend", processes=processes, ports=tuple(ports))
