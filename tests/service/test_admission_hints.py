"""What a request says of itself to admission, and its operator of tenants: headers, names, weights."""

from typing import Any

import pytest

from kvrouter.errors import (
    RequestError,
    SettingsError,
)
from kvrouter.settings import QueueSettings
from tests.service.inprocess import InProcess
from tests.service.waiting_fleet import TENANT, Fleet


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-kvrouter-priority", "high"),
        ("x-kvrouter-priority", "101"),
        ("x-kvrouter-priority", "1.5"),
        ("x-kvrouter-deadline-ms", "0"),
        ("x-kvrouter-deadline-ms", "soon"),
        ("x-kvrouter-deadline-ms", "86400001"),
        ("x-slo-ttft-ms", "-5"),
        ("x-kvrouter-tenant", "two words"),
        ("x-kvrouter-tenant", "x" * 129),
    ],
)
async def test_a_malformed_hint_is_refused(header: str, value: str) -> None:
    """400 names the header and what it takes."""
    fleet = Fleet(**TENANT)
    request = fleet.service.request("POST", "/v1/completions", {"model": "m", "prompt": [1]}, {header: value})

    with pytest.raises(RequestError) as caught:
        fleet.dispatcher.route(request, ())

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_header", header)


@pytest.mark.parametrize(
    ("tenant_by", "headers", "user", "tenant"),
    [
        ("api-key", {"authorization": "Bearer secret"}, "u", "key-2bb80d537b1d"),
        ("api-key", {"x-kvrouter-tenant": "t"}, "u", "anonymous"),
        ("header", {"authorization": "Bearer secret", "x-kvrouter-tenant": "t"}, "u", "t"),
        ("header", {}, "u", "anonymous"),
        ("user", {"x-kvrouter-tenant": "t"}, "u", "u"),
        ("user", {}, None, "anonymous"),
        ("user", {}, "two words", "user-a03f1d611645"),
    ],
)
async def test_a_tenant_is_told_by_what_the_settings_say(
    tenant_by: str, headers: dict[str, str], user: str | None, tenant: str
) -> None:
    """Keys are never shown, only what they hash to."""
    fleet = Fleet(tenant_by=tenant_by)
    fleet.sent()
    body = {"model": "m", "prompt": [1], "user": user}

    fleet.dispatcher.route(fleet.service.request("POST", "/v1/completions", body, headers), ())

    assert [each.tenant.name for each in fleet.admission.queue] == [tenant]


@pytest.mark.parametrize(
    ("queue", "named"),
    [
        ({"tenant_weights": ("a",)}, "'a'"),
        ({"tenant_weights": ("a=heavy",)}, "'a=heavy'"),
        ({"tenant_weights": ("a=0",)}, "0.001 to 1000"),
        ({"tenant_weights": ("=1",)}, "'=1'"),
        ({"tenant_weights": ("a=1", "a=2")}, "two weights"),
        ({"tenant_weights": ("a=nan",)}, "'a=nan'"),
        ({"tenant_by": "header", "tenant_header": ""}, "tenant_header"),
    ],
)
def test_shares_that_make_no_sense_end_the_start(queue: dict[str, Any], named: str) -> None:
    """Also where nothing is bounded yet: a misspelt weight should not wait to be found."""
    with pytest.raises(SettingsError, match=named):
        InProcess(queue=QueueSettings(**queue))


async def test_a_name_with_an_equals_sign_may_have_a_weight() -> None:
    """The last sign divides."""
    fleet = Fleet(**TENANT, tenant_weights=("team=blue=2",))
    fleet.sent()
    fleet.waiting("team=blue")

    assert [each.tenant.weight for each in fleet.admission.queue] == [2.0]
