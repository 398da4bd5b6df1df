"""Routing: who gets a request. Load book, cost model, policies and the router that joins them; all pure.

Public: `Router` and what its interface mentions. Policies choose among `FleetRank`s; see `policy.py` for how to
write one.
"""

from kvrouter.routing.decision import Candidate, Decision
from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.load import LoadBook, RankLoad
from kvrouter.routing.pipeline import Pipeline, free_blocks, free_queue, overlap_share, softmax
from kvrouter.routing.policies import ENTRY_POINTS, POLICIES, make_policy
from kvrouter.routing.policy import Choice, Policy, Request
from kvrouter.routing.potential import PotentialLoad
from kvrouter.routing.router import Router
from kvrouter.routing.settings import RoutingSettings

__all__ = [
    "ENTRY_POINTS",
    "POLICIES",
    "Candidate",
    "Choice",
    "Decision",
    "FleetRank",
    "LoadBook",
    "Pipeline",
    "Policy",
    "PotentialLoad",
    "RankLoad",
    "Request",
    "Router",
    "RoutingSettings",
    "free_blocks",
    "free_queue",
    "make_policy",
    "overlap_share",
    "softmax",
]
