"""Objects that say what they are: msgpack, with the name of a schema and its version in the object's meta data.

Readers of several versions may share a store: who meets an older version converts it, who meets a newer one is told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import msgpack

from kvrouter.errors import StoreError
from kvrouter.store.objects import ObjectInfo, ObjectStore

__all__ = ["Schema", "get_typed", "put_typed"]

_SCHEMA: Final = "schema"
_VERSION: Final = "schema-version"
_DEPTH_HINT: Final = "a tree of maps, lists, texts, bytes, numbers, booleans and None"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema(Generic[Value]):
    """What a kind of objects looks like.

    Attributes:
        name: tells it apart from all others, for ever.
        version: the one that is written, from 1.
        dump: makes of a value what msgpack can hold.
        load: by version, makes a value of that again; also of the older versions that are still read. Whatever one
            raises of ValueError, TypeError or LookupError means that the object is damaged.
    """

    name: str
    version: int
    dump: Callable[[Value], Any]
    load: Mapping[int, Callable[[Any], Value]]


async def put_typed(
    store: ObjectStore,
    bucket: str,
    name: str,
    value: Value,
    schema: Schema[Value],
    *,
    meta: Mapping[str, str] | None = None,
) -> ObjectInfo:
    """Store a value under `name`.

    Raises:
        StoreError: as `put`; `unsupported` where msgpack cannot hold what `schema.dump` returns.
    """
    try:
        data = cast("bytes", msgpack.packb(schema.dump(value)))
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{schema.name}: not {_DEPTH_HINT}: {error}", reason="unsupported") from error
    return await store.put(
        bucket, name, data, meta={**(meta or {}), _SCHEMA: schema.name, _VERSION: str(schema.version)}
    )


async def get_typed(store: ObjectStore, bucket: str, name: str, schema: Schema[Value]) -> Value:
    """Return a value that was stored with `schema`, by this version of it or an older one.

    Raises:
        StoreError: as `get`; `unsupported` where the object is of another schema, or of a version that is not known
            here.
    """
    async with store.read(bucket, name) as (info, pieces):
        load = _loader(info, schema)
        data = b"".join([piece async for piece in pieces])
    try:
        return load(msgpack.unpackb(data, strict_map_key=False))
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.UnpackException) as error:
        message = f"object {bucket}/{name} is damaged: no {schema.name} of its version: {error}"
        raise StoreError(message, reason="corrupt") from error


def _loader(info: ObjectInfo, schema: Schema[Value]) -> Callable[[Any], Value]:
    found, version = info.meta.get(_SCHEMA), info.meta.get(_VERSION, "")
    where = f"object {info.bucket}/{info.name}"
    if found != schema.name:
        raise StoreError(f"{where} is of schema {found!r}, not {schema.name!r}", reason="unsupported")
    load = schema.load.get(int(version)) if version.isascii() and version.isdigit() else None
    if load is None:
        known = ", ".join(map(str, sorted(schema.load)))
        raise StoreError(f"{where} is {schema.name} of version {version}; known here: {known}", reason="unsupported")
    return load
