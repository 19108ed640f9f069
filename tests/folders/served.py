"""A process that serves folders over plain directories, told on its standard input what to do.

Run as `python served.py STORE MOUNTPOINT`: directories of STORE/branches are the branches, those
of STORE/commits the commits; a name that ends with `-live` is live. A line `let-go KIND NAME [UNUSED]` or `stop`
is obeyed and answered; `touched` lists who was; `asked` says how often a tree was asked for.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import sys
from pathlib import Path

from overlayrun.folders import server
from overlayrun.folders.api import Kind, Tree

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Directories:
    """Answers out of plain directories."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.touches: list[str] = []
        self.asked = 0

    def names(self, kind: Kind, above: str) -> list[str]:
        place = self.store / kind.value / above
        if not place.is_dir():
            raise OSError(errno.ENOENT, "no such name")
        return sorted(entry.name for entry in place.iterdir() if not entry.name.startswith("."))

    def tree(self, kind: Kind, name: str) -> Tree:
        self.asked += 1
        fd = os.open(self.store / kind.value / name, _PLACE)
        replaced = self.store / f"{name}.git"
        given = ((".git", os.open(replaced, os.O_RDONLY | os.O_CLOEXEC)),) if replaced.is_file() else ()
        is_writable = kind is Kind.BRANCHES
        return Tree(fd, is_writable, str(os.fstat(fd).st_ino), given, live=name.endswith("-live"))

    def make(self, name: str) -> Tree:
        if name == "refused":
            raise OSError(errno.EINVAL, "no name")
        if name == "broken":
            raise LookupError("a bug")
        (self.store / "branches" / name).mkdir()
        (self.store / "branches" / name / "file").write_text("from the base\n")
        return self.tree(Kind.BRANCHES, name)

    def remove(self, name: str) -> None:
        if name.startswith("kept"):
            raise OSError(errno.ENOTEMPTY, "has changes")
        shutil.rmtree(self.store / "branches" / name)

    def touched(self, name: str) -> None:
        self.touches.append(name)


def main() -> None:
    store, mountpoint = map(Path, sys.argv[1:])
    answers = Directories(store)
    served = server.start(str(mountpoint))
    print("mounted", served.pid, flush=True)
    while True:
        ready = select.select([sys.stdin, served.end], [], [], 0 if served.end.has_waiting else None)[0]
        if (served.end in ready or served.end.has_waiting) and not served.end.serve(answers):
            print("gone", flush=True)
            return
        if sys.stdin in ready and not _obey(sys.stdin.readline().split(), served, answers):
            return


def _obey(words: list[str], served: server.Served, answers: Directories) -> bool:
    match words:
        case ["let-go", kind, name, *unused]:
            done = served.end.let_go(Kind(kind), name, unused=float(unused[0]) if unused else 0)
            print("done" if done else "kept", flush=True)
        case ["touched"]:
            print(*answers.touches, flush=True)
            answers.touches.clear()
        case ["asked"]:
            print(answers.asked, flush=True)
        case _:
            server.stop(served)
            print("stopped", flush=True)
            return False
    return True


if __name__ == "__main__":
    main()
