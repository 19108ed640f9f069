"""What this machine lets us do, found out by doing it. Nothing here is guessed from a version.

Lean, and free of every floor but this one: it is loaded when a sandbox could not be made.
"""

from __future__ import annotations

import os

from overlayrun.kernel.abilities import KERNEL
from overlayrun.kernel.attempt import Try, attempt
from overlayrun.kernel.disk import STORAGE, try_disk
from overlayrun.kernel.mountinfo import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Empty directories that are there to be mounted on: a mount covers nothing (mnt_already_visible of
# fs/namespace.c).
_EMPTY: Final = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd")


class Capabilities:
    """Abilities by name, each tried when it is first asked for, and once.

    scratch: an empty directory of ours on the file system of the state; what is left in it is the caller's
    to remove. Without one the abilities of `STORAGE` can't be asked for.
    """

    __slots__ = ("_scratch", "_tries")

    def __init__(self, scratch: str | None = None) -> None:
        self._scratch = scratch
        self._tries: dict[str, Try] = {}

    def __getitem__(self, name: str) -> Try:
        if name not in self._tries:
            self._tries[name] = self._try(name)
        return self._tries[name]

    @property
    def has_disk(self) -> bool:
        """Whether the abilities of `STORAGE` can be asked for."""
        return self._scratch is not None

    def _try(self, name: str) -> Try:
        if name in KERNEL:
            flags, action = KERNEL[name]
            return attempt(action, flags)
        scratch = self._scratch
        assert scratch is not None, f"{name} asks a file system"
        return attempt(lambda: try_disk(name, scratch), STORAGE[name][0])


def read_switch(name: str) -> int | None:
    """A number below /proc/sys, by its path there; None where this kernel has no such switch."""
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def is_filtered() -> bool:
    """Whether a seccomp filter of somebody else's lies on this process (proc_pid_status(5))."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            return any(line.split() == ["Seccomp:", "2"] for line in file)
    except OSError:
        return False


def is_chrooted() -> bool:
    """Whether the root directory is no mountpoint, as a plain chroot(2) leaves it."""
    try:
        places = [mount.place for mount in mounts()]
    except OSError:
        return False
    return "/" not in places


def has_covered_processes() -> bool:
    """Whether parts of /proc are covered or read-only, as containers have it; a new one is refused then."""
    try:
        return any(mount.place.startswith("/proc/") and mount.place not in _EMPTY for mount in mounts())
    except OSError:
        return False


def file_system_of(path: str) -> str:
    """Type of the file system that holds `path`, as mount(8) names it, or "unknown"."""
    path, found, longest = os.path.realpath(path), "unknown", -1
    try:
        for mount in mounts():
            inside = path == mount.place or path.startswith(mount.place.rstrip("/") + "/")
            if inside and len(mount.place) >= longest:  # of two on one place the later covers the earlier
                found, longest = mount.fstype, len(mount.place)
    except OSError:
        return "unknown"
    return found
