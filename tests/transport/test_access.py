"""Who may ask, over every transport: tokens, what they open, how often they may be used; typed refusals, counted."""

import logging
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from prometheus_client import CollectorRegistry

from kvrouter.errors import PermissionDeniedError, RateLimitedError, SettingsError, UnauthenticatedError
from kvrouter.transport.access import AccessGuard, ApiKey, Peer, StaticKeys, with_token
from kvrouter.transport.envelope import Envelope, encode_envelope
from kvrouter.transport.envelope_mux import new_stream_id
from kvrouter.transport.grpc_messages import METHOD, SERVICE, encode_message
from kvrouter.transport.messages import Kind, Request, encode_request
from kvrouter.transport.metrics import WorkHandlerMetrics
from kvrouter.transport.rate_limit import TokenBuckets
from tests.servers import NatsServer
from tests.transport.conformance import run
from tests.transport.secured import WAYS, Secured, Ways

KEYS = StaticKeys(
    [
        ApiKey(name="blue", key="key-of-blue"),
        ApiKey(name="green", key="key-of-green", endpoints=frozenset({"other"})),
    ]
)


@pytest.fixture
def ways(nats: NatsServer) -> Ways:
    """What every transport needs."""
    return Ways(nats=nats.url)


# -- over every transport --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_known_token_is_taken_and_told_to_nobody(way: str, ways: Ways, caplog: pytest.LogCaptureFixture) -> None:
    """A-140: the handler knows who asks, and does not see the token; no log has it."""
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with Secured.started(way, ways, AccessGuard(authorise=KEYS)) as served:
            assert await served.ask(served.client("key-of-blue")) == "blue"
            assert [dict(context.headers) for context in served.seen] == [{}]

    run(scenario())
    assert "key-of-blue" not in caplog.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("token", [None, "key-of-red"])
def test_who_shows_no_good_token_is_refused(way: str, token: str | None, ways: Ways) -> None:
    """A-140: with an error of its own, before anything is done, and it counts."""

    async def scenario() -> None:
        async with Secured.started(way, ways, AccessGuard(authorise=KEYS)) as served:
            with pytest.raises(UnauthenticatedError) as refusal:
                await served.ask(served.client(token))
            assert refusal.value.code == "UNAUTHENTICATED"
            assert not refusal.value.retryable
            assert "key-of" not in str(refusal.value)
            assert served.seen == []
            assert served.endpoints.counters.refused_unauthenticated >= 1

    run(scenario())


@pytest.mark.parametrize("way", WAYS)
def test_a_key_opens_what_it_is_for(way: str, ways: Ways) -> None:
    """A-140: who is known and may not is told so."""

    async def scenario() -> None:
        async with Secured.started(way, ways, AccessGuard(authorise=KEYS)) as served:
            client = served.client("key-of-green")
            assert await served.ask(client, "other") == "green"
            with pytest.raises(PermissionDeniedError, match="green"):
                await served.ask(client)
            assert served.endpoints.counters.refused_denied == 1

    run(scenario())


@pytest.mark.parametrize("way", WAYS)
def test_a_token_may_change_while_a_client_lives(way: str, ways: Ways) -> None:
    """A-140: what returns it is asked for every request, also where a connection has said an older one."""
    tokens = ["key-of-blue"]

    async def scenario() -> None:
        async with Secured.started(way, ways, AccessGuard(authorise=KEYS)) as served:
            client = served.client(lambda: tokens[-1])
            assert await served.ask(client, "other") == "blue"
            tokens.append("key-of-green")
            assert await served.ask(client, "other") == "green"
            tokens.append("key-of-red")
            with pytest.raises(UnauthenticatedError):
                await served.ask(client, "other")

    run(scenario())


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_asks_too_often_is_told_when_it_may_again(way: str, ways: Ways) -> None:
    """A-141: by its name; others are not held up, and no other worker is tried."""
    now = [0.0]
    limit = TokenBuckets(per_second=0.5, burst=2)
    guard = AccessGuard(authorise=KEYS, rate_limit=limit, clock=lambda: now[0])

    async def scenario() -> None:
        async with Secured.started(way, ways, guard) as served:
            blue, green = served.client("key-of-blue"), served.client("key-of-green")
            for _ in range(2):
                assert await served.ask(blue) == "blue"
            with pytest.raises(RateLimitedError) as refusal:
                await served.ask(blue)
            assert refusal.value.retry_after_seconds == 2.0
            assert (refusal.value.code, refusal.value.retryable) == ("RESOURCE_EXHAUSTED", False)
            assert await served.ask(green, "other") == "green"
            now[0] = 2.0
            assert await served.ask(blue) == "blue"
            assert (served.endpoints.counters.refused_rate, limit.refused) == (1, 1)

    run(scenario())


