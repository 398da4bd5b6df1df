"""Reads of a shared library for Linux, macOS or Windows what it needs and what it offers, on any machine.

Only as far as a wheel's promise goes: whose machine code it is, which libraries and which of their versions it asks
for, which names it offers, which of Python's it expects, and on macOS from which release on and whether it is signed.
Files are 64-bit and little-endian, as all our platforms are; whatever else is an error.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Library", "read_library"]

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_MACH_MACHINES = {0x0100_0007: "x86_64", 0x0100_000C: "aarch64"}
_PE_MACHINES = {0x8664: "x86_64", 0xAA64: "aarch64"}
# Put in by the linker of macOS.
_LINKERS_OWN = {"__dso_handle", "_mh_dylib_header", "_mh_execute_header"}
_PYTHON = re.compile(r"_?Py[A-Z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What a shared library is, needs and offers. `versions` are those of symbols (ELF) or of the system (macOS)."""

    system: str
    machine: str
    needs: frozenset[str]
    offers: frozenset[str]
    expects: frozenset[str]
    versions: frozenset[str] = frozenset()
    is_signed: bool = False


def read_library(data: bytes) -> Library:
    """Read a library's tables.

    Raises:
        ValueError: it is none of those we know.
    """
    try:
        if data[:6] == b"\x7fELF\x02\x01":
            return _read_elf(data)
        if data[:4] == b"\xcf\xfa\xed\xfe":
            return _read_mach(data)
        if data[:2] == b"MZ":
            return _read_pe(data)
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError(f"not a whole library: {error!r}") from error
    raise ValueError("neither ELF nor Mach-O nor PE, of 64 bits")


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _python(names: set[str]) -> frozenset[str]:
    return frozenset(name for name in names if _PYTHON.fullmatch(name))


# -- Linux ------------------------------------------------------------------------------------------------------------


def _read_elf(data: bytes) -> Library:
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,), (size, count) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 58)
    # Of each section: its kind, where it lies, its length, and the number of the one with its texts.
    sections = [struct.unpack_from("<4xI16xQQI", data, table + size * number) for number in range(count)]
    needs, offers, expects, versions = set[str](), set[str](), set[str](), set[str]()
    for kind, start, length, link in sections:
        texts = sections[link][1]
        if kind == 6:  # dynamic
            entries = struct.iter_unpack("<QQ", data[start : start + length])
            needs |= {_text(data, texts + value) for tag, value in entries if tag == 1}
        elif kind == 11:  # dynamic symbols; the first one is none
            for name, info, _, section in struct.iter_unpack("<IBBH16x", data[start + 24 : start + length]):
                if info >> 4:  # not local
                    (offers if section else expects).add(_text(data, texts + name))
        elif kind == 0x6FFF_FFFE:  # versions of symbols
            versions |= set(_elf_versions(data, start, texts))
    return Library(
        system="linux",
        machine=_ELF_MACHINES[machine],
        needs=frozenset(needs),
        offers=frozenset(offers),
        expects=_python(expects),
        versions=frozenset(versions),
    )


def _elf_versions(data: bytes, start: int, texts: int) -> Iterator[str]:
    while True:
        count, first, following = struct.unpack_from("<2xH4xII", data, start)
        at = start + first
        for _ in range(count):
            name, further = struct.unpack_from("<8xII", data, at)
            yield _text(data, texts + name)
            at += further
        if not following:
            return
        start += following


# -- macOS ------------------------------------------------------------------------------------------------------------


def _read_mach(data: bytes) -> Library:
    machine, commands = struct.unpack_from("<4xI8xI", data)
    needs, offers, expects, versions, is_signed = set[str](), set[str](), set[str](), set[str](), False
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command in {0x0C, 0x8000_0018, 0x8000_001F}:  # a library, maybe weak or exported again
            needs.add(_text(data, at + struct.unpack_from("<8xI", data, at)[0]))
        elif command == 0x02:
            symbols, count, texts = struct.unpack_from("<8xIII", data, at)
            for name, kind in struct.iter_unpack("<IB11x", data[symbols : symbols + 16 * count]):
                if kind & 0x01:  # external
                    (offers if kind & 0x0E else expects).add(_text(data, texts + name)[1:])
        elif command == 0x32:
            (release,) = struct.unpack_from("<12xI", data, at)
            versions.add(f"{release >> 16}.{release >> 8 & 0xFF}")
        is_signed |= command == 0x1D
        at += size
    return Library(
        system="macos",
        machine=_MACH_MACHINES[machine],
        needs=frozenset(needs),
        offers=frozenset(offers - _LINKERS_OWN),
        expects=_python(expects),
        versions=frozenset(versions),
        is_signed=is_signed,
    )


# -- Windows ----------------------------------------------------------------------------------------------------------


def _read_pe(data: bytes) -> Library:
    (header,) = struct.unpack_from("<I", data, 60)
    signature, machine, count, options_size = struct.unpack_from("<4sHH12xH", data, header)
    if signature != b"PE\0\0" or struct.unpack_from("<H", data, header + 24) != (0x20B,):
        raise ValueError("not a PE library of 64 bits")
    directories = struct.unpack_from("<IIII", data, header + 24 + 112)
    first = header + 24 + options_size
    # Of each section: its size and address in memory, and where it lies in the file.
    sections: list[tuple[int, int, int]] = [
        struct.unpack_from("<8xII4xI", data, first + 40 * number) for number in range(count)
    ]

    def place(address: int) -> int:
        for size, start, stored in sections:
            if start <= address < start + size:
                return address - start + stored
        raise ValueError(f"address {address:#x} is in no section")

    needs, expects = set[str](), set[str]()
    for lookup, library in _pe_imports(data, place(directories[2])):
        needs.add(_text(data, place(library)))
        at = place(lookup)
        while (entry := struct.unpack_from("<Q", data, at)[0]) != 0:
            if not entry >> 63:  # by name
                expects.add(_text(data, place(entry) + 2))
            at += 8
    exports = place(directories[0])
    named, names = struct.unpack_from("<24xI4xI", data, exports)
    offered = struct.unpack_from(f"<{named}I", data, place(names))
    return Library(
        system="windows",
        machine=_PE_MACHINES[machine],
        needs=frozenset(needs),
        offers=frozenset(_text(data, place(name)) for name in offered),
        expects=_python(expects),
    )


def _pe_imports(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Of each library that is needed: the addresses of the names expected of it, and of its own name."""
    while True:
        lookup, library = struct.unpack_from("<I8xI", data, at)
        if not library:
            return
        yield lookup, library
        at += 20
