"""One bucket of objects as a NATS stream, in the format of ADR-20: the `nats` command and other clients read it.

Messages of `$O.BUCKET.C.VERSION` are the chunks of one version of an object; the one message of `$O.BUCKET.M.NAME`
is its record, in JSON. A record is replaced by comparing its sequence number, so that of two writers each learns
exactly which version it replaced.

A bucket's description tells whose it is: by its name alone the bucket `c` of the prefix `a-b` is `b-c` of `a` as well.
"""

import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kvrouter.errors import StoreError
from kvrouter.store.nats_connection import JetStreamContext, api, errors
from kvrouter.store.objects import ObjectInfo

__all__ = ["CHUNK_BYTES", "ObjectStream", "Record", "bucket_names"]

CHUNK_BYTES = 128 << 10
_COMMITS_MAX = 32
_RECORD_BYTES_MAX = 64 << 10
_DIGEST = "SHA-256="
_OWNER = "objects of kvrouter, prefix "
_WRONG_LAST_SEQUENCE = (10071, 10164)
_ABANDONED_SECONDS = 3600.0
"""A version that no record names and that did not grow for so long has lost its writer."""


class Record(NamedTuple):
    """What a bucket says about an object: the record's revision, and which version holds the chunks."""

    revision: int
    version: str
    info: ObjectInfo


class ObjectStream:
    """The stream behind `bucket` of the store `prefix`."""

    def __init__(self, jetstream: JetStreamContext, bucket: str, prefix: str) -> None:
        self._jetstream, self._bucket, self._prefix = jetstream, bucket, prefix
        self._name = f"{prefix}-{bucket}"
        self._stream = f"OBJ_{self._name}"

    async def ensure(self) -> None:
        """Make the bucket if it is not there.

        Raises:
            StoreError: `bad_name`: another store has it under this name.
        """
        if not await self._is_there():
            await self._jetstream.create_object_store(bucket=self._name, description=_OWNER + self._prefix)

    async def remove(self) -> None:
        """Remove the bucket with all that is in it; raises as `ensure`."""
        if await self._is_there():
            with contextlib.suppress(errors.NotFoundError):
                await self._jetstream.delete_stream(self._stream)

    async def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        encoded = [subject.rpartition(".")[2] for subject in await self._subjects("M")]
        return sorted(base64.urlsafe_b64decode(name).decode() for name in encoded)

    async def record(self, name: str) -> Record | None:
        """Return what the bucket says about an object.

        Raises:
            StoreError: `corrupt`: nobody can read that.
        """
        message = await self._last(self._record_subject(name))
        return None if message is None else self._read(name, message)

    async def add_chunk(self, version: str, chunk: bytes) -> None:
        """Add the next chunk of a version that no record names yet."""
        await self._jetstream.publish(self._chunk_subject(version), chunk, stream=self._stream)

    async def chunk(self, version: str, after: int) -> tuple[int, bytes] | None:
        """Return the first chunk of a version behind the sequence number `after`, with its own."""
        subject = self._chunk_subject(version)
        for direct in (True, False):  # Any replica may answer directly; one that lags lacks what the leader has.
            try:
                message = await self._jetstream.get_msg(
                    self._stream, seq=after + 1, subject=subject, next=True, direct=direct
                )
            except errors.NotFoundError:
                continue
            return message.seq or 0, message.data or b""
        return None

    async def commit(self, info: ObjectInfo, version: str) -> str | None:
        """Make `version` what the object's name means; returns the version that it meant before, if any."""
        payload = _encoded(info, self._name, version)
        for _ in range(_COMMITS_MAX):
            before = await self._last(self._record_subject(info.name))
            headers: dict[str, Any] = {
                api.Header.ROLLUP: "sub",
                api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE: str(0 if before is None else before.seq),
            }
            try:
                await self._jetstream.publish(self._record_subject(info.name), payload, headers=headers)
            except errors.APIError as error:
                if error.err_code not in _WRONG_LAST_SEQUENCE:
                    raise
            else:
                return None if before is None else _version(before)
        raise StoreError(f"others keep replacing {self._bucket}/{info.name}", reason="unavailable")

    async def forget(self, name: str) -> bool:
        """Remove an object, unless it is replaced at the same moment; returns whether it was there."""
        message = await self._last(self._record_subject(name))
        if message is None:
            return False
        await self._jetstream.purge_stream(self._stream, seq=(message.seq or 0) + 1, subject=self._record_subject(name))
        version = _version(message)
        if version is not None:
            await self.drop(version)
        return True

    async def drop(self, version: str) -> None:
        """Remove the chunks of a version that no record names, or none any more."""
        await self._jetstream.purge_stream(self._stream, subject=self._chunk_subject(version))

    async def sweep(self) -> None:
        """Remove what writers left behind that died."""
        versions, names = await self._subjects("C"), await self.names()
        if len(versions) <= len(names):
            return  # Each object has one version at most.
        named = {_version(message) for name in names if (message := await self._last(self._record_subject(name)))}
        oldest = time.time() - _ABANDONED_SECONDS
        for subject in versions:
            version = subject.rpartition(".")[2]
            newest = None if version in named else await self._last(subject)
            if newest is not None and newest.time is not None and newest.time.timestamp() < oldest:
                await self.drop(version)

    async def _is_there(self) -> bool:
        try:
            information = await self._jetstream.stream_info(self._stream)
        except errors.NotFoundError:
            return False
        if not _is_of(self._prefix, information.config):
            raise StoreError(f"bucket {self._bucket} would be one of another store on NATS", reason="bad_name")
        return True

    async def _last(self, subject: str) -> api.RawStreamMsg | None:
        try:
            return await self._jetstream.get_last_msg(self._stream, subject)
        except errors.NotFoundError:
            return None

    async def _subjects(self, kind: str) -> list[str]:
        try:
            answer = await self._jetstream.stream_info(self._stream, subjects_filter=f"$O.{self._name}.{kind}.>")
        except errors.NotFoundError:
            return []
        return list(answer.state.subjects or ())

    def _record_subject(self, name: str) -> str:
        return f"$O.{self._name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    def _chunk_subject(self, version: str) -> str:
        return f"$O.{self._name}.C.{version}"

    def _read(self, name: str, message: api.RawStreamMsg) -> Record | None:
        try:
            fields = json.loads(message.data or b"")
            if fields.get("deleted"):
                return None  # As other clients leave it; `forget` leaves nothing.
            info = ObjectInfo(
                bucket=self._bucket,
                name=name,
                size=int(fields.get("size", 0)),
                digest=_digest(fields),
                chunks=int(fields.get("chunks", 0)),
                modified=datetime.fromisoformat(fields["mtime"]).timestamp(),
                meta=_strings(fields.get("metadata") or {}),
            )
            return Record(message.seq or 0, str(fields["nuid"]), info)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            text = f"object {self._bucket}/{name} is damaged: its record cannot be read"
            raise StoreError(text, reason="corrupt") from error


