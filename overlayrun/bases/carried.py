"""Ignored files that come along: `.env`, node_modules, .venv, target. Frozen once, shared by branches.

They are lower layers of the workspace's one overlay, not mounts of their own: fifty `__pycache__`
directories would be fifty mounts, and renames or links between a carried directory and the tree would give
EXDEV. Directories of some size have a layer each, all else is in one.
"""

from __future__ import annotations

import hashlib
import os
import stat

from overlayrun.files import copy_file, flush_disk, flush_file, read_bytes, remove_tree, write_whole
from overlayrun.kernel.mountinfo import mounts
from overlayrun.model import CarryPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Final

    from overlayrun.workspace.layout import Layout

_OWN_LAYER: Final = 500  # entries
_FEW: Final = 100  # files that are flushed one by one, 0.4 ms each
_CLOSED: Final = ("!", "-type", "l", "!", "-readable", "-print0", "-prune")  # tests of find(1)


class Carried:
    """What comes along.

    paths: below the root, without a final slash. layers: below the state directory. notes: what could not
    come.
    live: those of the paths, all directories, that are to be shown as they are now.
    """

    __slots__ = ("layers", "live", "notes", "paths")

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self.layers: list[str] = []
        self.live: list[bytes] = []
        self.notes: list[str] = []


class _Known:
    """A directory as it was when its layer was made: the times of all directories in it."""

    __slots__ = ("layer", "times")

    def __init__(self, layer: str, times: list[tuple[bytes, int]]) -> None:
        self.layer = layer
        self.times = times

    def holds(self) -> bool:
        """Whether every directory's time is as it was: names that came, went or were replaced change it."""
        try:
            return all(os.lstat(path).st_mtime_ns == time for path, time in self.times)
        except OSError:
            return False


def carry(
    layout: Layout, root: str, ignored: Iterable[bytes], policy: CarryPolicy, tell: Callable[[str], None]
) -> Carried:
    """Layers of the ignored paths as they are now, made where they are missing.

    ignored: below `root`, directories with a final slash. tell: called with a line before anything slow.
    """
    carried = Carried()
    if policy is CarryPolicy.NONE:
        return carried
    small: list[bytes] = []
    mounted = [os.fsencode(mount.place) for mount in mounts()] if policy is CarryPolicy.LIVE else []
    for path in sorted(_narrowed(root, ignored)):
        place = path.rstrip(b"/")
        if os.path.lexists(os.path.join(os.fsencode(root), place, b".git")):
            carried.notes.append(f"ignored repository not carried: {os.fsdecode(place)}")
            continue
        carried.paths.append(place)
        if policy is CarryPolicy.LIVE and path.endswith(b"/"):
            within = os.path.join(os.fsencode(root), path)
            if not any(mount.startswith(within) for mount in mounted):
                carried.live.append(place)
                small.append(place)
                continue
            # In a user namespace no overlay shows a directory with another mount in it.
            carried.notes.append(f"copied, not live, for the mount in it: {os.fsdecode(place)}")
        layer = path.endswith(b"/") and _large(layout, root, place, policy, tell)
        if layer:
            carried.layers.append(layer)
        else:
            small.append(place)
    if small:
        carried.layers.append(_small(layout, root, small, carried.live))
    for layer in carried.layers:
        carried.notes += _unreadable(layout, layer)
    return carried


def _unreadable(layout: Layout, layer: str) -> list[str]:
    """What could not be read when a layer was made, one sentence each."""
    try:
        paths = read_bytes(f"{layout.root}/{layer}.unreadable").split(b"\0")[:-1]
    except FileNotFoundError:
        return []
    return [f"not carried: you may not read {os.fsdecode(path)}" for path in paths]


def _narrowed(root: str, ignored: Iterable[bytes]) -> list[bytes]:
    """The paths that `.worktreeinclude` names, where there is one; its syntax is that of .gitignore."""
    try:
        rules = read_bytes(f"{root}/.worktreeinclude").decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return list(ignored)
    from pathspec import GitIgnoreSpec  # 20 ms that only such a repository pays

    wanted = GitIgnoreSpec.from_lines(rules.split("\n"))
    return [path for path in ignored if wanted.match_file(os.fsdecode(path))]


