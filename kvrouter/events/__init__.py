"""The event model and its wires: what engines say about the KV blocks that they hold.

Light on purpose: publishers import this inside engine processes, so nothing
here loads more than the standard library and msgpack.
"""

from kvrouter.events.decode import decode_batch, peek_timestamp
from kvrouter.events.encode import encode_batch
from kvrouter.events.envelope import Envelope, decode_envelope, encode_envelope, is_envelope
from kvrouter.events.frames import ReplayData, ReplayEnd, parse_live, parse_replay
from kvrouter.events.model import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    PoolObject,
    Source,
)
from kvrouter.events.namespaces import BlockNamespaces, Namespace, block_namespaces
from kvrouter.events.tiers import TIERS, tier_of

__all__ = [
    "TIERS",
    "AllBlocksCleared",
    "BlockNamespaces",
    "BlockRemoved",
    "BlockStored",
    "Envelope",
    "Event",
    "EventBatch",
    "Namespace",
    "PoolObject",
    "ReplayData",
    "ReplayEnd",
    "Source",
    "block_namespaces",
    "decode_batch",
    "decode_envelope",
    "encode_batch",
    "encode_envelope",
    "is_envelope",
    "parse_live",
    "parse_replay",
    "peek_timestamp",
    "tier_of",
]
