"""How often a client may ask the router: by key or by address, with 429 and Retry-After, and nobody else held up."""

import httpx
import pytest

from kvrouter.errors import ShedError
from kvrouter.settings import AuthSettings, LimitSettings
from tests.service.inprocess import InProcess
from tests.service.processes import Processes

KEYS = AuthSettings(api_keys=("blue", "green"))
TWO_AT_ONCE = LimitSettings(client_rate=0.5, client_burst=2)


def bearer(key: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"authorization": f"Bearer {key}"}


def test_a_key_is_used_up_and_fills_again() -> None:
    """A-141: each key has its own; the refusal says when the next request may come."""
    scene = InProcess(auth=KEYS, limits=TWO_AT_ONCE)
    dispatcher = scene.service.dispatcher
    request = scene.request("POST", "/v1/completions", headers=bearer("blue"))

    for _ in range(2):
        assert dispatcher.admit(request) is None
    with pytest.raises(ShedError) as refusal:
        dispatcher.admit(request)
    assert (refusal.value.status, refusal.value.code, refusal.value.retry_after_seconds) == (429, "rate_limited", 2)
    assert dispatcher.admit(scene.request("POST", "/v1/completions", headers=bearer("green"))) is None
    scene.clock.now += 2
    assert dispatcher.admit(request) is None


def test_without_keys_addresses_are_counted() -> None:
    """A-141: whatever token is shown there, since nobody looks at it; ports are no other client."""
    scene = InProcess(limits=LimitSettings(client_rate=0.001, client_burst=1))
    dispatcher = scene.service.dispatcher
    first = scene.request("POST", "/v1/completions", headers=bearer("one"))
    second = scene.request("POST", "/v1/completions", headers=bearer("two"))
    first.peer, second.peer = "10.0.0.1:1000", "10.0.0.1:2000"

    assert dispatcher.admit(first) is None
    with pytest.raises(ShedError):
        dispatcher.admit(second)
    second.peer = "10.0.0.2:1000"
    assert dispatcher.admit(second) is None


def test_what_is_no_request_of_the_data_plane_costs_nothing() -> None:
    """A-141: health checks, metrics and the admin API go on; by default everything does."""
    limited, free = InProcess(limits=LimitSettings(client_rate=0.001, client_burst=1)), InProcess()
    for path in ("/livez", "/metrics", "/workers"):
        for _ in range(3):
            assert limited.service.dispatcher.admit(limited.request("GET", path)) is None
    for _ in range(3):
        assert free.service.dispatcher.admit(free.request("POST", "/v1/completions")) is None


def test_a_client_over_http_is_told(processes: Processes) -> None:
    """A-141: a real router, its flag, a status and a header, and a count of what it refused."""
    router = processes.router("--rate-limit", "0.001")

    answers = [httpx.get(f"{router.url}/v1/models", timeout=60) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["retry-after"] == "1000"
    assert answers[1].json()["error"]["code"] == "rate_limited"
    assert "kvrouter_rate_limited_requests_total 1" in httpx.get(f"{router.url}/metrics", timeout=60).text
