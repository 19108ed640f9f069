"""Which directories of a whole tree are as they were made, told by processes of their own.

A walk asks for each directory and waits for its answer: at 100,000 files that takes 2 s. These are asked
nothing: they compare what there is with what is known, and tell of the other directories alone. They are
confined like the reader of the walk, and believed no more; without their answer the walk goes everywhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from overlayrun.bases.index import read_stamps, stamp_of
from overlayrun.errors import SnapshotError
from overlayrun.layers import wire
from overlayrun.layers.wire import FileInfo, LimitReached
from overlayrun.reader import Reader
from overlayrun.store.trees import Entry, is_tree

if TYPE_CHECKING:
    from overlayrun.bases.index import Stamp

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARE: Final = 500  # directories that are worth a process
_MOST: Final = 4  # processes

ReadTree = Callable[[bytes], Mapping[bytes, Entry]]


class _Known:
    """A tree as it was made. files: stamps by directory and name; below: names of directories in each."""

    __slots__ = ("below", "files")

    def __init__(self, index: str) -> None:
        self.files: dict[bytes, dict[bytes, Stamp]] = {}
        self.below: dict[bytes, set[bytes]] = {b"": set()}
        last: bytes | None = None
        for path, stamp in read_stamps(index).items():
            directory, _, name = path.rpartition(b"/")
            if directory != last:
                last, names = directory, self.files.setdefault(directory, {})
                self._add(directory)
            names[name] = stamp

    def _add(self, directory: bytes) -> None:
        fresh = []
        while directory not in self.below:
            fresh.append(directory)
            self.below[directory] = set()
            directory = directory.rpartition(b"/")[0]
        for each in fresh:
            above, _, name = each.rpartition(b"/")
            self.below[above].add(name)

    def is_same(self, directory: bytes) -> bool:
        """Whether all in a directory is as it was made, names of those below too. Raises OSError."""
        fd = os.open(directory or b".", _DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return self._is_made(directory, entries)
        finally:
            os.close(fd)

    def _is_made(self, directory: bytes, entries: Iterable[os.DirEntry[str]]) -> bool:
        files, below = self.files.get(directory, {}), self.below[directory]
        count = 0
        for entry in entries:
            name = os.fsencode(entry.name)
            is_known = (
                entry.is_dir(follow_symlinks=False) if name in below else files.get(name) == _stamp(entry)
            )
            if not is_known:
                return False
            count += 1
        return count == len(files) + len(below)


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    info = entry.stat(follow_symlinks=False)
    return stamp_of(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


class Made:
    """What is known of a whole tree as it was made, and which of its directories are so still."""

    __slots__ = ("_known", "_same")

    def __init__(self, known: _Known, same: frozenset[bytes]) -> None:
        self._known = known
        self._same = same

    def is_still(self, path: bytes, info: FileInfo) -> bool:
        """Whether a file, a submodule's directory, or a directory with all below it is as it was made."""
        if stat.S_ISDIR(info.mode) and path in self._same:
            return True
        directory, _, name = path.rpartition(b"/")
        return self._known.files.get(directory, {}).get(name) == stamp_of(*info.stamp)


class Survey:
    """One survey, as a context manager; it goes on while the caller does something else.

    upper: path of the tree; index: what is known of it; seconds: as for `Reader`. Raises SnapshotError.
    """

    def __init__(self, upper: str, index: str, seconds: float | None) -> None:
        self._known = _Known(index)
        directories = list(self._known.below)
        count = min(len(os.sched_getaffinity(0)), _MOST, len(directories) // _SHARE + 1)
        step = -(-len(directories) // count)
        shares = [directories[start : start + step] for start in range(0, len(directories), step)]
        with ExitStack() as stack:
            self._readers = [
                stack.enter_context(Reader(upper, seconds, partial(_tell, self._known, share)))
                for share in shares
            ]
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def made(self, read: ReadTree, base: bytes | None, start: bytes | None) -> Made:
        """What came of it. base, start: trees that the index is of, and that a snapshot is compared with."""
        try:
            other = {path for reader in self._readers for path in _answer(reader)}
        except (SnapshotError, LimitReached):
            return Made(self._known, frozenset())
        other.update(_differing(read, base, start))
        for path in list(other):
            other.update(_above(path))
        return Made(self._known, frozenset(self._known.below.keys() - other))


def _answer(reader: Reader) -> list[bytes]:
    said = b""
    while (frame := reader.channel.frame()).letter != wire.END:
        if frame.letter != wire.DATA:
            raise wire.lie(f"{frame.letter!a} in a survey")
        said += frame.payload
    return said.split(b"\0")


def _above(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def _differing(read: ReadTree, old: bytes | None, new: bytes | None) -> Iterator[bytes]:
    """Paths that differ between two trees, directories and all below them included."""
    waiting = [(b"", old, new)]
    while waiting:
        path, one, other = waiting.pop()
        if one == other:
            continue
        before, after = (read(tree) if tree else {} for tree in (one, other))
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            if was != now:
                below = path + b"/" + name if path else name
                yield below
                waiting.append((below, _tree(was), _tree(now)))


def _tree(entry: Entry | None) -> bytes | None:
    return entry[1] if entry and is_tree(entry) else None


def _tell(known: _Known, directories: Sequence[bytes], root: int, questions: int, answers: int) -> None:
    """In a confined process, whose root is the tree: say which directories are not as they were made."""
    del root, questions
    said = b"\0".join(directory for directory in directories if not _is_same(known, directory))
    for start in range(0, len(said), wire.BLOCK):
        piece = said[start : start + wire.BLOCK]
        _write(answers, wire.HEADER.pack(wire.DATA, len(piece), 0, 0, 0, 0, 0) + piece)
    _write(answers, wire.HEADER.pack(wire.END, 0, 0, 0, 0, 0, 0))


def _is_same(known: _Known, directory: bytes) -> bool:
    try:
        return known.is_same(directory)
    except OSError:  # it is gone, or closed: the walk says more
        return False


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
