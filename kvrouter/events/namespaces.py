"""What besides its tokens decides a block's identity: salt, LoRA adapter, multimodal items.

vLLM publishes these per block in `extra_keys`, untagged, in the order LoRA name,
multimodal `(identifier, offset)` pairs, salt (first block of a prompt only), digests of
prompt embeddings. A bare string may be a LoRA name or a salt: the event's `lora_name` says
which. SGLang and the pools say `cache_salt` and `lora_name` outright.
"""

from typing import NamedTuple

from kvrouter.events.model import BlockStored

__all__ = ["NO_NAMESPACE", "BlockNamespaces", "Namespace", "block_namespaces"]


class Namespace(NamedTuple):
    """Equal tokens under different namespaces are different blocks."""

    salt: str | None = None
    lora: str | None = None


NO_NAMESPACE = Namespace()


class BlockNamespaces(NamedTuple):
    """The namespace that an event states, and per block hash the identifiers of its multimodal items.

    `items` is empty when no block has any. A namespace without a salt may still be
    salted: vLLM states the salt in the first block of a prompt only, so a block
    with a parent inherits.
    """

    namespace: Namespace
    items: tuple[tuple[str, ...], ...]


def block_namespaces(event: BlockStored) -> BlockNamespaces:
    """Read what `event` states about the identity of its blocks."""
    salt, lora = event.cache_salt or None, event.lora_name or None
    items: list[tuple[str, ...]] = [()] * len(event.block_hashes)
    for position, key in enumerate(event.extra_keys or ()):
        if key is None:
            continue
        first_of_prompt = position == 0 and event.parent_block_hash is None
        found_salt, items[position] = _read_extra_key(key, lora, may_have_salt=first_of_prompt)
        salt = salt or found_salt
    for position, key in enumerate(event.mm_keys or ()):
        items[position] += tuple(_item_identifier(item) for item in key or ())
    return BlockNamespaces(Namespace(salt, lora), tuple(items) if any(items) else ())


def _read_extra_key(
    key: tuple[object, ...], lora: str | None, *, may_have_salt: bool
) -> tuple[str | None, tuple[str, ...]]:
    salt: str | None = None
    identifiers: list[str] = []
    lora_expected = lora is not None
    for item in key:
        if not isinstance(item, str):
            identifiers.append(_item_identifier(item))
        elif lora_expected and item == lora:
            lora_expected = False
        elif may_have_salt and salt is None:
            salt = item
        else:
            identifiers.append(item)
    return salt, tuple(identifiers)


def _item_identifier(item: object) -> str:
    """Name a multimodal item: `(identifier, offset)`, a map with its `hash`, or the bytes of a digest."""
    if isinstance(item, tuple) and item:
        return _item_identifier(item[0])
    if isinstance(item, dict):
        return str(item.get("hash", item))
    return item.hex() if isinstance(item, bytes) else str(item)
