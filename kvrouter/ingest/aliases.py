"""Engine hashes to our sequence hashes, for one rank, learnt from the token ids of its stores.

An engine's hash is opaque; what a block is, its tokens and its parent say. A store whose parent
is not known yet waits, within bounds, until the parent is. Nothing here counts copies.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from kvrouter.blocks import chain_hashes, hash_seed, multimodal_key, token_bytes
from kvrouter.events import BlockStored, Namespace, block_namespaces
from kvrouter.events.namespaces import NO_NAMESPACE
from kvrouter.ingest.block_table import BlockTable, Meanings

__all__ = ["AliasMap"]

_SEEDS_MAX = 4096
# What an orphan, and one of its tokens, take; what an entry of a dictionary takes.
_BYTES_PER_ORPHAN, _BYTES_PER_TOKEN, _BYTES_PER_ENTRY = 256, 36, 112


class AliasMap:
    """What each engine hash of one rank names.

    The first meaning of a hash stays: stores that repeat it may know less about its namespace. Entries are
    kept after their blocks are gone, because later stores name them as parents and other tiers by hash alone;
    `forget` and `clear` drop them, and so does a table that owns the keys (`share_with`).
    """

    __slots__ = ("_adapters", "_inner", "_namespaces", "_orphan_blocks", "_orphan_bytes", "_orphans", "_seeds", "keys")

    def __init__(self, keys: Meanings | None = None) -> None:
        self.keys: Meanings = {} if keys is None else keys
        self._namespaces: dict[int, Namespace] = {}
        self._inner: dict[int, list[int]] = {}  # Of blocks larger than a unit: the keys of the units before the last.
        self._orphans: OrderedDict[int, list[BlockStored]] = OrderedDict()
        self._seeds: dict[Namespace, int] = {}
        self._adapters: dict[int, str] = {}
        self._orphan_blocks = self._orphan_bytes = 0

    @property
    def orphan_blocks(self) -> int:
        """Blocks that wait for their parent."""
        return self._orphan_blocks

    def nbytes(self) -> int:
        """What is kept besides the keys, about."""
        return self._orphan_bytes + _BYTES_PER_ENTRY * (len(self._namespaces) + 2 * len(self._inner))

    def share_with(self, table: BlockTable) -> None:
        """Let the table that owns `keys` see what else is known of them, and forget it with them."""
        table.attach(self._namespaces, self._inner, self._orphans, self._seeds)

    def name_adapter(self, lora_id: int, name: str) -> None:
        """Say which adapter an engine means that sends numbers instead of names."""
        self._adapters[lora_id] = name

    def clear(self) -> None:
        """Forget everything but the adapters' names."""
        self.keys.clear()
        self._namespaces.clear()
        self._inner.clear()
        self.drop_orphans()

    def forget(self, engine_hash: int) -> None:
        """Drop one entry."""
        if engine_hash in self.keys:
            del self.keys[engine_hash]
        self._namespaces.pop(engine_hash, None)
        self._inner.pop(engine_hash, None)

    def knows_all(self, hashes: Iterable[int]) -> bool:
        """Whether nothing about these hashes is left to learn."""
        return all(map(self.keys.__contains__, hashes))

    def learn(self, event: BlockStored, unit: int) -> list[int]:
        """Learn what `event` says and what waited for it; returns the engine hashes that were not known before."""
        return self._learn_all(deque([event]), unit)

    def learn_stated(self, hashes: Sequence[int], stated: Sequence[int | None], unit: int) -> list[int]:
        """Learn the sequence hashes that a publisher states itself; returns the hashes that were not known before."""
        keys = self.keys
        new: list[int] = []
        for engine_hash, key in zip(hashes, stated, strict=True):
            if key is not None and engine_hash not in keys:
                keys[engine_hash] = key
                new.append(engine_hash)
        if new and self._orphans:
            new += self._learn_all(deque(stored for parent in list(new) for stored in self._adopt(parent)), unit)
        return new

    def place_before_known(self, hashes: Sequence[int], unit: int) -> list[int]:
        """Name hashes that lie directly before a known, larger block of another group; returns those.

        A group of layers with smaller blocks announces hashes inside the blocks of a group with larger ones.
        """
        new: list[int] = []
        inner: list[int] = []
        namespace: Namespace | None = None
        if not self._inner:
            return new
        keys = self.keys
        for engine_hash in reversed(hashes):
            if engine_hash in keys:
                inner = list(self._inner.get(engine_hash, ()))
                namespace = self._namespaces.get(engine_hash)
            elif inner:
                keys[engine_hash] = inner.pop()
                if namespace is not None:
                    self._namespaces[engine_hash] = namespace
                new.append(engine_hash)
        if new and self._orphans:
            new += self._learn_all(deque(stored for parent in new for stored in self._adopt(parent)), unit)
        return new

    def wait_for_parent(self, event: BlockStored, blocks_max: int) -> int:
        """Keep a store until its parent is known; returns how many blocks were given up for the bound."""
        parent = event.parent_block_hash
        assert parent is not None
        self._orphans.setdefault(parent, []).append(event)
        self._orphan_blocks += len(event.block_hashes)
        self._orphan_bytes += _bytes_of(event)
        dropped = 0
        while self._orphan_blocks > blocks_max:
            _, oldest = self._orphans.popitem(last=False)
            count = sum(len(stored.block_hashes) for stored in oldest)
            self._orphan_blocks -= count
            self._orphan_bytes -= sum(map(_bytes_of, oldest))
            dropped += count
        return dropped

    def drop_orphans(self) -> None:
        """Forget the stores that wait."""
        self._orphans.clear()
        self._orphan_blocks = self._orphan_bytes = 0

    def _learn_all(self, pending: deque[BlockStored], unit: int) -> list[int]:
        learnt: list[int] = []
        while pending:
            new = self._learn_one(pending.popleft(), unit)
            learnt += new
            if self._orphans:
                for engine_hash in new:
                    pending.extend(self._adopt(engine_hash))
        return learnt

    def _adopt(self, parent: int) -> Iterable[BlockStored]:
        waiting = self._orphans.pop(parent, ())
        self._orphan_blocks -= sum(len(stored.block_hashes) for stored in waiting)
        self._orphan_bytes -= sum(map(_bytes_of, waiting))
        return waiting

    def _learn_one(self, event: BlockStored, unit: int) -> Sequence[int]:
        hashes = event.block_hashes
        if self.knows_all(hashes):
            return ()
        span = event.block_size // unit
        unit_keys, namespace = self._chain(event, unit)
        block_keys = unit_keys[span - 1 :: span] if span > 1 else unit_keys
        new = self._assign(hashes, block_keys)
        if span > 1 and len(hashes) == len(block_keys):
            inner = (unit_keys[start : start + span - 1] for start in range(0, len(unit_keys), span))
            self._inner.update(zip(hashes, inner, strict=True))
        if namespace != NO_NAMESPACE:
            self._namespaces.update(dict.fromkeys(new, namespace))
        return new

    def _assign(self, hashes: tuple[int, ...], block_keys: list[int]) -> Sequence[int]:
        keys = self.keys
        if len(hashes) != len(block_keys):
            return self._assign_masked(hashes, block_keys)
        new = []
        for engine_hash, key in zip(hashes, block_keys, strict=True):
            known = keys.get(engine_hash)
            if known is None:
                keys[engine_hash] = key
                new.append(engine_hash)
            elif known != key:
                break  # Of another namespace than this event knows: what follows is chained from the wrong block.
        return new

    def _assign_masked(self, hashes: tuple[int, ...], block_keys: list[int]) -> Sequence[int]:
        """Place the hashes of a masked store among the blocks of its range.

        Hashes are in order and those that another group announced are known already. An unknown one lies
        directly before the next known one; where nothing known follows, its place cannot be told.
        """
        keys = self.keys
        position_of = {key: position for position, key in enumerate(block_keys)}
        new: list[int] = []
        next_position: int | None = None
        for engine_hash in reversed(hashes):
            known = keys.get(engine_hash)
            if known is not None:
                next_position = position_of.get(known)
            elif next_position:
                next_position -= 1
                keys[engine_hash] = block_keys[next_position]
                new.append(engine_hash)
            else:
                next_position = None
        return new

    def _chain(self, event: BlockStored, unit: int) -> tuple[list[int], Namespace]:
        stated, items = block_namespaces(event)
        parent = event.parent_block_hash
        namespace = self._namespace(stated, event.lora_id, parent)
        tokens = event.token_ids
        lookahead = 0
        if event.lookahead_token_ids:
            following = event.lookahead_token_ids[-1]
            tokens, lookahead = tokens + following, len(following)
        unit_keys = chain_hashes(
            None if parent is None else self.keys[parent],
            token_bytes(tokens),
            unit,
            self._seed(namespace),
            block_keys=_unit_items(items, event.block_size // unit),
            lookahead=lookahead,
        )
        return unit_keys, namespace

    def _namespace(self, stated: Namespace, lora_id: int | None, parent: int | None) -> Namespace:
        salt, lora = stated
        if lora is None and lora_id:
            lora = self._adapters.get(lora_id, f"lora-id:{lora_id}")
        if parent is not None and (inherited := self._namespaces.get(parent)) is not None:
            salt, lora = salt or inherited.salt, lora or inherited.lora
        return Namespace(salt, lora) if salt or lora else NO_NAMESPACE

    def _seed(self, namespace: Namespace) -> int:
        seed = self._seeds.get(namespace)
        if seed is None:
            if len(self._seeds) >= _SEEDS_MAX:
                self._seeds.clear()
            salt, lora = namespace
            seed = self._seeds[namespace] = hash_seed(salt.encode("utf-8", "surrogatepass") if salt else b"", lora)
        return seed


def _bytes_of(event: BlockStored) -> int:
    return _BYTES_PER_ORPHAN + _BYTES_PER_TOKEN * (len(event.token_ids) + len(event.block_hashes))


def _unit_items(items: tuple[tuple[str, ...], ...], span: int) -> list[list[int] | None]:
    """Multimodal keys per unit block; those of a larger block go to the last unit in it."""
    if not items:
        return []
    keys = [[multimodal_key(identifier) for identifier in block] or None for block in items]
    before: list[list[int] | None] = [None] * (span - 1)
    return [key for block in keys for key in (*before, block)]
