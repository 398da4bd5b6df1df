"""The life of the router process: how it starts, refuses to start, and ends."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port
from tests.service.processes import Processes, eventually, until_cut

STREAM = {"prompt": list(range(64)), "max_tokens": 60, "ignore_eos": True, "stream": True}


def _refused(*options: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a router that must not start; return its exit code and what it said."""
    ended = subprocess.run(
        [sys.executable, "-m", "kvrouter", "serve", "--port", "0", *options],
        env={"PATH": "", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stderr


def test_a_router_that_was_told_to_stop_says_so_and_still_answers(processes: Processes) -> None:
    """Load balancers get their time to hear of it; whoever has no patience asks a second time."""
    engine = processes.engine()
    router = processes.router("--worker", engine.spec, "--server-unready-seconds", "300", workers=1)

    router.signal(signal.SIGTERM)
    unready = eventually(lambda: router.get("/readyz")["reasons"])
    answer = router.post("/v1/completions", STREAM)
    router.signal(signal.SIGTERM)

    assert unready == ["stopping"]
    assert answer.text.endswith("data: [DONE]\n\n")
    assert router.wait() == 0


def test_sigterm_lets_answers_finish_and_exits_with_0(processes: Processes) -> None:
    """Not ready, then drained, then closed: the stream that was running is whole."""
    engine = processes.engine()
    router = processes.router("--worker", engine.spec, "--server-unready-seconds", "0.4", workers=1)

    with httpx.stream("POST", f"{router.url}/v1/completions", json=STREAM, timeout=120) as stream:
        lines = stream.iter_lines()
        next(lines)
        router.signal(signal.SIGTERM)
        router.event("stopping")
        rest = [line for line in lines if line]

    assert rest[-1] == "data: [DONE]"
    assert router.wait() == 0
    events = [line["event"] for line in router.lines()]
    assert events[-3:] == ["stopping", "drained", "stopped"]


def test_a_second_sigterm_ends_it_at_once(processes: Processes) -> None:
    """Whoever asks twice does not wait for the drain time, which is long here."""
    engine = processes.engine()
    router = processes.router("--worker", engine.spec, "--drain-seconds", "600", workers=1)
    reading = threading.Event()
    cut = threading.Event()

    def read() -> None:
        body = {**STREAM, "max_tokens": 30_000}
        with httpx.stream("POST", f"{router.url}/v1/completions", json=body, timeout=120) as stream:
            lines = stream.iter_lines()
            next(lines)
            reading.set()
            until_cut(lines)
            cut.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(60)
    router.signal(signal.SIGTERM)
    router.event("stopping")
    router.signal(signal.SIGTERM)

    assert router.wait() == 0
    reader.join(60)
    assert cut.is_set()
    (drained,) = [line for line in router.lines() if line["event"] == "drained"]
    assert drained["cut"] == 1


def test_sigint_without_requests_ends_it_quickly(processes: Processes) -> None:
    """Ctrl-C on an idle router needs no patience, though a client holds a connection."""
    router = processes.router("--drain-seconds", "600")
    with httpx.Client(base_url=router.url) as client:
        client.get("/livez")
        router.signal(signal.SIGINT)

        assert router.wait() == 0


def test_it_ends_with_its_parent_if_told_to(processes: Processes) -> None:
    """A router that a program started does not outlive that program."""
    router = processes.router("--exit-with-parent")

    router.close_input()

    assert router.wait() == 0


def test_nothing_is_left_in_the_temporary_folder(processes: Processes) -> None:
    """The admin socket lives in a private folder that goes with the process."""
    with tempfile.TemporaryDirectory(prefix="kv-") as name:
        folder = Path(name)
        router = processes.router(environment={"TMPDIR": name})
        (private,) = folder.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700

        router.signal(signal.SIGTERM)

        assert router.wait() == 0
        assert list(folder.iterdir()) == []


def test_a_temporary_folder_with_a_long_name_is_no_obstacle(processes: Processes, tmp_path: Path) -> None:
    """A socket's path may have a hundred bytes only."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()

    router = processes.router(environment={"TMPDIR": str(folder)})

    assert router.get("/workers") == []


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--worker", "http://h:1,block_size=0"], {}, "block_size"),
        (["--worker", "http://h:1", "--worker", "http://h:1"], {}, "two workers have the url"),
        (["--worker", "http://h:1,id=a", "--worker", "http://h:2,id=a"], {}, "'a'; tell them apart with id="),
        (["--host", "0.0.0.0"], {}, "KVROUTER_API_KEYS"),
        (["--tokenizer", "m=/nowhere"], {}, "/nowhere"),
        (["--chat-template", "m=/nowhere"], {}, "no --tokenizer"),
        (["--server-tls-certificate", "/nowhere.pem"], {}, "cannot read /nowhere.pem: No such file"),
        (["--server-tls-certificate", __file__], {}, "not a PEM certificate chain with its private key"),
        (["--server-tls-key", "/nowhere.pem"], {}, "tls_certificate"),
        (["--snapshots", __file__], {}, f"cannot write into directory {__file__}/kvrouter: Not a directory"),
        (["--snapshots", "/proc/kept"], {}, "cannot write into directory /proc/kept"),
        ([], {"KVROUTER_EVENTS__ROUTER_ID": "a/b"}, "KVROUTER_EVENTS__ROUTER_ID: 'a/b' is not a name"),
        ([], {"KVROUTER_NONSENSE": "1"}, "KVROUTER_NONSENSE"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(options: list[str], environment: dict[str, str], says: str) -> None:
    """No traceback, and the line names what is wrong."""
    code, text = _refused(*options, environment=environment)

    assert code == 2, text
    assert says in text
    assert text.count("\n") == 1


def test_a_taken_port_is_one_line_and_exit_2() -> None:
    """Before anything else was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code, text = _refused("--port", str(port))

    assert code == 2
    assert text == f"kvrouter: cannot listen on 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}\n"


def test_with_keys_a_wider_bind_is_allowed(processes: Processes) -> None:
    """And every path but the probes asks for one."""
    router = processes.router("--host", "0.0.0.0", environment={"KVROUTER_API_KEYS": "one two"})

    statuses = {
        path: httpx.get(router.url + path).status_code
        for path in ("/livez", "/readyz", "/metrics", "/workers", "/v1/models")
    }
    with_key = httpx.get(f"{router.url}/v1/models", headers={"authorization": "Bearer two"})
    without = httpx.get(f"{router.url}/v1/models")

    assert statuses == {"/livez": 200, "/readyz": 503, "/metrics": 401, "/workers": 401, "/v1/models": 401}
    assert with_key.status_code == 200
    assert without.headers["www-authenticate"].startswith("Bearer")
    assert without.json()["error"]["code"] == "invalid_api_key"


def test_an_admin_port_takes_the_admin_api_off_the_main_one(processes: Processes) -> None:
    """And asks for the admin key there."""
    admin_port = free_port()
    router = processes.router("--server-admin-port", str(admin_port), "--admin-key", "root")
    admin = f"http://127.0.0.1:{admin_port}"
    worker = {"worker_id": "w", "endpoint": "somewhere"}

    assert httpx.get(f"{router.url}/workers").status_code == 404
    assert httpx.get(f"{admin}/workers").json() == []
    assert httpx.post(f"{admin}/workers", json=worker).status_code == 401
    created = httpx.post(f"{admin}/workers", json=worker, headers={"authorization": "Bearer root"})
    assert created.status_code == 201


def test_the_client_key_never_reaches_a_worker(processes: Processes) -> None:
    """Our keys are ours; a worker gets the key that was given for it."""
    engine = processes.engine("--api-key", "engine-key")
    keys = {"KVROUTER_API_KEYS": "router-key"}
    router = processes.router("--worker", f"{engine.spec},api_key=engine-key", environment=keys, workers=1)

    answer = httpx.post(
        f"{router.url}/v1/completions",
        json={"prompt": [1, 2, 3], "max_tokens": 1},
        headers={"authorization": "Bearer router-key"},
    )

    assert answer.status_code == 200


def test_it_listens_before_its_workers_are_there(processes: Processes) -> None:
    """A fleet may start in any order: ready when the first worker is."""
    port = free_port()
    router = processes.router("--worker", f"http://127.0.0.1:{port}")
    early = router.get("/readyz")

    processes.engine("--port", str(port))

    assert early["reasons"] == ["no worker is schedulable"]
    assert "refused" in early["workers"][0]["not_schedulable_reasons"][-1]
    eventually(lambda: router.schedulable(1))


def test_log_lines_are_events_without_prompts(processes: Processes) -> None:
    """JSON on standard output, one event per line, nothing per request."""
    engine = processes.engine()
    router = processes.router("--worker", engine.spec, workers=1)
    before = len(router.lines())

    for number in range(20):
        router.post("/v1/completions", {"prompt": f"a secret prompt {number}", "max_tokens": 1})

    text = router.output.read_text()
    assert "secret" not in text
    assert len(router.lines()) == before
    assert {"time", "level", "logger", "event"} <= set(router.lines()[0])
    assert router.errors.read_text() == ""


def test_a_parent_that_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    """A file as standard input never ends, so nothing would ever tell that the parent is gone."""
    answer = subprocess.run(
        [sys.executable, "-m", "kvrouter", "serve", "--port", "0", "--exit-with-parent"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert answer.returncode == 2
    assert answer.stderr == "kvrouter: --exit-with-parent needs a pipe as standard input\n"