def _large(
    layout: Layout, root: str, path: bytes, policy: CarryPolicy, tell: Callable[[str], None]
) -> str | None:
    """Layer of one directory, None if it is small."""
    note = f"{layout.carried}/{_digest([os.fsencode(root), path, policy.value.encode()])}.known"
    known = _read_known(note)
    if known is not None and known.holds() and os.path.isdir(f"{layout.root}/{known.layer}"):
        return known.layer
    place = os.path.join(os.fsencode(root), path)
    times, entries = _walk(place)
    if entries < _OWN_LAYER:
        return None
    layer = f"carried/{_digest([path, *(b'%s %d' % item for item in times)])}"
    if not os.path.isdir(f"{layout.root}/{layer}"):
        tell(f"carrying {os.fsdecode(path)} along: {entries} entries")
        if not _freeze(layout, root, layer, [path], policy) and policy is CarryPolicy.LINK:
            tell(f"hard links of {os.fsdecode(path)} are refused here: it was copied")
    write_whole(note, _write_known(layer, times), durable=True)
    return layer


def _small(layout: Layout, root: str, paths: Sequence[bytes], live: Sequence[bytes]) -> str:
    """One layer of all that is small, named by what lstat says of it; of what is live just the place."""
    facts = [b"live", *live]
    for path in paths:
        for place in [] if path in live else _below(os.path.join(os.fsencode(root), path)):
            info = os.lstat(place)
            facts.append(b"%s %d %d %d" % (place, info.st_mtime_ns, info.st_size, info.st_ino))
    layer = f"carried/{_digest(facts)}"
    if not os.path.isdir(f"{layout.root}/{layer}"):
        # Single files are copied: an editor that saves in place would show through a hard link.
        _freeze(layout, root, layer, [path for path in paths if path not in live], CarryPolicy.REFLINK)
        for path in live:
            _make_parents(os.fsencode(root), os.fsencode(f"{layout.root}/{layer}"), path)
    return layer


def _below(place: bytes) -> Iterator[bytes]:
    yield place
    if os.path.isdir(place) and not os.path.islink(place):
        for directory, directories, files in os.walk(place):
            yield from (os.path.join(directory, name) for name in [*directories, *files])


def _walk(place: bytes) -> tuple[list[tuple[bytes, int]], int]:
    """Times of every directory under `place`, and how many entries there are."""
    times: list[tuple[bytes, int]] = []
    entries = 0
    waiting = [place]
    while waiting:
        directory = waiting.pop()
        times.append((directory, os.lstat(directory).st_mtime_ns))
        listing = _list(directory)
        entries += len(listing)
        waiting += [entry.path for entry in listing if entry.is_dir(follow_symlinks=False)]
    return times, entries


def _list(directory: bytes) -> list[os.DirEntry[bytes]]:
    try:
        return list(os.scandir(directory))
    except PermissionError:
        return []


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:40]


def _write_known(layer: str, times: Iterable[tuple[bytes, int]]) -> bytes:
    return b"\0".join([layer.encode(), *(b"%d %s" % (time, path) for path, time in times)])


def _read_known(path: str) -> _Known | None:
    try:
        layer, *lines = read_bytes(path).split(b"\0")
    except FileNotFoundError:
        return None
    times = []
    for line in lines:
        time, _, directory = line.partition(b" ")
        times.append((directory, int(time)))
    return _Known(layer.decode(), times)


