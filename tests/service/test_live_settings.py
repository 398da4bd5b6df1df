"""Settings that change while the router runs, within one process: what takes effect, what stays, what is refused."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import SettingsError, ShedError
from kvrouter.routing.constraints import Constraints
from kvrouter.service.configuration.running import LIVE, SETTINGS, value_of
from kvrouter.service.proxy import Route
from kvrouter.settings import ConfigSettings, PlacementSettings, RoutingSettings, Settings
from kvrouter.settings_sources import Setting
from tests.service.inprocess import InProcess

OTHERS = {"routing.policy": "lmetric", "placement.zone": "east", "queue.tenant_header": "x-team"}


def other_value(setting: Setting) -> object:
    """A valid value that is not the default."""
    if setting.key in OTHERS:
        return OTHERS[setting.key]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.kind is bool:
        return not setting.default
    if setting.kind is tuple:
        return ["gold=2"]
    assert isinstance(setting.default, int | float)
    return setting.kind(setting.default + 1)


class Live(InProcess):
    """A service with one worker, whose settings change."""

    def __init__(self, **sections: Any) -> None:
        super().__init__(**sections)
        self.worker = self.add(url="http://a:1", worker_id="a", model="m", block_size=16)

    def change(self, **values: object) -> None:
        """Set these, `_` for the dot after the section, and give all others back."""
        named = {name.replace("_", ".", 1): value for name, value in values.items()}
        self.service.config.override(named, source="api")

    def ask(self, *, start: int = 0, headers: dict[str, str] | None = None) -> Any:
        """Route a completion."""
        body = {"model": "m", "prompt": list(range(start, start + 64)), "stream": True}
        return self.service.dispatcher.route(self.request("POST", "/v1/completions", body, headers), ())

    def sent(self, *, start: int = 0) -> Route:
        """Route one that need not wait."""
        found = self.ask(start=start)
        assert isinstance(found, Route)
        return found

    def waiting(self, *, start: int = 0) -> "asyncio.Future[Route]":
        """Route one that has to wait."""
        found = self.ask(start=start)
        assert isinstance(found, asyncio.Future)
        assert not found.done()
        return found

    def end(self, route: Route) -> None:
        """An answer has ended."""
        self.service.dispatcher.first_token(route)
        self.service.dispatcher.finished(route, "ok", None)


def test_every_live_setting_changes_and_comes_back() -> None:
    """What the reference calls live is accepted, in force, and as at the start again when it is taken back."""
    live = Live()
    running = live.service.config

    for key, setting in LIVE.items():
        changed = other_value(setting)
        running.override({key: changed}, source="api")
        now = value_of(live.service.settings, key)
        assert now == (tuple(changed) if isinstance(changed, list) else changed)
        assert running.origin(key) == "api"
        running.override({}, source="api")
        assert live.service.settings == Settings()
        assert running.origin(key) == "default"
    assert running.applied["api"] == 2 * len(LIVE)


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in LIVE])
def test_every_other_setting_takes_a_restart(key: str) -> None:
    """It is refused by its name, whatever the value."""
    live = Live()

    with pytest.raises(SettingsError, match=rf"^{key}: it takes a restart"):
        live.service.config.override({key: "1"}, source="api")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"queue.requests_max": 0}, "queue.requests_max: 0 is below the least, 1"),
        ({"limits.attempts_max": 17}, "limits.attempts_max: 17 is above the most, 16"),
        ({"log.level": "loud"}, "log.level: 'loud' is not one of debug, info, warning, error"),
        ({"limits.client_rate": "many"}, "limits.client_rate: 'many' is not a number"),
        ({"limits.client_rate": None}, "limits.client_rate: None is not a number"),
        ({"routing.policy": "fastest"}, "routing.policy: routing policy 'fastest' is unknown"),
        ({"routing.policy": "os:system"}, "routing.policy: a function of a module takes a restart"),
        ({"routing.polizy": "kv"}, "routing.polizy: there is no such setting; did you mean routing.policy?"),
        ({"queue.tenant_header": ""}, "queue.tenant_header: '' is not a name of 1 to 64 letters"),
        ({"queue.tenant_weights": ["a=0"]}, "queue.tenant_weights: 'a=0' is not TENANT=WEIGHT"),
        (["routing.policy"], "settings are an object of names and values"),
        ("kv", "settings are an object of names and values"),
    ],
)
def test_what_is_not_valid_changes_nothing(values: object, told: str) -> None:
    """Not even the valid part: the last good settings stay, and the setting is named."""
    live = Live()
    live.change(routing_policy="random", queue_rank_requests_max=3)
    good = live.service.settings
    if isinstance(values, dict):
        values = {"limits.idle_seconds": 5, **values}

    with pytest.raises(SettingsError) as refusal:
        live.service.config.override(values, source="store", revision=7)

    assert str(refusal.value).startswith(told)
    assert live.service.settings == good


def test_each_change_is_one_log_line_and_only_changes_are(caplog: pytest.LogCaptureFixture) -> None:
    """With before and after; what is set to what it is already is none."""
    live = Live(routing=RoutingSettings(policy="random"))

    with caplog.at_level(logging.INFO, "kvrouter.config"):
        live.change(routing_policy="kv", limits_attempts_max=3)
        live.change(routing_policy="kv")

    (line,) = caplog.records
    assert line.getMessage() == "setting_changed"
    assert line.fields == {  # type: ignore[attr-defined]
        "setting": "routing.policy",
        "before": "random",
        "after": "kv",
        "source": "api",
        "revision": None,
    }


def test_another_policy_keeps_what_is_booked_predicted_and_learnt() -> None:
    """Only who chooses is another one; what runs ends as it began."""
    live = Live()
    router = live.service.router
    first = live.sent()
    predicted = len(router.knowledge)
    load = router.book.load(live.worker.ranks[0])
    live.clock.now += 0.5
    live.service.dispatcher.first_token(first)
    learnt = router.learning.speeds.rates(live.worker.ranks[0])

    live.change(routing_policy="round-robin")
    second = live.sent(start=1000)

    assert second.token.decision.policy == "round-robin"  # type: ignore[attr-defined]
    assert first.token.decision.policy == "kv"  # type: ignore[attr-defined]
    assert load.active_requests == 2
    assert len(router.knowledge) > predicted > 0
    assert router.learning.speeds.rates(live.worker.ranks[0]) == learnt
    live.change()
    assert live.sent().token.decision.overlap_tokens == 48  # type: ignore[attr-defined]
    for route in (first, second):
        live.end(route)
    assert load.active_requests == 1


def test_a_policy_that_comes_back_remembers() -> None:
    """What `sticky` knows of its conversations is its own, and kept for it."""
    live = Live(routing=RoutingSettings(policy="sticky"))
    live.add(url="http://b:1", worker_id="b", model="m", block_size=16)
    said = {"x-kvrouter-session": "chat"}
    first = live.ask(headers=said)

    live.change(routing_policy="round-robin")
    others = {live.ask(start=1000 * n).worker_id for n in range(4)}
    live.change()

    assert others == {"a", "b"}
    assert {live.ask(start=5000 * n, headers=said).worker_id for n in range(3)} == {first.worker_id}


async def test_requests_begin_to_wait_when_a_bound_comes() -> None:
    """Those that were sent before count, and their end is room."""
    live = Live()
    first = live.sent()
    assert live.service.admission is None

    live.change(queue_rank_requests_max=1)
    second = live.waiting()
    live.end(first)

    assert second.result().worker_id == "a"
    live.end(second.result())
    assert live.service.router.book.load(live.worker.ranks[0]).active_requests == 0


async def test_who_waits_goes_when_the_bound_goes() -> None:
    """And from then on nothing of the queue is on the way of a request; its counts stay."""
    live = Live()
    live.change(queue_rank_requests_max=1)
    first, second, third = live.sent(), live.waiting(), live.waiting(start=1000)

    live.change(queue_rank_requests_max=2)
    assert (second.done(), third.done()) == (True, False)
    live.change()

    assert third.result().worker_id == "a"
    assert type(live.service.dispatcher).__name__ == "RequestDispatcher"
    assert live.service.admission is not None
    assert live.service.admission.counters.ended["admitted"] == 2
    for route in (first, second.result(), third.result()):
        live.end(route)
    assert not live.service.router.book.bookings


async def test_who_waits_for_a_worker_waits_on_when_there_are_no_bounds_any_more() -> None:
    """Nobody is forgotten in a queue that is not used any more."""
    live = Live()
    live.change(queue_rank_requests_max=1)
    first, second = live.sent(), live.waiting()
    live.service.registry.set_draining("a", draining=True, now=live.clock.now)

    live.change()
    assert not second.done()
    live.service.registry.set_draining("a", draining=False, now=live.clock.now)
    assert live.service.admission is not None
    live.service.admission.work()

    assert second.result().worker_id == "a"
    live.end(first)


async def test_weights_change_for_those_who_wait_too() -> None:
    """Shares are of now: what somebody weighs decides who is served next."""
    live = Live()
    live.change(queue_rank_requests_max=1, queue_tenant_by="header", queue_tenant_weights="gold=2,lead=0.5")
    live.sent()
    waiting = live.ask(start=1000, headers={"x-kvrouter-tenant": "gold"})
    queue = live.service.admission.queue  # type: ignore[union-attr]

    live.change(queue_rank_requests_max=1, queue_tenant_by="header", queue_tenant_weights="gold=3")

    assert [each.tenant.weight for each in queue] == [3.0]
    assert not waiting.done()
    assert queue.ahead("silver", next(iter(queue.lanes())), 1e9) > 0
    waiting.cancel()
    await asyncio.sleep(0)
    assert queue.requests == 0


def test_clients_are_held_to_another_rate_and_the_count_goes_on() -> None:
    """Also when there was none, and when there is none any more."""
    live = Live()
    asked = live.request("POST", "/v1/completions", {})
    live.change(limits_client_rate=1)
    live.service.dispatcher.admit(asked)
    with pytest.raises(ShedError):
        live.service.dispatcher.admit(asked)

    live.change(limits_client_rate=1, limits_idle_seconds=5)
    with pytest.raises(ShedError):
        live.service.dispatcher.admit(asked)
    live.change(limits_client_rate=2, limits_client_burst=1)
    live.service.dispatcher.admit(asked)
    with pytest.raises(ShedError):
        live.service.dispatcher.admit(asked)
    live.change()
    live.service.dispatcher.admit(asked)

    assert live.service.rates is not None
    assert live.service.rates.refused == 3
    assert "kvrouter_rate_limited_requests_total 3.0" in live.service.metrics.text().decode()


def test_conversations_stay_and_those_too_many_go() -> None:
    """The longest idle ones first."""
    live = Live(placement=PlacementSettings(sessions="prefer"))
    for name in ("one", "two", "three"):
        live.end(live.ask(headers={"x-kvrouter-session": name}))
        live.clock.now += 1
    sessions = live.service.sessions
    assert sessions is not None

    live.change(placement_sessions_max=2)

    assert len(sessions) == 2
    assert sessions.close("one") == 0
    assert sessions.counts.evicted == 1


def test_requests_prefer_another_zone() -> None:
    """Also those whose headers were read before."""
    live = Live()
    labelled = {"x-kvrouter-require": "gpu"}
    assert live.service.placement.headers(live.request("GET", "/", headers=labelled).asked).zone is None  # type: ignore[union-attr]

    live.change(placement_zone="east", placement_zone_seconds=2)

    assert live.service.router.fleet.defaults == Constraints(zone="east", zone_seconds=2.0)
    read = live.service.placement.headers(live.request("GET", "/", headers=labelled).asked)
    assert read is not None
    assert (read.zone, read.zone_seconds) == ("east", 2.0)


def test_the_last_decisions_are_kept_when_fewer_are() -> None:
    """And more come when there is more room again."""
    live = Live()
    for n in range(3):
        live.end(live.sent(start=1000 * n))
    live.change(routing_decisions_kept=1)

    assert len(live.service.decisions._entries) == 1
    assert live.service.decisions.recorded == 3


def test_health_checks_come_as_often_as_is_said_now() -> None:
    """Who would be looked at in an hour is looked at within a second."""
    live = Live()
    live.worker.next_check_at = live.clock.now + 3600
    live.change(health_interval_seconds=1, health_failures=1)
    assert live.worker.next_check_at == live.clock.now + 1

    live.service.registry.check_failed(live.worker, "no answer", now=live.clock.now)

    assert live.worker.health == "unhealthy"


def test_the_log_level_comes_back_as_it_was() -> None:
    """The one of the start may have been another than that of the setting, by a variable of its own."""
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(logging.ERROR)
        live = Live()
        live.change(log_level="debug")
        changed = root.level
        live.change()
        assert (changed, root.level) == (logging.DEBUG, logging.ERROR)
    finally:
        root.setLevel(before)


def test_the_data_plane_has_other_limits() -> None:
    """One object for connections, exchanges and the pool."""
    live = Live()
    live.change(limits_attempts_max=1, limits_body_bytes_max=2048, server_route_headers=False, server_drain_seconds=1)

    limits = live.service.proxy._plane.limits
    assert (limits.attempts_max, limits.body_bytes_max, limits.route_headers) == (1, 2048, False)
    assert live.service.pool._limits is limits
    assert live.service.settings.server.drain_seconds == 1.0


def test_the_store_of_settings_is_named_shared_or_none(tmp_path: Path) -> None:
    """Nobody who looks for workers in a store has to take settings from there."""
    named = Live(config=ConfigSettings(store=str(tmp_path)))
    none = Live(config=ConfigSettings(store="off"))

    assert (named.service.config_key is None, none.service.config_key) == (False, None)
    assert Live().service.config_key is None
