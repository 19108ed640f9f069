"""Commits and snapshots as folders: the frozen layers of their trees, made when somebody looks, read-only."""

from __future__ import annotations

import errno
import os
from typing import Final

from overlayrun.errors import UsageError
from overlayrun.folders.api import SEPARATOR, Kind, Tree
from overlayrun.folders.branches import LetGo, as_errno, nobody_has
from overlayrun.folders.shown import Scene
from overlayrun.folders.trees import frozen_view
from overlayrun.model import TreeId
from overlayrun.prepare import frozen_tree
from overlayrun.store.git import git
from overlayrun.store.location import find_repository, resolve_commit
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find_exact, records
from overlayrun.workspace.lock import share

_MOST: Final = 64  # trees that are held open


class Commits:
    """The trees of one repository's commits. let_go: has the file system drop one."""

    def __init__(self, scene: Scene) -> None:
        self._root = scene.root
        self._layout = scene.layout
        self._tell = scene.tell
        self._open: dict[tuple[Kind, str], tuple[TreeId, int]] = {}
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
        with as_errno(self._tell):
            tree = self._commit(name) if kind is Kind.COMMITS else self._snapshot(name)
            known = self._open.pop((kind, name), None)
            if known is not None and known[0] != tree:
                self._drop(kind, name, known[1])
                known = None
            self._open[kind, name] = known or (tree, self._view(tree))  # the last used is the last
        if len(self._open) > _MOST:
            (kind_of, oldest), (_, fd) = next(iter(self._open.items()))
            del self._open[kind_of, oldest]
            self._drop(kind_of, oldest, fd)
        return Tree(os.dup(self._open[kind, name][1]), writable=False, key=tree)

    def _drop(self, kind: Kind, name: str, fd: int) -> None:
        self.let_go(kind, name)
        os.close(fd)

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

    def _view(self, tree: TreeId) -> int:
        choosing = share(self._layout.lock)  # no `gc` between the choice of the layers and their mount
        try:
            stack = frozen_tree(find_repository(self._root), self._layout, tree, self._tell)
            return frozen_view(self._layout, stack)
        finally:
            os.close(choosing)

    def close_all(self) -> None:
        """Let go of every tree."""
        for (kind, name), (_, fd) in self._open.items():
            self._drop(kind, name, fd)
        self._open.clear()
