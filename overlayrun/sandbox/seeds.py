"""What spares OpenCode an installation at its start. On the launch path.

OpenCode (1.18) installs its plugin package into each directory of its configuration: 63 MB in the upper, and
80 s of waiting where no network is. It leaves alone a directory with a `node_modules/` and a
`package-lock.json` that names the package; only what imports the package needs more than these two.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayrun.layers.marks import is_opaque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final

AGENT: Final = "opencode"
# What an installation makes; the package.json beside them may be somebody's work.
INSTALLED: Final = (".opencode/node_modules", ".opencode/package-lock.json", ".opencode/bun.lock")
_PACKAGE: Final = b"@opencode-ai/plugin"
_LOCK: Final = b'{"lockfileVersion":3,"packages":{"":{"dependencies":{"%b":"*"}}}}\n' % _PACKAGE
# A package.json beside them asks for more, and what is installed already is as it should be.
_SETTLED: Final = frozenset({"node_modules", "package.json", "package-lock.json"})
_CODE: Final = ("plugin", "plugins", "tool", "tools")
_SETTINGS: Final = frozenset({"config.json", "opencode.json", "opencode.jsonc", "tui.json", "tui.jsonc"})
_MOST: Final = 256 * 1024  # bytes of a plugin that are looked at


def write_seed(directory: int) -> None:
    """Put the seed into a directory, given by descriptor."""
    os.mkdir("node_modules", 0o755, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open("package-lock.json", flags, 0o644, dir_fd=directory)
    try:
        os.write(fd, _LOCK)
    finally:
        os.close(fd)


def takes_seed(parts: Iterable[str]) -> bool:
    """Whether an installation into a directory can be spared. parts: the directories that it is made of.

    Nothing of them is followed or believed: an agent may have written one.
    """
    try:
        return not any(_needs_installation(part) for part in parts)
    except OSError:  # what can't be looked at may need anything
        return False


def _needs_installation(directory: str) -> bool:
    names = os.listdir(directory)
    if not _SETTLED.isdisjoint(names):
        return True
    code = [f"{directory}/{name}" for name in _CODE if name in names]
    if any(_imports_package(f"{place}/{name}") for place in code for name in _list(place)):
        return True
    return any(_names_code_beside(f"{directory}/{name}") for name in _SETTINGS.intersection(names))


def _list(directory: str) -> list[str]:
    if not stat.S_ISDIR(os.lstat(directory).st_mode):
        raise NotADirectoryError(directory)
    return os.listdir(directory)


def _imports_package(path: str) -> bool:
    """Types alone are gone before the code runs: `import type { Plugin } from …` needs nothing."""
    lines = [line for line in _text(path).split(b"\n") if _PACKAGE in line]
    return not all(line.startswith(b"import type ") for line in lines)


def _names_code_beside(path: str) -> bool:
    """Whether settings list plugins by paths from where they lie: these find their packages there."""
    text = _text(path)
    return b'"plugin"' in text and (b'"./' in text or b'"../' in text)


def _text(path: str) -> bytes:
    """A small regular file. Raises OSError for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MOST:
            raise OSError(errno.EFBIG, "no small file", path)
        return os.read(fd, _MOST)
    finally:
        os.close(fd)


def seed_tree(layers: Sequence[str], root: str, target: str) -> bool:
    """Make `target` a layer with the seeds of a tree's `.opencode`; false where it takes none.

    layers: of the tree, the upper first. root: where it will be seen; seeds go where OpenCode looks, from the
    current directory up.
    """
    made = False
    for place in _places(root):
        parts = list(directories(layers, place))
        if parts and takes_seed(parts):
            fd = os.open(_make_like(target, place, layers), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_seed(fd)
            finally:
                os.close(fd)
            made = True
    return made


def _places(root: str) -> Iterator[str]:
    here = os.getcwd()
    below = here[len(root) + 1 :] if here.startswith(f"{root}/") else ""
    while below:
        yield f"{below}/.opencode"
        below = os.path.dirname(below)
    yield ".opencode"


def directories(layers: Iterable[str], place: str) -> Iterator[str]:
    """Directories of the layers that are joined at a place, top first; none where no directory shows."""
    for layer in layers:
        path, is_last = layer, False
        for name in place.split("/"):
            path = f"{path}/{name}"
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(mode):
                return
            is_last = is_last or is_opaque(path)
        else:
            yield path
        if is_last:
            return


def _make_like(target: str, place: str, layers: Sequence[str]) -> str:
    """A directory of the new layer, and those above it, with the modes and times that they have below it."""
    if not place:
        os.makedirs(target, exist_ok=True)
        return target
    path = f"{_make_like(target, os.path.dirname(place), layers)}/{os.path.basename(place)}"
    if not os.path.isdir(path):
        info = os.stat(next(directories(layers, place)))
        os.mkdir(path)
        os.chmod(path, stat.S_IMODE(info.st_mode) | stat.S_IRWXU)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    return path


def excluded(profile: str | None) -> list[str]:
    """Patterns by which a workspace's own git leaves out what an installation makes."""
    return [f"**/{name}" for name in INSTALLED] if profile == AGENT else []


def unkept(profile: str | None, layers: Iterable[str]) -> list[str]:
    """Paths that no commit takes: what an installation made, where the tree does not hold it already.

    layers: of the tree that the workspace started with. A `.gitignore` of the agent's could say otherwise.
    """
    if profile != AGENT:
        return []
    places = list(layers)
    return [name for name in INSTALLED if not any(os.path.lexists(f"{place}/{name}") for place in places)]
