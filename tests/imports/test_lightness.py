"""Importing us costs an engine nothing: an environment with pyzmq and msgpack alone is enough to publish."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
import zmq

CHECKOUT = Path(__file__).resolve().parents[2]
LIGHT = ("zmq", "msgpack")


@pytest.fixture
def bare_path(tmp_path: Path) -> list[str]:
    """An import path with our sources, pyzmq and msgpack, and nothing else that is installed here."""
    site = tmp_path / "site"
    site.mkdir()
    for package in (zmq, msgpack):
        folder = Path(str(package.__file__)).parent
        (site / folder.name).symlink_to(folder)
        libraries = folder.parent / "pyzmq.libs"  # Binary wheels keep libzmq beside the package.
        if libraries.exists() and not (site / libraries.name).exists():
            (site / libraries.name).symlink_to(libraries)
    return [str(site), str(CHECKOUT), str(CHECKOUT / "publishers"), str(CHECKOUT / "subscribers")]


def run_bare(bare_path: list[str], code: str) -> dict[str, object]:
    """Run `code` without site-packages, environment or user site; it fills `report`, which is returned."""
    program = "\n".join(
        [
            "import json, sys",
            f"sys.path[:0] = {bare_path!r}",
            "report = {}",
            code,
            "third = set()",
            "for name, module in list(sys.modules.items()):",
            "    top = name.partition('.')[0]",
            "    is_file = getattr(module, '__file__', None) is not None",
            "    if is_file and top not in sys.stdlib_module_names and not top.startswith(('kvrouter', '_')):",
            "        third.add(top)",
            "report['third_party'] = sorted(third)",
            "print(json.dumps(report))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("module", ["kvrouter", "kvrouter.errors", "kvrouter.events", "kvrouter_publishers"])
def test_the_light_modules_need_pyzmq_and_msgpack_alone(bare_path: list[str], module: str) -> None:
    """A-505: no numpy, no web framework: nothing whose version an engine pins."""
    report = run_bare(bare_path, f"import {module}")

    assert set(report["third_party"]) <= set(LIGHT)  # type: ignore[call-overload]


@pytest.mark.parametrize("module", ["kvrouter", "kvrouter_publishers", "kvrouter_subscribers"])
def test_the_packages_themselves_load_the_standard_library_only(bare_path: list[str], module: str) -> None:
    """What a publisher or subscriber needs is loaded with the first use of its name."""
    report = run_bare(bare_path, f"import {module}")

    assert report["third_party"] == []


def test_every_public_name_of_the_publishers_resolves(bare_path: list[str]) -> None:
    """`__all__` is a promise, lazy or not."""
    code = "import kvrouter_publishers as p\nreport['names'] = [n for n in p.__all__ if getattr(p, n) is not None]"

    report = run_bare(bare_path, code)

    assert {"EventPublisher", "HttpEventPublisher", "ZmqEventPublisher"} <= set(report["names"])  # type: ignore[call-overload]
    assert set(report["third_party"]) <= set(LIGHT)  # type: ignore[call-overload]


def test_every_public_name_of_the_subscribers_resolves(bare_path: list[str]) -> None:
    """The subscriber needs no more than the publisher."""
    code = "import kvrouter_subscribers as s\nreport['names'] = [n for n in s.__all__ if getattr(s, n) is not None]"

    report = run_bare(bare_path, code)

    assert "ZmqEventSubscriber" in report["names"]  # type: ignore[operator]
    assert set(report["third_party"]) <= set(LIGHT)  # type: ignore[call-overload]


def test_a_publisher_really_publishes_in_a_bare_environment(bare_path: list[str], tmp_path: Path) -> None:
    """A-504: import alone could hide a missing part; a batch that arrives cannot."""
    code = f"""
import zmq
from kvrouter.events import BlockStored, decode_batch
from kvrouter_publishers import ZmqEventPublisher
with ZmqEventPublisher("ipc://{tmp_path}/live", replay_endpoint="ipc://{tmp_path}/replay") as publisher:
    publisher.publish([BlockStored(block_hashes=(7,), token_ids=(1, 2), block_size=2)])
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, 20_000)
    dealer.connect("ipc://{tmp_path}/replay")
    while True:
        dealer.send_multipart([b"", (0).to_bytes(8)])
        first = dealer.recv_multipart()
        if first[-1]:
            break
    context.destroy(linger=0)
report["hashes"] = decode_batch(first[-1]).events[0].block_hashes
"""
    report = run_bare(bare_path, code)

    assert report["hashes"] == [7]
    assert set(report["third_party"]) <= set(LIGHT)  # type: ignore[call-overload]


def test_importing_and_publishing_leave_logging_and_signals_alone(bare_path: list[str]) -> None:
    """An engine's own configuration is none of our business."""
    code = """
import logging, signal
before = {s: signal.getsignal(s) for s in signal.valid_signals()}
from kvrouter_publishers import ZmqEventPublisher
with ZmqEventPublisher("tcp://127.0.0.1:*") as publisher:
    publisher.publish([])
report["handlers"] = len(logging.getLogger().handlers) + len(logging.getLogger("kvrouter_publishers").handlers)
report["signals_kept"] = all(signal.getsignal(s) == handler for s, handler in before.items())
"""
    report = run_bare(bare_path, code)

    assert report["handlers"] == 0
    assert report["signals_kept"] is True


@pytest.mark.parametrize("module", ["kvrouter_publishers", "kvrouter_subscribers"])
def test_a_lazy_package_lists_its_names_and_refuses_others(module: str) -> None:
    """Completion works, and a typing mistake is an AttributeError as anywhere."""
    package = importlib.import_module(module)

    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"{module}.*NatsEventPublisher"):
        package.NatsEventPublisher  # noqa: B018 - the access is the test
