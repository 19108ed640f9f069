"""A place for objects that others made, apart from the user's until they are found in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.store.git import GitFailed, git
from overlayrun.store.pack import flush
from overlayrun.store.repo import Repo

_NO_OBJECTS: Final = b"\0\0\0\0"  # a pack's count (gitformat-pack(5))


@dataclass(frozen=True, slots=True)
class Quarantine:
    """environment: in which git puts new objects there, and sees the repository's own as well."""

    repo: Repo
    path: str
    environment: dict[str, str]

    def take_pack(self, pack: bytes, limit: int) -> None:
        """Put the objects of a pack here, each checked; `limit` in bytes. Raises GitFailed.

        A thin pack is completed from the repository.
        """
        if pack[8:12] == _NO_OBJECTS:
            return
        checks = ["--strict", "--fsck-objects", "--stdin", "--fix-thin", f"--max-input-size={limit}"]
        git(["index-pack", *checks], git_dir=self.repo.git_dir, input=pack, env=self.environment)

    def accept(self, tip: str, base: str) -> None:
        """Move what is here into the repository; no ref keeps it yet.

        Raises StoreError, and moves nothing, unless `tip` is a commit, descends from `base`, and all that it
        holds is there.
        """
        try:
            for words in (
                ["merge-base", "--is-ancestor", base, tip],  # only a commit has ancestors
                ["rev-list", "--objects", "--quiet", tip, f"^{base}"],
            ):
                git(words, git_dir=self.repo.git_dir, env=self.environment)
        except GitFailed as err:
            raise StoreError(
                f"the commit {tip[:10]} is missing, not whole, or not made from {base[:10]}",
                details=err.details,
            ) from err
        self.move_in()

    def move_in(self) -> None:
        """Move what is here into the repository, no ref keeps it yet.

        Flushed, and the index of each pack last: git looks for packs by their index.
        """
        names = sorted(os.listdir(f"{self.path}/pack"), key=lambda name: name.endswith(".idx"))
        os.makedirs(f"{self.repo.objects}/pack", exist_ok=True)
        for name in names:
            flush(f"{self.path}/pack/{name}")
            os.rename(f"{self.path}/pack/{name}", f"{self.repo.objects}/pack/{name}")
        if names:
            flush(f"{self.repo.objects}/pack")


@contextmanager
def quarantined(repo: Repo) -> Iterator[Quarantine]:
    """A quarantine; gone afterwards, with all that was not accepted."""
    # The name is one that `git prune` clears away after a crash.
    path = tempfile.mkdtemp(prefix="tmp_objdir-overlayrun-", dir=repo.objects)
    # A list with colons, unless an item is quoted as in C.
    objects = '"{}"'.format(repo.objects.replace("\\", "\\\\").replace('"', '\\"'))
    environment = {
        "GIT_OBJECT_DIRECTORY": path,
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        "GIT_GRAFT_FILE": "/dev/null",
    }
    try:
        os.mkdir(f"{path}/pack")
        yield Quarantine(repo, path, environment)
    finally:
        shutil.rmtree(path, ignore_errors=True)
