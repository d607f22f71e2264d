"""Reading rows straight off the pages of an SQLite file whose trees are broken.

SQLite reaches a row from the root of its table, so one lost inner page hides hundreds of good rows. Rows here are read
off every leaf page instead, and the checksum each one carries tells whether it is whole.
Source of the layout: https://www.sqlite.org/fileformat2.html, sections 1.3 to 1.6, 2.1 and 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_TABLE_LEAF: Final = 13
_WAL_HEADER, _FRAME_HEADER = 32, 24
_INTEGER_SIZES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Pages:
    """The pages of a database file and of the write-ahead log beside it.

    Args:
        path: The database file.
    """

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        stated = int.from_bytes(self._data[16:18], "big")
        self._size = 65536 if stated == 1 else stated if stated >= 512 and stated & (stated - 1) == 0 else 4096
        self._usable = self._size - (self._data[20] if len(self._data) > 20 and self._data[20] < 64 else 0)
        log = path.with_name(f"{path.name}-wal")
        self._log = list(self._frames(log.read_bytes())) if log.exists() else []
        self._latest = dict(self._log)

    @property
    def missing(self) -> int:
        """How many pages the file is shorter than its header says."""
        return max(0, int.from_bytes(self._data[28:32], "big") - len(self._data) // self._size)

    def rows(self) -> Iterator[tuple[int, list[Any] | None]]:
        """Read the rows of all tables, older versions of a row included.

        Yields:
            Row id and values (the first one None, where the table has an integer primary key); values None for a
            cell that cannot be read.
        """
        for number in range(2, -(-len(self._data) // self._size) + 1):  # page 1 holds the schema only
            yield from self._leaf(self._data[(number - 1) * self._size : number * self._size])
        for _, page in self._log:
            yield from self._leaf(page)

    def _frames(self, log: bytes) -> Iterator[tuple[int, bytes]]:
        step = _FRAME_HEADER + self._size
        for start in range(_WAL_HEADER, len(log) - step + 1, step):
            if log[start + 8 : start + 16] == log[16:24]:  # salts: of this log's present round
                yield int.from_bytes(log[start : start + 4], "big"), log[start + _FRAME_HEADER : start + step]

    def _leaf(self, page: bytes) -> Iterator[tuple[int, list[Any] | None]]:
        if len(page) < 8 or page[0] != _TABLE_LEAF:
            return
        for index in range(min(int.from_bytes(page[3:5], "big"), len(page) // 4)):
            start = int.from_bytes(page[8 + 2 * index : 10 + 2 * index], "big")
            row_id = 0
            try:
                length, start = _varint(page, start)
                row_id, start = _varint(page, start)
                yield row_id, _record(self._payload(page, start, length))
            except (ValueError, IndexError, struct.error):
                yield row_id, None

    def _payload(self, page: bytes, start: int, length: int) -> bytes:
        """A cell's bytes: those on its page, then those on its chain of overflow pages."""
        if length > len(self._data) + len(self._log) * self._size:
            raise ValueError("longer than the file")
        most = self._usable - 35
        if length <= most:
            return page[start : start + length]
        least = (self._usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (self._usable - 4)
        local = local if local <= most else least
        payload = bytearray(page[start : start + local])
        following = page[start + local : start + local + 4]
        while len(payload) < length:
            number = int.from_bytes(following, "big")
            more = self._latest.get(number) or self._data[(number - 1) * self._size : number * self._size]
            if number < 2 or len(more) <= 4:
                raise ValueError("a broken chain")
            payload += more[4 : min(self._usable, 4 + length - len(payload))]
            following = more[:4]
        return bytes(payload)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and the place behind it."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9


def _record(payload: bytes) -> list[Any]:
    """The values of a row."""
    end, at = _varint(payload, 0)
    start, values = end, list[Any]()
    while at < end:
        kind, at = _varint(payload, at)
        size = _INTEGER_SIZES.get(kind, 8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0)
        raw = payload[start : start + size]
        if len(raw) < size:
            raise ValueError("cut short")
        values.append(_value(kind, raw))
        start += size
    return values


def _value(kind: int, raw: bytes) -> Any:
    if kind in _INTEGER_SIZES:
        return int.from_bytes(raw, "big", signed=True)
    if kind == 7:
        return struct.unpack(">d", raw)[0]
    if kind < 12:
        return {8: 0, 9: 1}.get(kind)
    return raw.decode() if kind % 2 else raw
