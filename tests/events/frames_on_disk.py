"""The captured messages of tests/golden, and what each engine's own words say about its events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FILES = sorted(
    path for folder in ("vllm", "sglang", "trtllm", "mooncake") for path in (GOLDEN / folder).glob("*.jsonl")
)

_STORED = [
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
]
_REMOVED = ["block_hashes", "medium", "group_idx"]
_TAGS = {"stored": "BlockStored", "removed": "BlockRemoved"}


class Message(NamedTuple):
    """One captured ZMQ message."""

    live: bool
    frames: list[bytes]
    decoded: Any


def messages(path: Path) -> Iterator[Message]:
    """Read one file of captured messages."""
    with path.open() as lines:
        for line in lines:
            message = json.loads(line)
            frames = [bytes.fromhex(frame) for frame in message["frames"]]
            yield Message(message["ch"] == "live", frames, message.get("decoded"))


def stated_fields(raw: Any) -> dict[str, Any]:
    """One event as its engine states it, under the names of the model; only what is stated, with hashes as integers."""
    if isinstance(raw, dict):
        fields = dict(raw)
        fields["type"] = raw.get("type") or _TAGS[raw["event_type"]]
        if "block_hashes" not in fields and fields["type"] != "AllBlocksCleared":
            fields["block_hashes"] = fields["seq_hashes"]
    else:
        names = _REMOVED if raw[0] == "BlockRemoved" else _STORED
        fields = {"type": raw[0]} | dict(zip(names, raw[1:], strict=False))
    if "block_hashes" in fields:
        fields["block_hashes"] = [_folded(item) for item in fields["block_hashes"]]
    if fields.get("parent_block_hash") is not None:
        fields["parent_block_hash"] = _folded(fields["parent_block_hash"])
    return fields


def as_tuples(value: Any) -> Any:
    """JSON lists as the tuples that the model holds."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _folded(item: Any) -> int:
    return int(item["__bytes__"][-16:], 16) if isinstance(item, dict) else item % 2**64
