"""The command line: it teaches, and wrong calls end with one line and exit code 2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = ["worker", "http://127.0.0.1:9", "--discovery", "memory:"]


def kvrouter(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the real command in a process of its own."""
    return python("-m", "kvrouter", *arguments, **environment)


def python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the interpreter, without settings of whoever runs the tests."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVROUTER_")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**inherited, **environment},
    )


def test_help_lists_every_command() -> None:
    """A newcomer finds what there is, and where to begin."""
    answer = kvrouter("--help")

    assert answer.returncode == 0
    assert {"demo", "serve", "events"} <= set(answer.stdout.split())
    assert "Begin with" in answer.stdout


def test_the_bare_command_helps() -> None:
    """It is a wrong call, and the first one of everybody."""
    answer = kvrouter()

    assert answer.returncode == 2
    assert "Begin with" in answer.stderr


@pytest.mark.parametrize("command", [["demo"], ["serve"], ["events", "tail"], ["objects"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    """--help works without a worker, a file or a network."""
    answer = kvrouter(*command, "--help")

    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: kvrouter {' '.join(command)}")


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["serve", "--config", "absent.toml"], {}, "absent.toml"),
        (["serve", "--port", "many"], {}, "--port"),
        (["serve"], {"KVROUTER_SERVER__PROT": "1"}, "KVROUTER_SERVER__PORT"),
        (["serve", "--host", "0.0.0.0"], {}, "--insecure"),
        (["serve", "--worker", "nonsense"], {}, "nonsense"),
        (["serve", "--worker", "http://127.0.0.1:9,block_size=0"], {}, "block_size"),
        (["serve", "--port", "0", "--tokenizer", "model=absent.json"], {}, "absent.json"),
        (["serve", "--wroker", "http://127.0.0.1:9"], {}, "serve: unknown argument --wroker; did you mean --worker?"),
        (["serve", "surplus"], {}, "see kvrouter serve --help"),
        (["serve", "--work", "http://127.0.0.1:9"], {}, "did you mean --worker?"),
        (["serve", "--config"], {}, "--config: expected one argument; see kvrouter serve --help"),
        (["demo", "--engines", "0"], {}, "--engines: must be between 1 and 32, got 0"),
        (["events", "tail"], {}, "ENDPOINT; see kvrouter events tail --help"),
        (["events", "tail", "tcp://127.0.0.1:9", "--frob"], {}, "unknown argument --frob"),
        (["objects", "memory:", "--host", "0.0.0.0"], {}, "set KVROUTER_OBJECTS_KEY"),
        (["objects", "s3://bucket"], {}, "must look like"),
        (["serve", "--port", "0", "--snapshots", "memory:"], {}, "gone with the router"),
        (["serve", "--port", "0", "--snapshots", "http://127.0.0.1:9"], {}, "objects only"),
        (["objects", "memory:", "--tls-certificate", "a.pem", "--tls-key", "absent.pem"], {}, "absent.pem"),
        (["objects", "memory:", "--tls-key", "absent.pem"], {}, "belong together"),
        ([*WORKER, "--namespace", "A_B!"], {}, "--namespace 'A_B!' must be"),
        ([*WORKER, "--component", "a/b"], {}, "--component 'a/b' must be"),
        ([*WORKER, "--metrics-port", "99999"], {}, "--metrics-port: must be between 0 and 65535"),
        ([*WORKER, "--drain-seconds", "-1"], {}, "--drain-seconds"),
        (["sreve"], {}, "'sreve'"),
    ],
)
def test_a_wrong_call_ends_with_one_line(arguments: list[str], environment: dict[str, str], named: str) -> None:
    """Exit code 2, one line on standard error that names the culprit, no traceback."""
    answer = kvrouter(*arguments, **environment)

    assert answer.returncode == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("kvrouter: ")
    assert named in line


def test_a_wrong_flag_of_the_simulated_engine_is_one_line_too() -> None:
    """Not its whole usage: the line names the flag and says where the usage is."""
    answer = python("-m", "kvrouter.replay.engine", "--frob")

    assert answer.returncode == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line == "engine: unrecognized arguments: --frob; see python -m kvrouter.replay.engine --help"


@pytest.mark.parametrize(
    ("command", "part", "extra"),
    [
        (("kvrouter", "serve"), "numpy", "router"),
        (("kvrouter", "gateway"), "uvloop", "gateway"),
        (("kvrouter.replay.engine",), "msgspec", "router"),
    ],
)
def test_a_missing_part_is_one_sentence_with_the_remedy(
    tmp_path: Path, command: tuple[str, ...], part: str, extra: str
) -> None:
    """With only what engines need installed, the router's commands say how to get the rest."""
    (tmp_path / f"{part}.py").write_text(f"raise ModuleNotFoundError('No module named {part}', name='{part}')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    answer = python("-m", *command, PYTHONPATH=path)

    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert f"pip install 'kvrouter[{extra}]'" in answer.stderr


def test_a_taken_port_of_a_workers_metrics_is_one_line(tmp_path: Path) -> None:
    """As every other port that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        store = tmp_path.as_uri()

        answer = kvrouter("worker", "http://127.0.0.1:9", "--discovery", store, "--metrics-port", port)

    assert answer.returncode == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith(f"kvrouter: --metrics-port: cannot listen on 127.0.0.1:{port}: ")
