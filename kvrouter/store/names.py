"""What buckets, objects and keys may be called: the names that every backend can hold, and no file system misreads."""

import re

from kvrouter.errors import StoreError

__all__ = ["BUCKET_CHARACTERS_MAX", "NAME_CHARACTERS_MAX", "check_bucket", "check_name", "is_bucket"]

BUCKET_CHARACTERS_MAX = 64
NAME_CHARACTERS_MAX = 200
"""Short enough that a file name of 255 bytes has room for what is put around it."""

_BUCKET = re.compile(r"[A-Za-z0-9_-]+")
_PART = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


def is_bucket(text: str) -> bool:
    """Tell whether a bucket may be called so: letters, digits, `_` and `-`."""
    return len(text) <= BUCKET_CHARACTERS_MAX and _BUCKET.fullmatch(text) is not None


def check_bucket(bucket: str) -> str:
    """Return `bucket` if a bucket may be called so.

    Raises:
        StoreError: it may not (`bad_name`).
    """
    if not is_bucket(bucket):
        raise StoreError(f"a bucket may not be called {bucket[:BUCKET_CHARACTERS_MAX]!r}", reason="bad_name")
    return bucket


def check_name(name: str) -> str:
    """Return `name` if an object or key may be called so.

    Beside what a bucket may have, single dots and slashes inside: never first, last or beside each other.

    Raises:
        StoreError: it may not (`bad_name`).
    """
    if len(name) > NAME_CHARACTERS_MAX or _NAME.fullmatch(name) is None:
        raise StoreError(f"an object or key may not be called {name[:NAME_CHARACTERS_MAX]!r}", reason="bad_name")
    return name
