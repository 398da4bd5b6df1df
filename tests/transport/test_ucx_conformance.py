"""The UCX transport passes the suite of the request plane, where UCX is installed (A-381, A-389).

The wheels of UCX have 348 MB and are no part of `kvrouter[test]`; after `pip install 'kvrouter[ucx]'` these are found.
"""

import importlib
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from kvrouter.errors import MissingExtraError
from tests.transport.conformance import RequestPlaneContract

if find_spec("ucxx") is not None:
    from kvrouter.transport.ucx_client import UcxRequestClient

    class TestUcx(RequestPlaneContract):
        """A-381, A-389: over TCP and shared memory."""

        transport = "ucx"

        def client(self, **options: Any) -> UcxRequestClient:
            """A client; its heartbeats are slow unless asked for."""
            return UcxRequestClient(heartbeat_seconds=options.get("heartbeat_seconds", 30.0), connect_seconds=60.0)

        def nowhere(self) -> str:
            """Nobody may listen on port 1 of loopback."""
            return "127.0.0.1:1"


def test_without_ucx_one_sentence_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A-381: whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "ucxx", None)
    for name in ("ucx_channel", "ucx_client", "ucx_server"):
        monkeypatch.delitem(sys.modules, f"kvrouter.transport.{name}", raising=False)

    for name in ("ucx_client", "ucx_server"):
        with pytest.raises(MissingExtraError, match=r"pip install 'kvrouter\[ucx\]'"):
            importlib.import_module(f"kvrouter.transport.{name}")
