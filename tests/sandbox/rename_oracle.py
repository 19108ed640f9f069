"""What random operations do in a plain directory, of ext4 where that can be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from backends.images import mounted_image
from conftest import UserRepo

FUZZ: Final = Path(__file__).with_name("rename_fuzz.py")
_NOBODY: Final = 65534
_GOOD: Final = ("ext2/ext3", "xfs", "btrfs")  # as stat(1) calls them

Told = list[dict[str, Any]]


def fill(repo: UserRepo, count: int) -> None:
    """Directories for as many sequences."""
    for tree in (f"tree{number}" for number in range(count)):
        for outer in "ab":
            for inner in "abc":
                repo.write(f"{tree}/{outer}/{inner}/c", outer + inner)
                repo.write(f"{tree}/{outer}/{inner}/d/b", "deep")
            repo.write(f"{tree}/{outer}/d", "file")
            (repo.root / tree / outer / "ln").symlink_to("a")
        repo.write(f"{tree}/c", "top", 0o755)
        (repo.root / tree / "d").symlink_to("a")


def wanted(repo: UserRepo, place: Path, first: int, count: int, *, as_nobody: bool) -> Told:
    """The same operations in copies on an image of ext4 for root, else in a directory of the user's.

    as_nobody: by whom a run by root does them.
    """
    with _plain(place) as plain:
        for number in range(count):
            shutil.copytree(repo.root / f"tree{number}", plain / f"tree{number}", symlinks=True)
        shutil.copy(FUZZ, plain)
        words = ["/usr/bin/python3", FUZZ.name, str(first), str(count)]
        if as_nobody and os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", plain], check=True)
            words = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *words]
        told: Told = json.loads(subprocess.run(words, cwd=plain, capture_output=True, check=True).stdout)
        return told


@contextmanager
def _plain(place: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        with mounted_image("ext4", 32) as disk:
            yield disk
        return
    places = [place, *(Path(name) for name in ("/var/tmp", "/dev/shm"))]
    kinds = [subprocess.check_output(["stat", "-f", "-c", "%T", one], text=True).strip() for one in places]
    best = next((one for one, kind in zip(places, kinds, strict=True) if kind in _GOOD), place)
    plain = best / f"plain-{os.getpid()}"
    plain.mkdir()
    try:
        yield plain
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", plain], check=False)
        shutil.rmtree(plain)


def differing(told: Told, expected: Told) -> list[str]:
    """The first step of each sequence that differs, with what came before, or what is there at the end."""
    found = []
    for mine, other in zip(told, expected, strict=True):
        for step, (one, its) in enumerate(zip(mine["story"], other["story"], strict=True)):
            if one != its:
                found.append(
                    f"seed {mine['seed']}: {one[-1]} instead of {its[-1]}: {mine['story'][: step + 1]}"
                )
                break
        else:
            pictures = mine["picture"], other["picture"]
            rows = [
                [path, *(picture.get(path) for picture in pictures)] for path in pictures[0] | pictures[1]
            ]
            rows = [row for row in rows if row[1] != row[2]]
            found += [f"seed {mine['seed']}: {rows[:4]} after {mine['story']}"] if rows else []
    return found


def renamed(told: Told) -> int:
    """How many renames succeeded."""
    return sum(step[0] == "rename" and step[-1] == 0 for one in told for step in one["story"])
