"""Takes the build machine's own folders out of Linux libraries: the search paths that their linker wrote into them.

A library that looks for others in the home of whoever built it would load, on another machine, what the person of that
name put there. Only 64-bit little-endian ELF is understood; anything else is left as it is. Standard library alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 5, 15, 29


def _segments(data: bytes | bytearray) -> list[tuple[int, int, int, int]]:
    """Type, offset in the file, address and size in the file of each segment."""
    table = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    found = []
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        found.append((kind, offset, address, length))
    return found


def _dynamic(data: bytes | bytearray) -> tuple[int, list[tuple[int, int]]]:
    """Where the dynamic section lies, and its entries before the first null."""
    for kind, offset, _, length in _segments(data):
        if kind == _PT_DYNAMIC:
            entries = []
            for place in range(offset, offset + length, 16):
                entry = struct.unpack_from("<qQ", data, place)
                if entry[0] == _DT_NULL:
                    break
                entries.append(entry)
            return offset, entries
    return 0, []


def is_elf(data: bytes | bytearray) -> bool:
    return data[:6] == b"\x7fELF\x02\x01"


def search_paths(data: bytes | bytearray) -> list[str]:
    """The search paths in an ELF file, as written."""
    if not is_elf(data):
        return []
    _, entries = _dynamic(data)
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    for kind, offset, address, length in _segments(data):
        if kind == _PT_LOAD and address <= strings < address + length:
            strings += offset - address
            break
    found = []
    for tag, value in entries:
        if tag in (_DT_RPATH, _DT_RUNPATH):
            end = data.index(b"\0", strings + value)
            found.append(bytes(data[strings + value : end]).decode("utf-8", "replace"))
    return found


def is_foreign(path: str) -> bool:
    """True for a search path with a part that is not relative to the library itself."""
    return any(not part.startswith("$ORIGIN") for part in path.split(":"))


def forget_search_paths(file: Path) -> bool:
    """Remove search paths that name folders of the build machine. True if there were any."""
    data = bytearray(file.read_bytes())
    if not any(is_foreign(path) for path in search_paths(data)):
        return False
    offset, entries = _dynamic(data)
    kept = [entry for entry in entries if entry[0] not in (_DT_RPATH, _DT_RUNPATH)]
    for number in range(len(entries)):
        entry = kept[number] if number < len(kept) else (_DT_NULL, 0)
        struct.pack_into("<qQ", data, offset + number * 16, *entry)
    file.write_bytes(data)
    return True