@pytest.mark.parametrize("way", WAYS)
def test_without_names_addresses_are_counted(way: str, ways: Ways) -> None:
    """A-141: where nobody is asked for a token; over NATS connections are what can be told apart."""
    limit = TokenBuckets(per_second=0.001, burst=1)
    guard = AccessGuard(rate_limit=limit, clock=lambda: 0.0)

    async def scenario() -> None:
        async with Secured.started(way, ways, guard) as served:
            client = served.client()
            assert await served.ask(client) == "nobody"
            with pytest.raises(RateLimitedError):
                await served.ask(client)
            (bucket,) = limit._buckets
            assert bucket.startswith("@_INBOX." if "nats" in way else "@127.0.0.1")

    run(scenario())


# -- the parts -------------------------------------------------------------------------------------------------------


def test_a_bucket_fills_up_to_its_burst() -> None:
    """A-141: a request costs one token; time gives them back, never more than fit."""
    buckets = TokenBuckets(per_second=2, burst=3)

    assert [buckets.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("a", 0.5) == 0
    assert buckets.take("a", 0.75) == 0.25
    assert [buckets.take("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", 100.0) == 0


def test_of_too_many_clients_the_idlest_is_forgotten() -> None:
    """A-141: memory has a bound, whatever names clients bring."""
    buckets = TokenBuckets(per_second=0.001, burst=1, clients_max=2)
    for client in ("a", "b", "a", "c"):
        buckets.take(client, 0.0)

    assert len(buckets) == 2
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0


@pytest.mark.parametrize(
    "numbers",
    [
        {"per_second": 0.0},
        {"per_second": float("nan")},
        {"per_second": 1.0, "burst": 0.5},
        {"per_second": float("inf")},
    ],
)
def test_a_rate_that_lets_nobody_in_is_an_error(numbers: dict[str, Any]) -> None:
    """A-141: when it is set, not when the first client comes."""
    with pytest.raises(SettingsError, match="rate limit"):
        TokenBuckets(**numbers)


@pytest.mark.parametrize("keys", [{}, {"a": ""}, [ApiKey(name="a", key="x"), ApiKey(name="a", key="y")]])
def test_keys_that_cannot_be_meant_are_an_error(keys: Any) -> None:
    """A-140: none at all would mean that everybody is refused."""
    with pytest.raises(SettingsError, match="API keys"):
        StaticKeys(keys)


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", "Basic key-of-blue", "key-of-blue", "Bearer key-of-blu"]
)
def test_only_a_bearer_token_counts(shown: str | None) -> None:
    """A-140: as RFC 6750 writes it."""
    with pytest.raises(UnauthenticatedError):
        AccessGuard(authorise=KEYS).identify(Peer("", shown))


def test_what_a_request_says_itself_counts_before_what_its_connection_said() -> None:
    """A-140: proxies share connections among clients."""
    guard, peer = AccessGuard(authorise=KEYS), Peer("", "Bearer key-of-green")

    assert guard.identify(peer).name == "green"
    assert guard.identify(peer, {}).name == "green"
    assert guard.identify(peer, with_token({}, "key-of-blue")).name == "blue"
    assert with_token({"authorization": "Bearer x"}, "key-of-blue") == {"authorization": "Bearer x"}


def test_secrets_are_in_no_text() -> None:
    """A-140: what is printed or logged by mistake tells nothing."""
    assert "key-of" not in repr(ApiKey(name="blue", key="key-of-blue")) + repr(Peer("", "Bearer key-of-blue"))


# -- as others see it ------------------------------------------------------------------------------------------------


def test_refusals_are_statuses_of_http() -> None:
    """A-140, A-141: 401, 403, and 429 with the seconds, rounded up, for whoever does not speak our protocol."""
    guard = AccessGuard(authorise=KEYS, rate_limit=TokenBuckets(per_second=0.4, burst=2), clock=lambda: 0.0)
    body = encode_request(Request(endpoint="who"), id="r", headers={})

    async def scenario() -> None:
        async with Secured.started("http", Ways(), guard) as served, httpx.AsyncClient(timeout=60) as http:

            async def post(token: str) -> httpx.Response:
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
                return await http.post(f"{served.server.address}/who", content=body, headers=headers)

            unknown, denied = await post("key-of-red"), await post("key-of-green")
            assert (unknown.status_code, unknown.headers["www-authenticate"]) == (401, "Bearer")
            assert unknown.json()["error"]["code"] == "UNAUTHENTICATED"
            assert (denied.status_code, denied.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
            await post("key-of-green")
            often = await post("key-of-green")
            assert (often.status_code, often.headers["retry-after"]) == (429, "3")

    run(scenario())


def test_probes_need_no_token() -> None:
    """A-140, A-164: a kubelet has none; it is told whether the worker is ready, and not what it serves."""

    async def scenario() -> None:
        async with Secured.started("http", Ways(), AccessGuard(authorise=KEYS)) as served, httpx.AsyncClient() as http:
            answer = await http.get(f"{served.server.address}/health", timeout=60)
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
            assert (await http.post(f"{served.server.address}/health", timeout=60)).status_code == 401

    run(scenario())


def test_refusals_are_statuses_of_grpc() -> None:
    """A-140, A-141: the call ends with the code, beside the envelope that says it."""
    guard = AccessGuard(authorise=KEYS, rate_limit=TokenBuckets(per_second=0.1, burst=1), clock=lambda: 0.0)
    request = encode_request(Request(endpoint="who"), id="r", headers={})

    async def scenario() -> None:
        async with (
            Secured.started("grpc", Ways(), guard) as served,
            grpc.aio.insecure_channel(served.server.address) as channel,
        ):
            for token, code in (
                ("red", grpc.StatusCode.UNAUTHENTICATED),
                ("green", grpc.StatusCode.PERMISSION_DENIED),
                ("green", grpc.StatusCode.RESOURCE_EXHAUSTED),
            ):
                envelope = encode_envelope(Envelope(Kind.REQUEST, new_stream_id(), 0, request))
                metadata = (("authorization", f"Bearer key-of-{token}"),)
                begin = channel.stream_stream(f"/{SERVICE}/{METHOD}")
                call = begin(iter([encode_message(envelope)]), metadata=metadata)
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    async for _ in call:
                        pass
                assert failure.value.code() is code

    run(scenario())


def test_refusals_are_counted_for_prometheus() -> None:
    """A-140, A-141: by reason, read from whoever has let nobody in."""
    registry = CollectorRegistry()
    metrics = WorkHandlerMetrics(registry)
    guard = AccessGuard(authorise=KEYS, rate_limit=TokenBuckets(per_second=0.1, burst=1), clock=lambda: 0.0)

    async def scenario() -> None:
        async with Secured.started("http", Ways(), guard) as served:
            metrics.refusals(served.endpoints)
            for token, error in (
                ("key-of-red", UnauthenticatedError),
                ("key-of-green", PermissionDeniedError),
                ("key-of-green", RateLimitedError),
                ("key-of-green", RateLimitedError),
            ):
                with pytest.raises(error):
                    await served.ask(served.client(token))

    run(scenario())
    counted = {
        reason: registry.get_sample_value("work_handler_refused_total", {"reason": reason})
        for reason in ("unauthenticated", "permission_denied", "rate_limited", "unknown_key")
    }
    assert counted == {"unauthenticated": 1, "permission_denied": 1, "rate_limited": 2, "unknown_key": 0}
