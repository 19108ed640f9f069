"""File systems on loop devices, and who works on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conftest import UserRepo, copy_repo

OWNER: Final = 23_456
"""An ordinary user that no other test is."""


@contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory into which everybody may look; pytest's own are for whoever runs it."""
    place = Path(tempfile.mkdtemp(prefix="overlayrun-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def mounted_image(kind: str, megabytes: int = 320) -> Iterator[Path]:
    """A new file system, mounted where everybody may pass; for root."""
    with open_directory() as place:
        image, disk = place / "image", place / "disk"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


class OwnedRepo(UserRepo):
    """A repository of an ordinary user, who root is where he works in it."""

    __slots__ = ()

    def command(self, *args: str) -> list[str]:
        return [*_become(), *super().command(*args)]

    def raw_git(self, *args: str, data: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        words = [*_become(), "git", *args]
        environment = {**self.env, **(env or {})}
        done = subprocess.run(
            words, cwd=self.root, env=environment, input=data, capture_output=True, check=True
        )
        return done.stdout

    def write(self, name: str, text: str | bytes = "", mode: int = 0o644) -> Path:
        path = super().write(name, text, mode)
        while path != self.root:
            os.lchown(path, OWNER, OWNER)
            path = path.parent
        return self.root / name


def _become() -> list[str]:
    return ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups"]


def make_repo(template: Path, place: Path, *, is_owned: bool) -> UserRepo:
    """A repository like `repo` in a new directory, root's own or of an ordinary user."""
    place.mkdir()
    made = copy_repo(template, place)
    if not is_owned:
        return made
    subprocess.run(["chown", "-R", f"{OWNER}:{OWNER}", str(place)], check=True)
    return OwnedRepo(made.root, made.home, made.env, made.marker)
