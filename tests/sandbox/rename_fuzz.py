"""Random operations in the directories `tree0`, `tree1` and so on of the current one.

Run in a tree to be tested and in a plain one: both must tell the same. Arguments: first seed, how many
directories. Prints one line of JSON: for each, every operation with its errno, and what is there at the end.
"""

from __future__ import annotations

import ctypes  # noqa: TID251  runs inside, where the package may not be
import json
import os
import random
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = ("a", "b", "c", "d")
_ENDS = ("", "", "", "", "", "", "/", "/.", "/..")
_KINDS = ("mkdir", "write", "rmdir", "unlink", "symlink", "link", "chmod", *["rename"] * 12)
_HERE = -100


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "rename")


def _rename(old: str, new: str, flags: int, begin: str) -> None:
    """By rename(2), or by renameat2(2) from a descriptor, with flags, or by the whole path."""
    if begin == "fd":
        fd = os.open(os.path.dirname(old) or ".", os.O_PATH)
        try:
            _checked(_libc.renameat2(fd, os.path.basename(old).encode(), _HERE, new.encode(), flags))
        finally:
            os.close(fd)
    elif begin == "path":
        whole = (str(Path.cwd() / path).encode() for path in (old, new))
        _checked(_libc.renameat2(_HERE, next(whole), _HERE, next(whole), flags))
    elif flags:
        _checked(_libc.renameat2(_HERE, old.encode(), _HERE, new.encode(), flags))
    else:
        _checked(_libc.rename(old.encode(), new.encode()))


def _write(path: str, text: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        file.write(text)


def _link(old: str, new: str) -> None:
    os.link(old, new, follow_symlinks=False)


_PLAIN: dict[str, Callable[..., None]] = {
    "mkdir": os.mkdir,
    "write": _write,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "symlink": os.symlink,
    "link": _link,
    "chmod": os.chmod,
    "rename": _rename,
}


def _operation(dice: random.Random) -> tuple[str, list[Any]]:
    kind = dice.choice(_KINDS)
    one, other = (
        "/".join(dice.choice(_NAMES) for _ in range(dice.choice((1, 1, 2, 2, 3)))) + dice.choice(_ENDS)
        for _ in range(2)
    )
    arguments: dict[str, list[Any]] = {
        "mkdir": [one, dice.choice((0o755, 0o700))],
        "rmdir": [one],
        "unlink": [one],
        "symlink": [dice.choice(_NAMES), one],
        "chmod": [one, dice.choice((0o755, 0o755, 0o555, 0o300, 0o711))],
        "rename": [
            one,
            other,
            dice.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 8)),
            dice.choice(("", "fd", "path")),
        ],
    }
    return kind, arguments.get(kind, [one, other])


def _attempt(kind: str, arguments: list[Any], place: str) -> int:
    os.chdir(place)
    try:
        _PLAIN[kind](*arguments)
    except OSError as err:
        return err.errno or -1
    return 0


def _picture(root: str) -> dict[str, tuple[str, str]]:
    """Mode and content of everything; modes of some are changed once all are known, for one may have two names."""
    modes = {}
    for directory, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(directory, name)
            modes[path] = path.lstat().st_mode
            if stat.S_ISDIR(modes[path]):
                path.chmod(0o755)
    return {str(path.relative_to(root)): (oct(mode), _content(path, mode)) for path, mode in modes.items()}


def _content(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return str(path.readlink())
    if stat.S_ISDIR(mode):
        return ""
    path.chmod(0o644)
    return path.read_text()


def _one(seed: int, place: str) -> dict[str, Any]:
    dice = random.Random(seed)
    story = []
    for _ in range(40):
        kind, arguments = _operation(dice)
        story.append([kind, *arguments, _attempt(kind, arguments, place)])
    os.chdir("/")
    return {"seed": seed, "story": story, "picture": _picture(place)}


def main(root: str, first: int, count: int) -> None:
    print(json.dumps([_one(first + number, f"{root}/tree{number}") for number in range(count)]))


if __name__ == "__main__":
    main(str(Path.cwd()), int(sys.argv[1]), int(sys.argv[2]))
