"""Write git objects: loose when few, one pack when many; on disk for good before `finish` returns.

Source: gitformat-pack(5). zlib level 1: writes in two thirds of the time of level 6 for an eighth more bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO, Final, Self

LOOSE_LIMIT: Final = (
    20  # a loose object costs a file and a flush, a pack three flushes and a file in every look-up
)
PENDING_BYTES: Final = 8 << 20
_LEVEL: Final = 1
_CHUNK: Final = 1 << 20
_TYPES: Final = {b"commit": 1, b"tree": 2, b"blob": 3}
_BIG_OFFSET: Final = 0x80000000


class ShortRead(Exception):
    """A file gave fewer bytes than its size promised: somebody truncated it meanwhile."""


class ObjectWriter:
    """Takes objects in, gives their raw ids back, writes those that are not known yet.

    known: raw ids that the store is sure to hold. durable: False leaves the flush of loose objects to the
    caller. As a context manager it removes what was not finished.
    """

    def __init__(self, objects: str, known: frozenset[bytes] = frozenset(), *, durable: bool = True) -> None:
        self._objects = objects
        self._durable = durable
        self._seen = set(known)
        self._pending: dict[bytes, tuple[bytes, bytes]] = {}
        self._pending_bytes = 0
        self._pack: _Pack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pack:
            self._pack.discard()

    def trust(self, oid: bytes) -> None:
        """Note an id that the store is sure to hold."""
        self._seen.add(oid)

    def add(self, kind: bytes, data: bytes) -> bytes:
        """Take one object in; kind: b"blob", b"tree" or b"commit"."""
        oid = object_id(kind, data)
        if oid in self._seen:
            return oid
        self._seen.add(oid)
        self._pending[oid] = (kind, data)
        self._pending_bytes += len(data)
        if self._pack or len(self._pending) > LOOSE_LIMIT or self._pending_bytes > PENDING_BYTES:
            self._spill()
        return oid

    def add_file(self, pieces: Iterable[bytes], size: int) -> bytes:
        """Take a file of `size` bytes in as a blob, in pieces. Raises ShortRead if there are fewer."""
        oid = self._open_pack().append_blob(pieces, size, self._seen)
        self._seen.add(oid)
        return oid

    def finish(self) -> None:
        """Write what is left; afterwards every object survives a power cut."""
        if self._pack:
            self._spill()
            self._pack.finish()
            self._pack = None
        elif self._pending:
            _write_loose(self._objects, self._pending, durable=self._durable)
            self._pending = {}

    def _open_pack(self) -> _Pack:
        if self._pack is None:
            self._pack = _Pack(f"{self._objects}/pack")
        return self._pack

    def _spill(self) -> None:
        pack = self._open_pack()
        for oid, (kind, data) in self._pending.items():
            pack.append(oid, kind, data)
        self._pending, self._pending_bytes = {}, 0


def object_id(kind: bytes, data: bytes) -> bytes:
    """Raw id of an object."""
    digest = hashlib.sha1(b"%b %d\0" % (kind, len(data)), usedforsecurity=False)
    digest.update(data)
    return digest.digest()


def _write_loose(objects: str, pending: dict[bytes, tuple[bytes, bytes]], *, durable: bool) -> None:
    moves: list[tuple[str, str]] = []
    try:
        for oid, (kind, data) in pending.items():
            hexed = oid.hex()
            directory = f"{objects}/{hexed[:2]}"
            with suppress(FileExistsError):
                os.mkdir(directory)
            fd, aside = tempfile.mkstemp(prefix="tmp_obj_", dir=directory)  # a name that `git prune` clears
            moves.append((aside, f"{directory}/{hexed[2:]}"))
            _fill_loose(fd, kind, data, durable=durable)
        for aside, path in moves:
            os.rename(aside, path)
    except OSError:
        for aside, _ in moves:
            with suppress(OSError):
                os.unlink(aside)
        raise
    for directory in {os.path.dirname(path) for _, path in moves} | {objects} if durable else ():
        flush(directory)


def _fill_loose(fd: int, kind: bytes, data: bytes, *, durable: bool) -> None:
    with open(fd, "wb") as file:
        file.write(zlib.compress(b"%b %d\0%b" % (kind, len(data), data), _LEVEL))
        file.flush()
        os.fchmod(fd, 0o444)
        if durable:
            os.fsync(fd)


def flush(path: str) -> None:
    """Flush a file or directory by its path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Pack:
    """One pack that grows on disk; its header gets the count at the end."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        self._directory = directory
        fd, self._aside = tempfile.mkstemp(prefix="tmp_pack_", dir=directory)
        self._file = os.fdopen(fd, "w+b")
        self._file.write(b"PACK" + struct.pack(">II", 2, 0))
        self._entries: list[tuple[bytes, int, int]] = []

    def append(self, oid: bytes, kind: bytes, data: bytes) -> None:
        offset = self._file.tell()
        entry = _entry_header(_TYPES[kind], len(data)) + zlib.compress(data, _LEVEL)
        self._file.write(entry)
        self._entries.append((oid, zlib.crc32(entry), offset))

    def append_blob(self, pieces: Iterable[bytes], size: int, seen: set[bytes]) -> bytes:
        """Compress piece by piece; what turns out to be short or already there is cut off again."""
        offset = self._file.tell()
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        squeeze = zlib.compressobj(_LEVEL)
        crc = self._write(_entry_header(_TYPES[b"blob"], size), 0)
        try:
            for piece in _exactly(pieces, size):
                digest.update(piece)
                crc = self._write(squeeze.compress(piece), crc)
            crc = self._write(squeeze.flush(), crc)
        except ShortRead:
            self._cut(offset)
            raise
        oid = digest.digest()
        if oid in seen:
            self._cut(offset)
        else:
            self._entries.append((oid, crc, offset))
        return oid

    def finish(self) -> None:
        """Complete pack and index, the index last: git looks for packs by their index."""
        if not self._entries:
            self.discard()
            return
        self._file.seek(8)
        self._file.write(struct.pack(">I", len(self._entries)))
        checksum = self._checksum()
        self._file.write(checksum)
        self._file.flush()
        os.fchmod(self._file.fileno(), 0o444)
        os.fsync(self._file.fileno())
        self._file.close()
        name = f"{self._directory}/pack-{checksum.hex()}"
        fd, index = tempfile.mkstemp(prefix="tmp_idx_", dir=self._directory)
        with open(fd, "wb") as file:
            file.write(_index(self._entries, checksum))
            file.flush()
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        os.rename(self._aside, f"{name}.pack")
        os.rename(index, f"{name}.idx")
        flush(self._directory)

    def discard(self) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._aside)

    def _write(self, data: bytes, crc: int) -> int:
        self._file.write(data)
        return zlib.crc32(data, crc)

    def _cut(self, offset: int) -> None:
        self._file.seek(offset)
        self._file.truncate()

    def _checksum(self) -> bytes:
        digest = hashlib.sha1(usedforsecurity=False)
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            digest.update(chunk)
        return digest.digest()


def join_exactly(pieces: Iterable[bytes], size: int) -> bytes:
    """The pieces of a file of `size` bytes as one. Raises ShortRead if there are fewer."""
    data = b"".join(pieces)
    if len(data) != size:
        raise ShortRead
    return data


def copy_exactly(pieces: Iterable[bytes], size: int, to: BinaryIO) -> None:
    """Write a file of `size` bytes to `to`, piece by piece. Raises ShortRead if there are fewer."""
    for piece in _exactly(pieces, size):
        to.write(piece)


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """What a file of ours holds, never all of it at once."""
    while piece := file.read(_CHUNK):
        yield piece


def _exactly(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    left = size
    for piece in pieces:
        left -= len(piece)
        yield piece
    if left:
        raise ShortRead


def _entry_header(kind: int, size: int) -> bytes:
    """Type in bits 4-6 of the first byte, size in 4 bits there and 7 in each that follows."""
    octet = kind << 4 | size & 15
    size >>= 4
    header = bytearray()
    while size:
        header.append(octet | 0x80)
        octet = size & 0x7F
        size >>= 7
    header.append(octet)
    return bytes(header)


def _index(entries: list[tuple[bytes, int, int]], checksum: bytes) -> bytes:
    """Version 2 index: fan-out, ids, checksums, offsets (beyond 2 GiB in a table of their own)."""
    entries = sorted(entries)
    counts = [0] * 256
    for oid, _, _ in entries:
        counts[oid[0]] += 1
    total, fanout = 0, []
    for count in counts:
        total += count
        fanout.append(total)
    big = [offset for _, _, offset in entries if offset >= _BIG_OFFSET]
    places = iter(range(len(big)))
    offsets = [_BIG_OFFSET | next(places) if o >= _BIG_OFFSET else o for _, _, o in entries]
    count = len(entries)
    body = b"".join(
        (
            b"\377tOc" + struct.pack(">I256I", 2, *fanout),
            *(oid for oid, _, _ in entries),
            struct.pack(f">{count}I", *(crc for _, crc, _ in entries)),
            struct.pack(f">{count}I", *offsets),
            struct.pack(f">{len(big)}Q", *big),
            checksum,
        )
    )
    return body + hashlib.sha1(body, usedforsecurity=False).digest()
