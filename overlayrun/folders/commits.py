"""Commits and snapshots as folders: the frozen layers of their trees, made when somebody looks, read-only."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

from overlayrun.errors import UsageError
from overlayrun.folders.api import SEPARATOR, Kind, Tree
from overlayrun.folders.branches import LetGo, nobody_has
from overlayrun.folders.freezing import Freezer
from overlayrun.folders.shown import Scene
from overlayrun.folders.trees import frozen_view
from overlayrun.model import TreeId
from overlayrun.store.git import git
from overlayrun.store.location import find_repository, resolve_commit
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find_exact, records

_MOST: Final = 64  # trees that are held open


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A tree that is open. stack: its layers, which `gc` leaves meanwhile."""

    tree: TreeId
    fd: int
    stack: list[str]


class Commits:
    """The trees of one repository's commits. let_go: has the file system drop one."""

    def __init__(self, scene: Scene, freezer: Freezer) -> None:
        self._root = scene.root
        self._layout = scene.layout
        self._freezer = freezer
        self._open: dict[tuple[Kind, str], _Frozen] = {}
        self.let_go: LetGo = nobody_has

    def names(self, kind: Kind, above: str) -> list[str]:
        """HEAD, branches and tags; branches that have snapshots; the numbers of one's. Raises OSError."""
        if kind is Kind.COMMITS:
            listed = ["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", "refs/tags"]
            names = os.fsdecode(git(listed, git_dir=find_repository(self._root).common_dir)).split("\n")[:-1]
            return sorted({"HEAD", *(name.replace("/", SEPARATOR) for name in names)})
        repo = Repo(find_repository(self._root).common_dir)
        if above:
            return [str(number) for number in sorted(one.number for one in repo.snapshots(self._id(above)))]
        known = [record for record in records(self._layout) if not record.throwaway]
        return sorted(
            record.branch.replace("/", SEPARATOR) for record in known if next(repo.snapshots(record.id), None)
        )

    def _id(self, name: str) -> str:
        record = find_exact(self._layout, name.replace(SEPARATOR, "/"))
        if record is None:
            raise FileNotFoundError(errno.ENOENT, "no workspace has this branch")
        return record.id

    def tree(self, kind: Kind, name: str) -> Tree:
        """The tree of a revision, or of `branch/number`. Raises OSError: ENOENT."""
        tree = self._commit(name) if kind is Kind.COMMITS else self._snapshot(name)
        known = self._open.get((kind, name))
        if known is None or known.tree != tree:
            new = self._view(tree)
            if known is not None:
                self._drop(kind, name)
            known = new
        self._open.pop((kind, name), None)
        self._open[kind, name] = known  # the last used is the last
        if len(self._open) > _MOST:
            self._drop(*next(iter(self._open)))
        return Tree(os.dup(known.fd), writable=False, key=tree)

    def _drop(self, kind: Kind, name: str) -> None:
        one = self._open.pop((kind, name))
        self.let_go(kind, name)
        os.close(one.fd)
        self._freezer.release(one.stack)

    def _commit(self, name: str) -> TreeId:
        repository = find_repository(self._root)
        for text in dict.fromkeys((name.replace(SEPARATOR, "/"), name)):
            try:
                return resolve_commit(repository, text)[1]
            except UsageError:
                continue
        raise FileNotFoundError(errno.ENOENT, "no commit is called that")

    def _snapshot(self, name: str) -> TreeId:
        branch, _, number = name.rpartition("/")
        repo = Repo(find_repository(self._root).common_dir)
        for one in repo.snapshots(self._id(branch)):
            if str(one.number) == number:
                return one.tree
        raise FileNotFoundError(errno.ENOENT, "the branch has no such snapshot")

    def _view(self, tree: TreeId) -> _Frozen:
        stack = self._freezer.take(tree)
        try:
            return _Frozen(tree, frozen_view(self._layout, stack), stack)
        except BaseException:
            self._freezer.release(stack)
            raise

    def close_all(self) -> None:
        """Let go of every tree."""
        for kind, name in list(self._open):
            self._drop(kind, name)
