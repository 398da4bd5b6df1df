"""Where a rank's blocks lie, and how its cache is divided, as its events tell; judged exactly as consumers judge it.

The rules are those of `kvrouter.ingest`, which is too heavy for an engine's process: a block counts per tier and group
of layers, and one kind of event names blocks without a new copy. Nothing here holds blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from kvrouter.events import BlockRemoved, BlockStored, tier_of
from kvrouter.events.envelope import MEDIUM_BYTES_MAX

__all__ = ["Layout", "Place", "Places"]

Place = tuple[str, int]
"""Tier and group of layers."""

_GROUPS_MAX: Final = 256
_HOST_MEDIUM: Final = "CPU_PINNED"
_FULL_KINDS: Final = frozenset(["full_attention", "mla_attention", "sink_full_attention", "chunked_local_attention"])


class Places:
    """Sorts events by place, and remembers what their media are called."""

    __slots__ = ("clears_all_tiers", "media")

    def __init__(self) -> None:
        self.media: dict[Place, str | None] = {}
        self.clears_all_tiers = False

    def place(self, event: BlockStored | BlockRemoved) -> Place | None:
        """Return where the blocks of `event` are; None if consumers do not count them."""
        group = event.group_idx or 0
        tier = tier_of(event.medium)
        if event.locality == "REMOTE" or not 0 <= group < _GROUPS_MAX or tier is None:
            return None
        place = (tier, group)
        if event.medium == _HOST_MEDIUM:
            self.clears_all_tiers = True  # SGLang's name for its host tier, which a reset of its tree empties too.
            self.media[place] = _HOST_MEDIUM
        elif place not in self.media:
            long = event.medium is not None and len(event.medium.encode()) > MEDIUM_BYTES_MAX
            self.media[place] = tier.upper() if long else event.medium
        return place

    def is_cleared(self, place: Place) -> bool:
        """Whether `AllBlocksCleared` empties `place`: vLLM means its GPU blocks, SGLang its whole tree."""
        return self.clears_all_tiers or place[0] == "gpu"

    def has_others(self) -> bool:
        """Whether blocks are elsewhere too than in the first group on the GPU: there they may come by hash alone."""
        return any(place != ("gpu", 0) for place in self.media)

    def markers(self) -> list[BlockStored]:
        """Return events without blocks that tell consumers what `clears_all_tiers` says."""
        return [BlockStored(block_hashes=(), medium=_HOST_MEDIUM)] if self.clears_all_tiers else []

    def copy(self) -> "Places":
        """Return another that knows the same."""
        copied = Places()
        copied.media, copied.clears_all_tiers = dict(self.media), self.clears_all_tiers
        return copied


@dataclass(slots=True)
class _Group:
    kind: str | None
    block_size: int
    window: int | None


class Layout:
    """The groups of layers that stores on the GPU have shown, and how these stores name blocks.

    `names_namespaces`: they tell salts and items, so that a store elsewhere that does not must not be believed.
    """

    __slots__ = ("_groups", "_repeats", "names_namespaces")

    def __init__(self) -> None:
        self.names_namespaces = False
        self._groups: dict[int, _Group] = {}
        self._repeats = False

    def copy(self) -> "Layout":
        """Return another that knows the same."""
        copied = Layout()
        copied.names_namespaces, copied._repeats = self.names_namespaces, self._repeats
        copied._groups = {index: replace(group) for index, group in self._groups.items()}
        return copied

    def observe(self, event: BlockStored) -> None:
        """Learn from one store; consumers learn from all stores of a batch before they follow any event of it."""
        index = event.group_idx or 0
        if not event.block_size or not 0 <= index < _GROUPS_MAX or tier_of(event.medium) != "gpu":
            return
        kind, size, window = event.kv_cache_spec_kind, event.block_size, event.kv_cache_spec_sliding_window
        known = self._groups.get(index)
        if known is None:
            self._groups[index] = _Group(kind, size, window)
        elif known.kind is None and kind is not None:
            known.kind, known.window, known.block_size = kind, window, max(size, known.block_size)
        elif size > known.block_size:
            known.block_size = size

    def believes(self, event: BlockStored, place: Place) -> bool:
        """Whether consumers take what a store says of its blocks, now that they have followed all before it."""
        if place[0] == "gpu":
            self.names_namespaces |= event.extra_keys is not None and bool(event.token_ids)
            return True
        # Offloaded copies are described without salt and items.
        return not self.names_namespaces or event.extra_keys is not None or event.sequence_hashes is not None

    def markers(self) -> list[BlockStored]:
        """Return events without blocks that tell the layout before any block is named, if it has to be told."""
        if all(group.kind is None for group in self._groups.values()):
            return []
        return [
            BlockStored(
                block_hashes=(),
                block_size=group.block_size,
                medium="GPU",
                group_idx=index or None,
                kv_cache_spec_kind=group.kind,
                kv_cache_spec_sliding_window=group.window,
            )
            for index, group in sorted(self._groups.items())
        ]

    def is_repetition(self, event: BlockStored, held: Callable[[int], bool]) -> bool:
        """Whether vLLM repeats what it holds because a request asked for `kv_cache_report_mode: full`.

        No copy is made then. With full attention alone a real store never begins at the root and names only blocks
        that are all there; one block alone does, so it counts as a repetition once longer ones were seen.
        """
        if event.parent_block_hash is not None or event.kv_cache_spec_kind is None or len(self._groups) != 1:
            return False
        (group,) = self._groups.values()
        if group.kind not in _FULL_KINDS or not all(map(held, event.block_hashes)):
            return False
        self._repeats = self._repeats or len(event.block_hashes) > 1
        return self._repeats
