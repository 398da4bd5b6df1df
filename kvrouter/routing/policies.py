"""All policies by name: the built-in ones, those of installed packages, and any function of a module."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final, TypeAlias, cast

from kvrouter import native_core
from kvrouter.routing.balancing import LeastLoadedPolicy, PowerOfTwoPolicy, RandomPolicy, RoundRobinPolicy
from kvrouter.routing.hashing import PrefixHashPolicy, StickyPolicy
from kvrouter.routing.kv import KvPolicy, NativeKvPolicy
from kvrouter.routing.policy import Policy
from kvrouter.routing.published import CacheAwareThresholdPolicy, DynamoCostPolicy, LmetricPolicy, weighted
from kvrouter.routing.settings import RoutingSettings

__all__ = ["ENTRY_POINTS", "POLICIES", "MakePolicy", "make_policy"]

MakePolicy: TypeAlias = Callable[[RoutingSettings, int], Policy]
"""Makes a policy from settings and a seed."""

ENTRY_POINTS: Final = "kvrouter.policies"
"""Group of entry points under which packages offer theirs."""

POLICIES: Mapping[str, MakePolicy] = MappingProxyType(
    {
        "kv": lambda settings, _: (NativeKvPolicy if native_core.present else KvPolicy)(settings),
        "round-robin": lambda _, __: RoundRobinPolicy(),
        "random": lambda _, seed: RandomPolicy(seed),
        "least-loaded": lambda _, __: LeastLoadedPolicy(),
        "power-of-two": lambda _, seed: PowerOfTwoPolicy(seed),
        "sticky": lambda settings, _: StickyPolicy(settings),
        "prefix-hash": lambda settings, _: PrefixHashPolicy(settings),
        "lmetric": lambda _, __: LmetricPolicy(),
        "weighted": lambda _, __: weighted(),
        "dynamo-cost": DynamoCostPolicy,
        "cache-aware-threshold": lambda _, __: CacheAwareThresholdPolicy(),
    }
)


def make_policy(name: str, settings: RoutingSettings, *, seed: int = 0) -> Policy:
    """The policy of that name.

    A name is that of a built-in policy, or of an entry point, or `package.module:function`; the function is called
    with the settings and the seed.

    Raises:
        ValueError: there is none of that name, and the text lists the known ones; or it cannot be loaded.
    """
    make = POLICIES.get(name)
    if make is None:
        make = _entry_point(name) or _function(name)
    return make(settings, seed)


def _entry_point(name: str) -> MakePolicy | None:
    for found in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return cast("MakePolicy", found.load())
        except (ImportError, AttributeError) as error:
            raise ValueError(f"routing policy {name!r} ({found.value}) cannot be loaded: {error}") from error
    return None


def _function(name: str) -> MakePolicy:
    module, colon, function = name.partition(":")
    if not colon:
        offered = sorted(each.name for each in entry_points(group=ENTRY_POINTS))
        known = ", ".join([*POLICIES, *offered])
        raise ValueError(f"routing policy {name!r} is unknown; known: {known}, or package.module:function")
    try:
        return cast("MakePolicy", getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"routing policy {name!r} cannot be loaded: {error}") from error
