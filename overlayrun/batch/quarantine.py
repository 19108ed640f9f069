"""A place for objects that another machine sent, apart from the user's until they are found in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from overlayrun.errors import StoreError
from overlayrun.store.git import GitFailed, git
from overlayrun.store.pack import flush
from overlayrun.store.repo import Repo


@dataclass(frozen=True, slots=True)
class Quarantine:
    """environment: in which git puts new objects there, and sees the repository's own as well."""

    repo: Repo
    path: str
    environment: dict[str, str]

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
        self._move_in()

    def _move_in(self) -> None:
        """Flushed, and the index of each pack last: git looks for packs by their index."""
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