async def bucket_names(jetstream: JetStreamContext, prefix: str) -> AsyncIterator[str]:
    """The names of all buckets of a store, page by page of all streams of an account."""
    begins, seen = f"OBJ_{prefix}-", 0
    while page := await jetstream.streams_info(offset=seen):
        for information in page:
            name = information.config.name or ""
            if name.startswith(begins) and _is_of(prefix, information.config):
                yield name.removeprefix(begins)
        seen += len(page)


def _is_of(prefix: str, config: api.StreamConfig) -> bool:
    """Whether a stream whose name fits is this store's; one that does not say whose it is is taken for that."""
    description = config.description or ""
    return not description.startswith(_OWNER) or description == _OWNER + prefix


def _encoded(info: ObjectInfo, bucket: str, version: str) -> bytes:
    digest = base64.urlsafe_b64encode(bytes.fromhex(info.digest)).decode()
    fields = {
        "name": info.name,
        "metadata": dict(info.meta),
        "options": {"max_chunk_size": CHUNK_BYTES},
        "bucket": bucket,
        "nuid": version,
        "size": info.size,
        "mtime": datetime.fromtimestamp(info.modified, UTC).isoformat(),
        "chunks": info.chunks,
        "digest": _DIGEST + digest,
    }
    payload = json.dumps(fields).encode()
    if len(payload) > _RECORD_BYTES_MAX:
        raise StoreError(f"the meta data of an object exceed {_RECORD_BYTES_MAX} bytes", reason="too_large")
    return payload


def _digest(fields: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64decode(str(fields["digest"]).removeprefix(_DIGEST)).hex()


def _strings(fields: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in fields.items()}


def _version(message: api.RawStreamMsg) -> str | None:
    """Return which version a record names; a damaged record names none that could be removed with it."""
    try:
        return str(json.loads(message.data or b"")["nuid"])
    except (ValueError, KeyError, TypeError):
        return None
