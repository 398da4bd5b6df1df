"""Files that are there wholly or not at all, also after a power cut; and blocking work in threads, with our errors."""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from kvrouter.errors import SettingsError, StoreError

__all__ = ["HalfWritten", "in_thread", "make_folder", "store_folder", "sync_folder"]

_PREFIX = ".half-"  # No object and no key begins with a dot.
_ABANDONED_SECONDS = 3600.0
"""A file that was last written so long ago has lost its writer."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class HalfWritten:
    """A file that is being written beside `path`, and takes its place in one step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        make_folder(path.parent)
        _sweep(path.parent)
        self._half = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
        self.file: IO[bytes] = self._half.open("xb")

    def commit(self) -> None:
        """Put it in place, durably; the folder must still be there."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._half.replace(self._path)
        sync_folder(self._path.parent)

    def abandon(self) -> None:
        """Remove it, unless it is in place already."""
        with contextlib.suppress(OSError):
            self.file.close()  # A full disk refuses once more what it refused before.
        self._half.unlink(missing_ok=True)


def store_folder(folder: str | Path) -> Path:
    """Return the directory that a store is to be kept in; it need not be there yet.

    Raises:
        SettingsError: something else stands there, or above it.
    """
    path = Path(folder).expanduser()
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if os.path.lexists(there) and not there.is_dir():
        raise SettingsError(f"a store cannot be kept in {path}: {there} is not a directory")
    return path


def make_folder(folder: Path) -> None:
    """Make `folder` and what is above it, durably."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_thread(
    work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Run blocking work in a thread; what the operating system refuses is a `StoreError`."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        raise StoreError(f"the file system refuses: {error}", reason="unavailable") from error


def _sweep(folder: Path) -> None:
    """Remove what writers left behind that died."""
    oldest = time.time() - _ABANDONED_SECONDS
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
