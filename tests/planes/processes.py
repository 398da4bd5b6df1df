"""`kvrouter worker` as a process of its own, and routers that look for workers in a folder."""

from pathlib import Path

import httpx

from tests.service.processes import Process, Processes, Router

__all__ = ["PlaneProcesses", "PlaneWorker"]


class PlaneWorker(Process):
    """A `kvrouter worker` process."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        super().__init__(folder, "worker", "kvrouter", "worker", *options, environment=environment)
        self.serving = self.event("serving")
        self.instance: str = self.serving["instance"]

    def figures(self) -> dict[str, float]:
        """What it tells Prometheus, by name and labels."""
        lines = httpx.get(f"http://127.0.0.1:{self.serving['metrics_port']}/metrics", timeout=60).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


class PlaneProcesses(Processes):
    """Starts workers too; all records are in one folder."""

    @property
    def discovery(self) -> str:
        """Where the records are."""
        return f"file://{self.folder / 'records'}"

    def worker(self, engine: str, *options: str, environment: dict[str, str] | None = None) -> PlaneWorker:
        """Put an engine behind a plane, and wait until it serves."""
        given = (engine, "--discovery", self.discovery, "--metrics-port", "0", *options)
        return self._kept(PlaneWorker(self.folder, *given, environment=environment))

    def plane_router(self, *options: str, environment: dict[str, str] | None = None) -> Router:
        """Start a router that follows the records."""
        return self.router("--discovery", self.discovery, *options, environment=environment)
