"""Which side answers a request: the service on NATS, or the HTTP service from before. Shares that change at run time.

The shares of a route are a small JSON object in a watched store, so that all gateways follow one change; where the
store has none, those of the route table hold. A caller stays on its side: who it is decides, and raising the share of
NATS only ever moves callers to NATS.
"""

import asyncio
import logging
import math
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from kvrouter.errors import GatewayError, StoreError
from kvrouter.gateway.calls import Call
from kvrouter.gateway.route_table import Route, RouteTable
from kvrouter.service.logs import log_event
from kvrouter.store.key_values import Entry, KeyValueBucket, Synced

__all__ = ["BUCKET", "Cutover", "Shares", "bucket_of"]

BUCKET: Final = "gateway"
_PREFIX = "cutover/"
_BUCKETS = 10_000
_AGAIN_SECONDS = 5.0

_log = logging.getLogger("kvrouter.gateway")


class Shares(NamedTuple):
    """The share of requests that NATS answers, and the share of which the other side gets a copy; 0 to 1."""

    nats: float
    shadow: float


def bucket_of(route: str, who: str) -> int:
    """Return where a caller stands among all, from 0 to 9999: always the same for one route."""
    return int(xxhash.xxh3_64_intdigest(f"{route}\0{who}".encode()) % _BUCKETS)


class Cutover:
    """The shares of all routes."""

    def __init__(self, table: RouteTable, bucket: KeyValueBucket) -> None:
        self._routes = {route.name: route for route in table}
        self._bucket = bucket
        self._shares = {route.name: _of_table(route) for route in table}
        self._revisions: dict[str, int] = {}
        self.synced = asyncio.Event()
        self.refused = 0

    @property
    def is_needed(self) -> bool:
        """Whether any route has another side."""
        return any(route.legacy is not None for route in self._routes.values())

    def shares(self) -> dict[str, Shares]:
        """Return the shares of all routes as they are now."""
        return dict(self._shares)

    def goes_to_nats(self, call: Call) -> bool:
        """Say which side answers a call: its user's, else its key's; one that has neither goes by chance."""
        share = self._shares[call.route.name].nats
        if share >= 1 or share <= 0:
            return share >= 1
        who = call.caller.user_id or call.key or call.request_id
        return bucket_of(call.route.name, who) < share * _BUCKETS

    def is_shadowed(self, call: Call) -> bool:
        """Say whether the other side gets a copy of a call."""
        share = self._shares[call.route.name].shadow
        return share > 0 and call.route.may_be_shadowed and bucket_of("shadow", call.request_id) < share * _BUCKETS

    async def change(self, name: str, values: object) -> Shares:
        """Set some shares of a route for all gateways; returns them all.

        Raises:
            GatewayError: there is no such route, or these cannot be its shares; 503, the store cannot be reached.
        """
        route = self._route(name)
        shares = _checked(route, values, self._shares[name])
        try:
            revision = await self._bucket.put(_PREFIX + name, msgspec.json.encode(shares._asdict()))
        except StoreError as error:
            raise _store_failed(error) from None
        self._revisions[name] = max(revision, self._revisions.get(name, 0))
        self._set(name, shares)
        return shares

    async def reset(self, name: str) -> Shares:
        """Go back to the shares of the route table; raises as `change`."""
        route = self._route(name)
        try:
            await self._bucket.delete(_PREFIX + name)
        except StoreError as error:
            raise _store_failed(error) from None
        self._set(name, _of_table(route))
        return self._shares[name]

    async def run(self) -> None:
        """Follow the store for ever; what it said last holds while it cannot be reached."""
        while True:
            try:
                await self._follow()
            except StoreError as error:
                log_event(_log, logging.ERROR, "cutover_store_failed", reason=error.reason, error=str(error))
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self) -> None:
        async with aclosing(self._bucket.watch(_PREFIX)) as news:  # type: ignore[type-var]
            async for change in news:
                if isinstance(change, Synced):
                    self.synced.set()
                else:
                    name, entry = change.key.removeprefix(_PREFIX), change.entry
                    if entry is None or entry.revision < self._revisions.get(name, 0):
                        # Older than what was set here since, or of a store that lost its data and counts anew: it
                        # knows what holds.
                        entry = await self._bucket.get(change.key)
                    self._heard(name, entry)

    def _heard(self, name: str, entry: Entry | None) -> None:
        route = self._routes.get(name)
        if route is None:
            return  # Of a table that another gateway has.
        if entry is None:
            self._revisions.pop(name, None)
            self._set(name, _of_table(route))
            return
        self._revisions[name] = entry.revision
        try:
            self._set(name, _checked(route, msgspec.json.decode(entry.value), _of_table(route)))
        except (msgspec.DecodeError, GatewayError) as error:
            self.refused += 1
            log_event(_log, logging.ERROR, "cutover_refused", route=name, error=str(error))

    def _set(self, name: str, shares: Shares) -> None:
        if self._shares[name] != shares:
            self._shares[name] = shares
            log_event(_log, logging.INFO, "cutover", route=name, nats=shares.nats, shadow=shares.shadow)

    def _route(self, name: str) -> Route:
        route = self._routes.get(name)
        if route is None:
            raise GatewayError(f"there is no route {name!r}", status=404, code="NOT_FOUND")
        return route


def _of_table(route: Route) -> Shares:
    return Shares(route.cutover, route.shadow)


def _checked(route: Route, values: object, before: Shares) -> Shares:
    """Read what somebody wants the shares to be; what is not named stays."""
    if not isinstance(values, dict) or not values or not set(values) <= set(Shares._fields):
        raise _invalid('shares are an object such as {"nats": 0.1, "shadow": 0}')
    shares = before._replace(**{name: _share(name, value) for name, value in values.items()})
    if route.legacy is None and shares.nats != 1:
        raise _invalid(f"route {route.name} has no `legacy` side to answer the other requests")
    if shares.shadow and not route.may_be_shadowed:
        raise _invalid(f"route {route.name} is neither `repeatable` nor `dry_run`, or has no `legacy` side")
    return shares


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise _invalid(f"{name} must be a number from 0 to 1")
    return float(value)


def _invalid(message: str) -> GatewayError:
    return GatewayError(message, status=400, code="INVALID_ARGUMENT")


def _store_failed(error: StoreError) -> GatewayError:
    return GatewayError(f"the store: {error}", status=503, code="UNAVAILABLE", retry_after_seconds=5)
