"""What every prefix index promises of its snapshots: whole ones are restored, any other is refused."""

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from kvrouter.errors import SnapshotError
from tests.index.model import array


class SnapshotContract:
    """The part of `PrefixIndexContract` about snapshots."""

    def test_a_snapshot_restores_everything(self, index: Any) -> None:
        """Contents, counts and later changes are those of the original."""
        index.store(0, array([1, 2, 3]))
        index.store(900, array([1, 2]), tier="cpu")
        index.store(7, array([9]))
        index.remove(7, array([9]))

        twin = type(index).restore(memoryview(index.snapshot()))

        assert twin.match(array([1, 2, 3])).depths() == {0: 3, 900: 2}
        assert (len(twin), twin.blocks(0), twin.blocks(900, "cpu"), twin.blocks(7)) == (3, 3, 2, 0)
        twin.store(0, array([3, 4]))
        twin.remove(0, array([1]))
        assert (len(twin), twin.blocks(0)) == (4, 3)

    def test_an_empty_index_has_a_snapshot_too(self, index: Any) -> None:
        """Nothing is restored from nothing."""
        assert len(type(index).restore(index.snapshot())) == 0

    def test_every_flipped_bit_of_a_snapshot_is_noticed(self, index: Any) -> None:
        """A damaged snapshot is refused, never half believed."""
        index.store(0, array([1, 2]))
        index.store(1, array([1]), tier="cpu")
        good = index.snapshot()

        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 0x10
            with pytest.raises(SnapshotError):
                type(index).restore(bad)

    def test_every_truncation_of_a_snapshot_is_noticed(self, index: Any) -> None:
        """So is one that lost its end or grew one."""
        index.store(0, array([1, 2]))
        good = index.snapshot()

        for length in range(len(good)):
            with pytest.raises(SnapshotError):
                type(index).restore(good[:length])
        with pytest.raises(SnapshotError):
            type(index).restore(good + b"\0")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda head, body: b"otherfmt" + head[8:] + body, "not an index snapshot"),
            (lambda head, body: head[:8] + b"\x09" + head[9:] + body, "version 9"),
            (lambda head, body: sealed(body[:-3] + b"\x07" + body[-2:]), "no rank set"),
            (lambda head, body: sealed(body + b"\0"), "its length"),
            (lambda head, body: sealed(body[:2] + b"\xff\xff\xff\x7f" + body[6:]), "longer than"),
            (lambda head, body: sealed(body[:6] + b"\xff\xff\xff\xff" + body[10:]), "longer than"),
            (lambda head, body: sealed(body[:10] + b"\xff" * 8 + body[18:]), "longer than"),
            (lambda head, body: sealed(body[:18] + b"\xff" + body[19:]), "damaged"),
            (lambda head, body: sealed(body[:-26] + body[-18:-10] + body[-18:]), "appears twice"),
            (lambda head, body: sealed(body[:21] + b"\0" + body[22:]), "no rank set"),
            (lambda head, body: sealed(body[:6] + b"\0\0\0\0" + body[10:21] + body[22:]), "no rank set"),
            (lambda head, body: sealed(body + body, tiers=2), "a tier appears twice"),
            (lambda head, body: sealed(body, tiers=2), "damaged"),
        ],
    )
    def test_a_well_sealed_lie_is_refused(
        self, index: Any, change: Callable[[bytes, bytes], bytes], words: str
    ) -> None:
        """A right checksum over wrong contents does not crash the reader or fool it."""
        index.store(0, [1, 2])
        good = index.snapshot()

        with pytest.raises(SnapshotError, match=words):
            type(index).restore(change(good[:24], good[24:]))

    def test_well_sealed_noise_is_refused_or_harmless(self, index: Any) -> None:
        """Any byte of a snapshot may be wrong under a right checksum; the reader never crashes."""
        index.store(0, [1, 2])
        index.store(70, [2, 3], tier="cpu")
        body = index.snapshot()[24:]

        for position in range(len(body)):
            for flip in (1, 0x10, 0xFF):
                bad = bytearray(body)
                bad[position] ^= flip
                with suppress(SnapshotError):
                    type(index).restore(sealed(bytes(bad), tiers=2)).match([1, 2, 3])


def sealed(body: bytes, *, tiers: int = 1) -> bytes:
    """A snapshot around `body` whose head and checksum are right."""
    count = struct.pack("<I", tiers)
    return b"kvrindex" + struct.pack("<IQ", 2, xxh3_64_intdigest(count + body)) + count + body
