"""How much one source may make us remember; every bound has a counter in `SourceStatus`."""

from dataclasses import dataclass

__all__ = ["IngestLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """Bounds per source.

    `idle_hashes_max`: engine hashes kept after their last copy is gone, for children and other tiers.
    `orphan_blocks_max`: blocks that wait for a parent nobody announced yet.
    `unresolved_hashes_max`: blocks known by hash alone, whose tokens were not announced yet.
    `buffered_batches_max`, `buffered_bytes_max`: live batches that wait for a replay to fill a gap.
    `snapshot_seconds_max`: how long a snapshot that was asked for is awaited before the source goes on without.
    `block_size`: tokens per block assumed where neither the worker's description nor an event says.
    """

    idle_hashes_max: int = 32_768
    orphan_blocks_max: int = 16_384
    unresolved_hashes_max: int = 65_536
    buffered_batches_max: int = 20_000
    buffered_bytes_max: int = 256 << 20
    replay_attempts_max: int = 3
    snapshot_seconds_max: float = 30.0
    block_size: int = 16
