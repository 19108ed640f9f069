"""Which mounts are in sight of this process. Source: proc_pid_mountinfo(5)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Mount:
    """A line of it. root: what of its file system shows; place: mountpoint; options: the superblock's."""

    __slots__ = ("fstype", "number", "options", "place", "root")

    def __init__(self, line: str) -> None:
        mount, _, superblock = line.rstrip("\n").partition(" - ")
        number, _, _, root, place, _ = mount.split(" ", 5)
        self.number = int(number)
        self.root = _unescape(root)
        self.place = _unescape(place)
        self.fstype, _, self.options = superblock.split(" ", 2)


def mounts() -> Iterator[Mount]:
    """Every mount in sight; a cover comes after the covered."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        yield from map(Mount, file)


def _unescape(text: str) -> str:
    """A blank or backslash stands there as an octal escape."""
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
