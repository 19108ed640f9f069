"""Directory renames that overlayfs refuses, prepared while the caller waits, and then done by the kernel.

The filter tells of every rename(2) before it is done. What is no directory, or one that the upper alone has,
goes on at once. For any other a child that has given up what the command has makes it so (`renaming`). Then
the call goes on as well: it is the kernel that renames, with the caller's own rights, and all that is looked
at here may be changed by him meanwhile without harm (seccomp_unotify(2), "NOTES"). The one answer that is not
the kernel's is an error.

It is the same for root, whose own overlays could rename such directories by marks of theirs (redirect_dir):
snapshots then need to know of one kind of upper only. Directories of other file systems are left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.mountinfo import mounts
from overlayrun.sandbox import aside, renaming
from overlayrun.sandbox.confinement import Confinement, confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

_PAGE: Final = 4096
_SHORT: Final = 256  # bytes of most paths
_EMPTY: Final = (b"", b".", b"..")
_FLAGS: Final = (0, abi.RENAME_NOREPLACE, abi.RENAME_EXCHANGE)  # overlayfs refuses all others


class Renames:
    """Who waits for a rename; one is helped at a time. listener: descriptor of `seccomp.listen`.

    asked: gives an answer, errno or 0 for the kernel's own, to the caller with a number.
    """

    __slots__ = (
        "_answer",
        "_confinement",
        "_helper",
        "_is_finishing",
        "_listener",
        "_memory",
        "_since",
        "_waiting",
    )

    def __init__(self, listener: int, confinement: Confinement, answer: Callable[[int, int], None]) -> None:
        self._listener = listener
        self._confinement = confinement
        self._answer = answer
        # Pairs of who asks and what he wants; the first is being helped.
        self._waiting: list[tuple[int, renaming.Wish]] = []
        self._helper = 0
        self._is_finishing = False  # what a killed helper left
        # The process that asked last, and a descriptor of its memory: most ask again.
        self._memory = (0, -1)
        # The lowers are frozen: a directory that is born later lies in the upper.
        self._since = time.time_ns()

    def take(self, asker: int, pid: int, number: int, arguments: Sequence[int]) -> None:
        """Answer a call of the process `pid` now, or when it is prepared. number: index in RENAMING."""
        try:
            wish = self._wish(pid, number, arguments)
        except (OSError, OverflowError, ValueError):  # dead, or the kernel will refuse it
            wish = None
        if wish is None or not self._is_waiting_still(asker):
            self._answer(asker, 0)
            return
        self._waiting.append((asker, wish))
        if not self._helper:
            self._help()

    def reaped(self, pid: int, status: int) -> None:
        """A child of this process is dead; it may be the helper."""
        if pid != self._helper:
            return
        self._helper = 0
        asker, wish = self._waiting[0]
        if not os.WIFEXITED(status) and not self._is_finishing:
            self._is_finishing = True
            self._start(lambda: aside.finish([wish.root], wish.aside))
        if self._helper:
            return
        self._is_finishing = False
        self._waiting.pop(0)
        # EIO for one that was killed twice: nobody takes it for a reason to copy and to remove.
        self._answer(asker, os.WEXITSTATUS(status) if os.WIFEXITED(status) else errno.EIO)
        self._help()

    def tidy(self, roots: Sequence[str]) -> None:
        """Put in place what a killed helper left aside in these overlays; wait for it."""
        left = [root for root in roots if os.path.lexists(f"{root}/{aside.ASIDE}")]
        if left:
            try:
                os.waitpid(self._child(lambda: aside.finish(left)), 0)
            except OSError:  # too many processes: the next start tries again
                pass

    def _help(self) -> None:
        """Start with the first who waits still."""
        while self._waiting and not self._helper:
            asker, wish = self._waiting[0]
            if self._is_waiting_still(asker):
                self._start(wish.serve)
            if not self._helper:
                self._answer(asker, 0)
                self._waiting.pop(0)

    def _start(self, work: Callable[[], int]) -> None:
        try:
            self._helper = self._child(work)
        except OSError:  # too many processes
            pass

    def _child(self, work: Callable[[], int]) -> int:
        """Start a process that exits with what `work` gives."""
        pid = syscalls.clone(0)
        if pid == 0:
            status = 0
            try:
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                confine(self._confinement, is_filtered=True)
                status = work()
            finally:
                os._exit(status)
        return pid

    def _is_waiting_still(self, asker: int) -> bool:
        try:
            fcntl.ioctl(self._listener, abi.SECCOMP_IOCTL_NOTIF_ID_VALID, struct.pack("=Q", asker))
        except FileNotFoundError:
            return False
        return True

    def _wish(self, pid: int, number: int, arguments: Sequence[int]) -> renaming.Wish | None:
        """What is to be prepared. OSError, OverflowError and ValueError mean nothing, like None."""
        if number:
            old_place, old_address, new_place, new_address = arguments[:4]
        else:
            old_place = new_place = abi.AT_FDCWD
            old_address, new_address = arguments[:2]
        flags = arguments[4] if number == 2 else 0
        source = _path(pid, old_place, self._text(pid, old_address))
        if flags not in _FLAGS:
            return None
        # Not lstat(2), whose result takes long to make. A link to a directory is told apart below.
        if not flags & abi.RENAME_EXCHANGE and not os.access(source + b"/", os.F_OK, effective_ids=True):
            return None
        target = _path(pid, new_place, self._text(pid, new_address))
        return self._wish_about(source, target, flags)

    def _text(self, pid: int, address: int) -> bytes:
        """A path in a process's memory; pages are read one by one, for the next may not be there."""
        known, memory = self._memory
        if known == pid:
            text, end, _ = os.pread(memory, min(_SHORT, _PAGE - address % _PAGE), address).partition(b"\0")
            if end:
                return text
        text = self._read(pid, address, _PAGE - address % _PAGE)
        if b"\0" not in text:
            text += self._read(pid, address + len(text), _PAGE - len(text))
        text, end, _ = text.partition(b"\0")
        if not end:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return text

    def _read(self, pid: int, address: int, size: int) -> bytes:
        known, memory = self._memory
        # Of a program that is gone nothing is left to be read, whoever has its number now.
        if known == pid and (text := os.pread(memory, size, address)):
            return text
        if memory >= 0:
            self._memory = (0, -1)
            os.close(memory)
        memory = os.open(b"/proc/%d/mem" % pid, os.O_RDONLY | os.O_CLOEXEC)
        self._memory = (pid, memory)
        return os.pread(memory, size, address)

    def _wish_about(self, source: bytes, target: bytes, flags: int) -> renaming.Wish | None:
        exchanges = flags & abi.RENAME_EXCHANGE
        if not self._may_be_lower(source) and not (exchanges and self._may_be_lower(target)):
            return None
        places = [_resolved(os.path.dirname(path)) for path in (source, target)]
        root = _root(places[0][0])
        if root is None or places[0][0] != places[1][0]:
            return None
        names = [os.fsdecode(os.path.basename(path)) for path in (source, target)]
        paths = [os.path.join(directory, name) for (_, directory), name in zip(places, names, strict=True)]
        return renaming.Wish(root, paths[0], paths[1], flags)

    def _may_be_lower(self, path: bytes) -> bool:
        """Whether it is a directory that a lower may have, if an overlay holds it."""
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            return False
        try:
            _, links, birth = syscalls.statx(fd)
        finally:
            os.close(fd)
        # Overlayfs tells of one link where layers are joined (ovl_getattr of fs/overlayfs/inode.c); some file
        # systems do it for every directory.
        return links <= 1 or birth <= self._since


def _root(mount_id: int) -> str | None:
    """Mountpoint of an overlay; not kept: branches that come and go in a run use the same numbers again."""
    overlays = (mount for mount in mounts() if mount.fstype == "overlay")
    return next((mount.place for mount in overlays if mount.number == mount_id), None)


def _path(pid: int, place: int, text: bytes) -> bytes:
    """What the process calls so, as this one sees it. Raises ValueError for a name that can't be renamed."""
    text = text.rstrip(b"/")
    if text.rpartition(b"/")[2] in _EMPTY:
        raise ValueError(text)
    if text[:1] == b"/":
        return b"/proc/%d/root%s" % (pid, text)
    place = (place & 0xFFFFFFFF ^ 0x80000000) - 0x80000000  # an int, in a register that is wider
    where = b"cwd" if place == abi.AT_FDCWD else b"fd/%d" % place
    return b"/proc/%d/%s/%s" % (pid, where, text)


def _resolved(directory: bytes) -> tuple[int, str]:
    """Number of the mount that holds a directory, and its path without links."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.statx(fd)[0], os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
