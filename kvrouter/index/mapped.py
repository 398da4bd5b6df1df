"""One index, many processes: one writes it, any number read it where it lies.

`share` makes an index whose tables are in a file (best in /dev/shm), for this process to change as any other index.
`MappedIndex` maps that file, here or in another process, and matches in it; answers are exact: each is what the index
held at one moment between the call and its return. Readers never wait for the writer, nor it for them; they look, and
look again whether what they saw was changed meanwhile.

    index = share("/dev/shm/kvrouter-index")          # the writer
    mapped = MappedIndex("/dev/shm/kvrouter-index")   # a reader
    mapped.match_best(hashes, k=3)

Layout of the file, all in the machine's own byte order. It is private to the build of kvrouter that wrote it; a reader
of another one refuses it.

    head     magic, version, sizes of the structures, where the writer has mapped the file, secrets; checksum of these
             length in use, state (live, closed, frozen), names of tiers, addresses of the tables
             versions: one of the layout, 4096 of segments of the table, 4096 of stretches; odd while something changes
    blocks   directory, segments, sets of ranks, stretches: as `kvrouter/native/index_table.h` and its neighbours
             have them, with the writer's addresses in them, of which readers make offsets

The file grows a mebibyte at a time, up to the capacity, and readers map more of it when they meet what lies behind. It
never becomes smaller; what was given back is used again. The writer holds a lock on it (`flock`) by which readers
notice that it has died. A process that has forked must not use a shared index in the child.

Only with the native core, and not on Windows. What an index means is said in `kvrouter.index.reference`.
"""

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kvrouter import native_core
from kvrouter.errors import BusyIndexError, MappingError, SnapshotError, StaleIndexError
from kvrouter.index.reference import PrefixIndex as Reference
from kvrouter.index.snapshot import unseal

if TYPE_CHECKING:
    _Mapped = native_core.native.MappedIndex

    class PrefixIndex(Reference):
        """The native one, for whoever checks types."""

        def share(self, file: int, path: str, capacity: int, /) -> int | None: ...
        def load(self, tables: memoryview, tiers: int) -> None: ...
        def freeze(self) -> None:
            """Leave what others read as it is, for good; the index goes on empty."""

elif native_core.present:
    from kvrouter.index.native import PrefixIndex

    _Mapped = native_core.native.MappedIndex
else:
    _Mapped = PrefixIndex = object

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]

__all__ = ["CAPACITY_BYTES", "MappedIndex", "map_snapshot", "share"]

CAPACITY_BYTES: Final = 64 << 30
"""How large a shared index may become unless the caller says; only addresses are reserved."""


def share(
    path: str | os.PathLike[str], *, capacity_bytes: int = CAPACITY_BYTES, bytes_max: int | None = None
) -> "PrefixIndex":
    """Make an empty index that other processes can map at `path`; it is for this process alone to change.

    It appears there when it is ready, readable by this user only, in place of whatever a writer left that has ended.
    It goes when the index is deleted; `freeze` leaves it there for good instead, as it is, and the index empty.

    Raises:
        MappingError: another process writes an index there, there is no native core, or the file cannot be made.
    """
    _check_support()
    target = Path(path)
    _check_unused(target)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise MappingError(f"cannot share an index at {target}: {error.strerror}") from error
    index = PrefixIndex(bytes_max=bytes_max)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        problem = index.share(file, str(target.absolute()), capacity_bytes)
        if problem is None:
            file = -1  # It is the index's now.
            unfinished.rename(target)
            return index
    except OSError as error:
        problem = error.errno
    finally:
        if file >= 0:
            os.close(file)
        with suppress(OSError):
            unfinished.unlink()
    raise MappingError(f"cannot share an index at {target}: {os.strerror(problem or errno.EIO)}")


def map_snapshot(buffer: bytes | bytearray | memoryview, path: str | os.PathLike[str]) -> None:
    """Turn what `snapshot()` returned into a file that any number of `MappedIndex` can read; it never changes.

    Raises:
        SnapshotError: the bytes are damaged, truncated or of another version.
        MappingError: as `share`.
    """
    tables, tiers = unseal(buffer)
    index = share(path)
    try:
        index.load(tables, tiers)
    except ValueError as error:
        raise SnapshotError(f"index snapshot is damaged: {error}") from error
    index.freeze()


class MappedIndex(_Mapped):
    """An index that another process writes (`share`), or that never changes (`map_snapshot`).

    `match`, `match_depths` and `match_best` are those of `PrefixIndex`, always exact. Besides what is said there, each
    method raises BusyIndexError where the writer changed what was asked for during all of `patience_seconds`, and
    StaleIndexError where it is gone. That a writer was killed is noticed within a fifth of a second of use, or when
    it left something half-written; whoever may not rely on what was known then calls `check` before.

    Not thread-safe; the interpreter lock is given away where it waits.

    Raises:
        MappingError: there is no such file, it is no index, or one of another version of kvrouter.
        StaleIndexError: its writer is gone.
    """

    __slots__ = ()

    def __new__(cls, path: str | os.PathLike[str], *, patience_seconds: float = 0.05) -> Self:
        """Map the file at `path`."""
        _check_support()
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MappingError(f"cannot map {path}: {error.strerror}") from error
        try:
            mapped = super().__new__(cls, file, int(patience_seconds * 1e9), BusyIndexError, StaleIndexError)
        except ValueError as error:
            os.close(file)
            raise MappingError(f"cannot map {path}: {error}") from error
        mapped.check()
        return mapped

    def __init__(self, path: str | os.PathLike[str], *, patience_seconds: float = 0.05) -> None:
        """See above."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_support() -> None:
    if not native_core.present:
        raise MappingError(f"an index can only be shared with the native core: {native_core.absence}")
    if fcntl is None:
        raise MappingError("an index cannot be shared on this system")


def _check_unused(path: Path) -> None:
    """Refuse to take the place of an index that somebody writes."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise MappingError(f"cannot share an index at {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MappingError(f"cannot share an index at {path}: another process does") from error
    finally:
        os.close(file)
