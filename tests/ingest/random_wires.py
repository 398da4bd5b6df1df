"""Batches as engines write them, at random: mostly sensible chains of blocks, with everything odd mixed in."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

_ORDER = (
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
)
_REMOVED_ORDER = ("type", "block_hashes", "medium", "group_idx")
_MEDIA = ("GPU",) * 8 + (None, "CPU", "cpu", "DISK", "CPU_PINNED", "STORAGE", "weird", "cuda:0")
_NO_EVENTS: tuple[Any, ...] = (
    ["Nope", 1],
    5,
    None,
    {},
    [],
    {"type": 3},
    ["BlockStored"],
    ["BlockRemoved"],
    ["AllBlocksCleared", 1],
    {"type": "BlockRemoved", "block_hashes": None},
    {"type": "BlockStored", "block_hashes": [], "block_hashes_too": 1},
)


class _Block(NamedTuple):
    name: int
    tokens: tuple[int, ...]
    salt: str | None


class RandomEngine:
    """Says what an engine could, and some things that none should. Blocks are named alike for equal prefixes."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._groups: Sequence[int | None] = choose.choice([[None], [0], [0], [0, 1], [1, 0, 2]])
        self._block_size = choose.choice([4, 4, 8, 16])
        self._chains: list[list[_Block]] = [[]]
        self._as_map = choose.random() < 0.5
        self._form = 0

    def batch(self) -> bytes:
        """The next payload."""
        choose = self._choose
        self._form = choose.choice([0, 0, 1, 2])
        events = [self._event() for _ in range(choose.choice([1, 1, 1, 2, 3, 6, 20]))]
        batch: list[Any] = [choose.choice([1.5, 0, 1_700_000_000_000, None]), events]
        if choose.random() < 0.9:
            batch.append(choose.choice([0, 0, 0, 1, None, -1, 2**40, "x", True]))
        payload: bytes = msgpack.packb(batch)
        return payload

    def damaged(self, payload: bytes) -> bytes:
        """A payload with some bytes changed, lost or added."""
        choose, data = self._choose, bytearray(payload)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(data) + 1)
            what = choose.random()
            if what < 0.5:
                data[at : at + 1] = bytes([choose.randrange(256)])
            elif what < 0.75:
                del data[at:]
            else:
                data[at:at] = bytes([choose.randrange(256)])
        return bytes(data)

    def _event(self) -> Any:
        what = self._choose.random()
        if what < 0.55:
            return self._stored()
        if what < 0.93:
            return self._removed()
        if what < 0.95:
            return {"type": "AllBlocksCleared"} if self._as_map else ["AllBlocksCleared"]
        return self._choose.choice(_NO_EVENTS) if what < 0.96 else self._hash_only()

    def _stored(self) -> Any:
        choose = self._choose
        path = choose.choice(self._chains)
        path = path[: choose.randint(0, len(path))]
        salt = path[0].salt if path else choose.choice([None, None, None, "tenant"])
        new = self._continue(path, salt, choose.randint(1, 5))
        self._chains = [*self._chains[-40:], [*path, *new]]
        fields: dict[str, Any] = {
            "type": "BlockStored",
            "block_hashes": [self._wire(block.name) for block in new],
            "parent_block_hash": self._wire(path[-1].name) if path else None,
            "token_ids": [token for block in new for token in block.tokens],
            "block_size": self._block_size,
            "medium": choose.choice(_MEDIA),
            "group_idx": choose.choice(self._groups),
        }
        if not path and salt:
            fields["extra_keys"] = [[salt], *[None] * (len(new) - 1)]
        elif choose.random() < 0.3:
            fields["extra_keys"] = [None] * len(new)
        if choose.random() < 0.6:
            fields["kv_cache_spec_kind"] = "sliding_window" if fields["group_idx"] else "full_attention"
            fields["kv_cache_spec_sliding_window"] = choose.choice([None, 8])
        self._spoil(fields)
        return self._encode(fields, _ORDER)

    def _continue(self, path: Sequence[_Block], salt: str | None, count: int) -> list[_Block]:
        new: list[_Block] = []
        for _ in range(count):
            tokens = tuple(self._choose.choices([1, 2, 300, 70_000], k=self._block_size))
            before = tuple(block.tokens for block in (*path, *new))
            name = random.Random(repr((before, tokens, salt))).getrandbits(64)
            new.append(_Block(name, tokens, salt))
        return new

    def _spoil(self, fields: dict[str, Any]) -> None:
        """Change what is rare, or wrong."""
        choose, hashes = self._choose, fields["block_hashes"]
        rare: list[tuple[float, str, Any]] = [
            (0.05, "cache_salt", choose.choice(["", "other"])),
            (0.05, "locality", choose.choice(["LOCAL", "REMOTE", None])),
            (0.05, "lora_name", choose.choice(["", "adapter"])),
            (0.05, "lora_id", choose.choice([0, 1, None])),
            (0.04, "ownership", choose.choice(["x", 5])),
            (0.04, "new_field", choose.choice(["x", 5, {"a": [1]}, None])),
            (0.04, "é", 1),
            (0.03, "token_ids", fields["token_ids"][:-1]),
            (0.05, "token_ids", []),
            (0.02, "block_size", choose.choice([0, None, 2 * self._block_size, 2**20, -1])),
            (0.02, "block_hashes", [*hashes, hashes[0]]),
            (0.02, "block_hashes", hashes[1:]),
            (0.02, "block_hashes", []),
            (0.01, "block_hashes", [*hashes[1:], b""]),
            (0.01, "token_ids", [-1, *fields["token_ids"][1:]]),
            (0.01, "token_ids", [[1, 2]] * len(fields["token_ids"])),
            (0.01, "mm_keys", [None] * len(hashes)),
            (0.01, "lookahead_token_ids", [[1]] * len(hashes)),
            (0.01, "sequence_hashes", [7] * len(hashes)),
            (0.01, "event_type", "stored"),
            (0.01, "kv_cache_spec_kind", "mamba"),
        ]
        for share, name, value in rare:
            if choose.random() < share:
                fields[name] = value

    def _removed(self) -> Any:
        choose, chain = self._choose, self._choose.choice(self._chains)
        names = [block.name for block in reversed(chain)][: choose.randint(0, 4)]
        if choose.random() < 0.05:
            names.append(99)
        fields: dict[str, Any] = {
            "type": "BlockRemoved",
            "block_hashes": [self._wire(name) for name in names],
            "medium": choose.choice(_MEDIA),
            "group_idx": choose.choice([*self._groups, None]),
        }
        if choose.random() < 0.03:
            fields["group_idx"] = choose.choice([-1, 300, True, "x"])
        if choose.random() < 0.05:
            fields[choose.choice(["token_ids", "locality", "later"])] = choose.choice([None, "REMOTE"])
        return self._encode(fields, _REMOVED_ORDER)

    def _hash_only(self) -> Any:
        chain = self._choose.choice(self._chains)[: self._choose.randint(0, 4)]
        fields = {
            "type": "BlockStored",
            "block_hashes": [self._wire(block.name) for block in chain],
            "parent_block_hash": None,
            "token_ids": [],
            "block_size": 0,
            "medium": self._choose.choice(["CPU", "GPU"]),
            "group_idx": self._choose.choice(self._groups),
        }
        return self._encode(fields, _ORDER)

    def _encode(self, fields: dict[str, Any], order: Sequence[str]) -> Any:
        choose = self._choose
        if self._as_map != (choose.random() < 0.03):
            return {name: value for name, value in fields.items() if value is not None or choose.random() < 0.8}
        last = max(order.index(name) for name in fields if name in order)
        values = [fields.get(name) for name in order[: last + 1]]
        return [*values, *[None] * (len(order) - len(values)), 1, 2] if choose.random() < 0.02 else values

    def _wire(self, name: int) -> int | bytes:
        """A hash as numbers, as signed numbers, or as the bytes of a digest."""
        if self._form == 2:
            return bytes(24) + name.to_bytes(8, "big")
        return name - 2**64 if self._form == 1 and name >= 2**63 else name