def _freeze(layout: Layout, root: str, layer: str, paths: Sequence[bytes], policy: CarryPolicy) -> bool:
    """Make a layer that holds copies (reflinks where the file system can) or hard links of `paths`.

    Returns whether they are all links.
    """
    place = f"{layout.root}/{layer}"
    aside = f"{layout.carried}/.{os.getpid()}-{os.path.basename(layer)}"
    remove_tree(aside)
    unreadable = b""
    all_linked = True
    _make_parents(os.fsencode(root), os.fsencode(aside), b"")
    for path in paths:
        parent = os.path.dirname(path)
        _make_parents(os.fsencode(root), os.fsencode(aside), parent)
        source, target = os.path.join(os.fsencode(root), path), os.path.join(os.fsencode(aside), parent)
        # cp goes at the kernel's speed; where a link is refused (another owner, another disk) the copy fills
        # the gap.
        linked = policy is CarryPolicy.LINK and _spawn(b"cp", b"-al", b"--", source, target) == 0
        all_linked &= linked
        if not linked and _spawn(b"cp", b"-a", b"--no-clobber", b"--reflink=auto", b"--", source, target):
            unreadable += _output("find", os.fsdecode(source), *_CLOSED)
    _make_ours(os.fsencode(aside))
    if unreadable:
        write_whole(f"{place}.unreadable", unreadable, durable=True)
    _flush(os.fsencode(aside))
    try:
        os.rename(aside, place)
    except OSError:
        remove_tree(aside)
        if not os.path.isdir(place):
            raise
    return all_linked


def _flush(layer: bytes) -> None:
    """Let what was copied reach the disk before the layer has its name: a power cut would leave empty files.

    What is a hard link of the user's file is not ours to flush.
    """
    copies = []
    for directory, _, files in os.walk(layer):
        infos = [(os.path.join(directory, name), os.lstat(os.path.join(directory, name))) for name in files]
        copies += [path for path, info in infos if stat.S_ISREG(info.st_mode) and info.st_nlink == 1]
        if len(copies) > _FEW:
            return flush_disk(layer)
    for path in copies:
        try:
            flush_file(path)
        except PermissionError:
            return flush_disk(layer)
    return None


def _make_ours(layer: bytes) -> None:
    """Give the layer to our own user and group: overlayfs can't copy files up whose owner is not mapped.

    A hard link of somebody else's file becomes a copy. (EOVERFLOW otherwise, at the first write inside.)
    """
    uid, gid = os.geteuid(), os.getegid()
    test = ["(", "!", "-uid", str(uid), "-o", "!", "-gid", str(gid), ")"]
    for place in _output("find", os.fsdecode(layer), *test, "-print0").split(b"\0")[:-1]:
        if os.path.isfile(place) and not os.path.islink(place):
            copy_file(place, place + b".overlayrun")
            os.replace(place + b".overlayrun", place)
        else:
            os.chown(place, uid, gid, follow_symlinks=False)


def _output(*command: str) -> bytes:
    read_fd, write_fd = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, write_fd, 1)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    os.close(write_fd)
    with open(read_fd, "rb") as answer:
        data = answer.read()
    os.waitpid(pid, 0)
    return data


def _make_parents(root: bytes, target: bytes, directory: bytes) -> None:
    place = os.path.join(target, directory) if directory else target
    if os.path.isdir(place):
        return
    if directory:
        _make_parents(root, target, os.path.dirname(directory))
    os.mkdir(place)
    info = os.lstat(os.path.join(root, directory) if directory else root)
    os.chmod(place, stat.S_IMODE(info.st_mode))


def _spawn(*command: bytes) -> int:
    quiet = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def default_policy(layout: Layout) -> CarryPolicy:
    """REFLINK where the state's file system shares blocks between files, else LINK; found out by trying."""
    probe = f"{layout.carried}/.reflinks"
    if not os.path.exists(probe):
        source = f"{layout.carried}/.probe"
        write_whole(source, b"x" * 8192, durable=False)
        shares = _spawn(b"cp", b"--reflink=always", os.fsencode(source), os.fsencode(f"{source}2")) == 0
        for path in (source, f"{source}2"):
            if os.path.exists(path):
                os.unlink(path)
        write_whole(probe, b"reflink" if shares else b"link", durable=True)
    return CarryPolicy(read_bytes(probe).decode())
