"""Events without token ids, for deployments in which events must not reveal prompts: the publishing side.

Each stored block is named by our own sequence hash instead of its tokens, so that a consumer needs neither tokens nor
parents. Computing it takes what the router computes it with, hence `kvrouter[router]`; the light core that engines
import only carries the result. This hides prompts from who reads along; it is no secret to who can guess one: the
hashes are public functions of the tokens, and a guess can be checked against them.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, tier_of
from kvrouter.ingest.aliases import AliasMap

__all__ = ["HashOnly"]

_HASHES_MAX: Final = 1 << 20


class HashOnly:
    """Rewrites one rank's events, in order, to their hash-only form.

    A block whose hash cannot be told goes out without one, and nobody will claim it: its parent was never seen or is
    forgotten (`hashes_max` engine hashes are remembered, the least recently announced are forgotten first), it has
    another size than the rank's first blocks, its hash also covers tokens after it, or it was placed by tokens of
    more blocks than it names. `untold_blocks` counts them. Not thread-safe.
    """

    def __init__(self, *, hashes_max: int = _HASHES_MAX) -> None:
        if hashes_max < 1:
            raise ValueError(f"hashes_max is {hashes_max}; it must be at least 1")
        self.untold_blocks = 0
        self._aliases = AliasMap()
        self._block_size = 0
        self._hashes_max = hashes_max
        self._names_namespaces = False
        self._recent: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent)

    def name_adapter(self, lora_id: int, name: str) -> None:
        """Say which LoRA adapter `lora_id` is, for engines whose events name none."""
        self._aliases.name_adapter(lora_id, name)

    def rewrite(self, events: Iterable[Event]) -> tuple[Event, ...]:
        """Return `events` without anything of a prompt: no tokens, salts, sessions, items or adapters' names."""
        return tuple(self._rewrite(event) for event in events)

    def restart(self) -> None:
        """Forget everything: the engine began another life."""
        self._aliases.clear()
        self._recent.clear()
        self._block_size = 0
        self._names_namespaces = False

    def _rewrite(self, event: Event) -> Event:
        if isinstance(event, BlockRemoved):
            return replace(event, ownership=None, pool=None)
        if isinstance(event, AllBlocksCleared):
            return event
        if event.token_ids:
            self._learn(event)
        stated = tuple(map(self._aliases.keys.get, event.block_hashes))
        untold = stated.count(None)
        self.untold_blocks += untold
        told = untold < len(stated)
        return BlockStored(
            block_hashes=event.block_hashes,
            parent_block_hash=event.parent_block_hash,
            block_size=event.block_size or (self._block_size if told else 0),
            medium=event.medium,
            group_idx=event.group_idx,
            kv_cache_spec_kind=event.kv_cache_spec_kind,
            kv_cache_spec_sliding_window=event.kv_cache_spec_sliding_window,
            locality=event.locality,
            sequence_hashes=stated if told else None,
        )

    def _learn(self, event: BlockStored) -> None:
        self._block_size = self._block_size or event.block_size
        size, parent = event.block_size, event.parent_block_hash
        plain = size == self._block_size and len(event.token_ids) == size * len(event.block_hashes)
        if not size or not plain or event.lookahead_token_ids or not self._names_all(event):
            return
        if parent is not None:
            if parent not in self._aliases.keys:
                return
            self._recent.move_to_end(parent)
        self._aliases.learn(event, size)
        for engine_hash in event.block_hashes:
            if engine_hash in self._aliases.keys:
                self._recent[engine_hash] = None
                self._recent.move_to_end(engine_hash)
        while len(self._recent) > self._hashes_max:
            oldest, _ = self._recent.popitem(last=False)
            self._aliases.forget(oldest)

    def _names_all(self, event: BlockStored) -> bool:
        """Whether `event` tells its blocks apart; offloaded copies may be described without salt and items."""
        tier = tier_of(event.medium)
        if tier == "gpu":
            self._names_namespaces = self._names_namespaces or event.extra_keys is not None
            return True
        return tier is not None and not (self._names_namespaces and event.extra_keys is None)
