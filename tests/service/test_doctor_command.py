"""`kvrouter doctor` asks a real router, which has real engines."""

import json
import subprocess
import sys

from tests.service.processes import Processes, eventually, raw_server


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "kvrouter", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_healthy_deployment_and_one_whose_engine_is_gone(processes: Processes) -> None:
    """Nothing to mend, exit code 0; then what is lost is named, exit code 1."""
    engine = processes.engine()
    router = processes.router("--worker", f"{engine.spec},id=one", workers=1)
    eventually(lambda: router.get("/sources")[0]["connected"])
    healthy = doctor("--url", router.url)
    engine.stop()
    eventually(lambda: not router.get("/sources")[0]["connected"])

    broken, read = doctor("--url", router.url), doctor("--url", router.url, "--json")

    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert healthy.stdout.startswith("workers: 1 · event sources: 1, of which live: 1\n")
    assert (broken.returncode, read.returncode) == (1, 1)
    assert "error   source one/0" in broken.stdout
    assert any(finding["what"].startswith("it is not connected") for finding in json.loads(read.stdout))


def test_a_router_without_workers_is_found_out(processes: Processes) -> None:
    """Its `/readyz` is a 503, which is an answer too."""
    router = processes.router()

    done = doctor("--url", router.url)

    assert done.returncode == 1
    assert "it knows no workers" in done.stdout
    assert "-> start it with --worker" in done.stdout


def test_a_worker_without_events_costs_knowledge_and_no_more(processes: Processes) -> None:
    """Its ranks are listed among the sources, with less to tell than those that are listened to."""
    engine = processes.engine()
    router = processes.router("--worker", f"{engine.url},id=one", workers=1)

    done = doctor("--url", router.url)

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("workers: 1 · event sources: 0, of which live: 0\n")
    assert "worker one: it has no event source" in done.stdout


def test_what_is_no_router_is_said_in_one_line() -> None:
    """Another service answers on that port."""
    with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}") as port:
        done = doctor("--url", f"http://127.0.0.1:{port}")

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "is it a kvrouter of the same version?" in line


def test_an_engine_is_no_router() -> None:
    """Its address is the one that is mistaken for the router's."""
    with raw_server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}") as port:
        done = doctor("--url", f"http://127.0.0.1:{port}")

    assert done.returncode == 1
    assert done.stderr.endswith("answered 404 Not Found; is it a kvrouter, and its admin port if it has one?\n")


def test_a_wrong_address_is_a_wrong_call() -> None:
    """Exit code 2, as everywhere."""
    done = doctor("--url", "127.0.0.1:8080")

    assert (done.returncode, done.stderr) == (
        2,
        "kvrouter: --url '127.0.0.1:8080' must begin with http:// or https://\n",
    )
