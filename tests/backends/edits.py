"""Random edits of the current directory, by a seed; a program of its own, that runs in and outside a workspace.

`edits.py edit SEED COUNT` makes them, `edits.py show` prints what is there. Both leave `.git` alone.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import sys

_NAMES = [b"a", b"b c", b"d", b"\xff\xfe", b"n\nl", b"-rf", b"src", b"deep", b"*"]
_CONTENTS = [b"", b"1\n", b"two\r\n", b"\0bin", b"long" * 5000]


def _entries() -> list[tuple[bytes, bool]]:
    """(path, whether it is a directory), in a fixed order; never `.git` nor what is ignored."""
    found = []
    for directory, names, files in os.walk(b"."):
        names[:] = sorted(name for name in names if name not in (b".git", b"node_modules"))
        shown = [name for name in (*names, *files) if name not in (b".gitignore", b".env")]
        found += [(os.path.join(directory, name), name in names) for name in sorted(shown)]
    return [(path, is_directory and not os.path.islink(path)) for path, is_directory in found]


class _Edits:
    def __init__(self, seed: str) -> None:
        self.dice = random.Random(seed)

    def run(self, count: int) -> None:
        verbs = [self.write] * 4 + [self.remove] * 3 + [self.rename] * 3 + [self.chmod, self.link, self.mkdir]
        verbs += [self.replace, self.append]
        for _ in range(count):
            self.dice.choice(verbs)()

    def new(self) -> bytes:
        """A path that may be there already; its directory is."""
        directories = [b".", *(path for path, is_directory in _entries() if is_directory)]
        place = os.path.join(self.dice.choice(directories), self.dice.choice(_NAMES))
        return os.path.join(place, self.dice.choice(_NAMES)) if self.dice.random() < 0.3 else place

    def old(self) -> tuple[bytes, bool]:
        return self.dice.choice(_entries() or [(b"./none", False)])

    def clear(self, path: bytes) -> None:
        """Make way for `path`, whatever stands in it."""
        parts = path.split(b"/")
        for end in range(2, len(parts)):
            above = b"/".join(parts[:end])
            if os.path.islink(above) or os.path.isfile(above):
                os.unlink(above)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def write(self) -> None:
        path = self.new()
        self.clear(path)
        with open(path, "wb") as file:
            file.write(self.dice.choice(_CONTENTS))

    def append(self) -> None:
        path, _ = self.old()
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "ab") as file:
                file.write(b"more\n")

    def remove(self) -> None:
        path, _ = self.old()
        if os.path.lexists(path):
            self.clear(path)

    def rename(self) -> None:
        (path, _), new = self.old(), self.new()
        if os.path.lexists(path) and not (new + b"/").startswith(path + b"/"):
            self.clear(new)
            if os.path.lexists(path):
                shutil.move(os.fsdecode(path), os.fsdecode(new))

    def chmod(self) -> None:
        path, is_directory = self.old()
        if not is_directory and os.path.isfile(path) and not os.path.islink(path):
            os.chmod(path, self.dice.choice([0o755, 0o644, 0o600, 0o700]))

    def link(self) -> None:
        path = self.new()
        self.clear(path)
        os.symlink(self.dice.choice([b"a", b"../nowhere", b"/etc/passwd", b"\xff"]), path)

    def mkdir(self) -> None:
        path = self.new()
        self.clear(path)
        os.mkdir(path)

    def replace(self) -> None:
        """A directory goes, and another comes in its place with one name of the old one in it."""
        found = [path for path, is_directory in _entries() if is_directory]
        if found:
            path = self.dice.choice(found)
            names = sorted(os.listdir(path)) or [b"new"]
            self.clear(path)
            os.mkdir(path)
            with open(os.path.join(path, self.dice.choice(names)), "wb") as file:
                file.write(b"again\n")


def show() -> None:
    """One line an entry: path, kind, mode and content; of directories that they are there."""
    for directory, names, files in os.walk(b"."):
        names[:] = sorted(name for name in names if name != b".git")
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            what, mode = b"", 0
            if stat.S_ISLNK(info.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                mode = stat.S_IMODE(info.st_mode)
                with open(path, "rb") as file:
                    what = hashlib.sha1(file.read(), usedforsecurity=False).hexdigest().encode()
            print(ascii(path), oct(stat.S_IFMT(info.st_mode)), oct(mode), ascii(what))


if __name__ == "__main__":
    if sys.argv[1] == "edit":
        _Edits(sys.argv[2]).run(int(sys.argv[3]))
    show()
