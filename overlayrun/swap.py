"""A workspace's next state: made aside, whole, then put in the place of the present one.

The record is the moment. Saved, it names the new upper by its inode and is open like that of a run: whoever
comes after a kill finds another upper in place than the record says, finishes the exchange (`complete`), and
takes the snapshot that is missing. Killed before that moment, nothing has happened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from overlayrun.adopt import link_tree
from overlayrun.backends.api import Place as Tree
from overlayrun.backends.joining import join
from overlayrun.backends.registry import fitting, make_tree
from overlayrun.bases.freeze import freeze, remake, write_layer
from overlayrun.bases.gitdir import complete_git_directory
from overlayrun.bases.stack import doubtful
from overlayrun.command import idle_command
from overlayrun.durable import sync_aside
from overlayrun.errors import StoreError
from overlayrun.files import flush_disk, identity_of, remove_tree
from overlayrun.kernel import abi, syscalls
from overlayrun.live import LiveSandbox
from overlayrun.model import CommitId, TreeId
from overlayrun.store.location import Repository
from overlayrun.store.refs import RefUpdate, base_ref, dirty_ref, update_refs
from overlayrun.store.repo import Repo
from overlayrun.view import layers_of, view_of
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.lock import share
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Fresh:
    """Where the next state is made: `root`/new; what it takes the place of goes to `root` itself."""

    root: str

    @property
    def upper(self) -> str:
        """The next upper of the tree."""
        return f"{self.root}/new/upper"

    @property
    def whole(self) -> str:
        """What is noted of the next tree, where the upper holds the whole."""
        return f"{self.root}/new/whole"

    @property
    def git(self) -> str:
        """The next upper of the agent's `.git`; the caller makes it."""
        return f"{self.root}/new/git"

    @property
    def dirty(self) -> str:
        """The next layer of uncommitted changes, where the record has any."""
        return f"{self.root}/new/dirty"


def _fresh(place: WorkspaceLayout) -> Fresh:
    return Fresh(f"{place.root}/fresh")


@contextmanager
def layers_kept(layout: Layout) -> Iterator[None]:
    """Keep `gc` away between the choice of layers and the record that names them."""
    choosing = share(layout.lock)
    try:
        yield
    finally:
        os.close(choosing)


def stand_on(
    repository: Repository, layout: Layout, record: Record, base: CommitId | None, dirty: CommitId | None
) -> None:
    """Let the record, in memory alone, name another start, whose layers are made where they are missing."""
    record.base, record.dirty = base, dirty
    record.tree = Repo(record.common_dir).tree_of(base)
    record.stack = freeze(layout, repository, record.tree, lambda _: None)
    for layer in reversed(doubtful(layout, record.stack)):
        remake(layout, repository, layer)
    os.utime(f"{layout.root}/{record.stack[0]}")  # `gc` goes by the last use


def make_fresh(repository: Repository, layout: Layout, record: Record, tree: TreeId) -> Fresh:
    """Upper and dirty layer that show `tree` over the record's start. What a kill left here is put aside."""
    place = layout.workspace(record.id)
    fresh = _fresh(place)
    if os.path.lexists(f"{fresh.root}/git"):
        _put_aside(place)
    remove_tree(fresh.root)
    os.makedirs(f"{fresh.root}/new")
    mode = stat.S_IMODE(os.stat(place.upper).st_mode)
    start = record.tree
    if record.dirty:
        start = Repo(record.common_dir).tree_of(record.dirty)
        os.makedirs(fresh.dirty)
        write_layer(repository, record.tree, start, fresh.dirty, fresh.root)
    changes = f"{fresh.root}/changes" if record.is_whole else fresh.upper
    os.mkdir(changes)
    os.chmod(changes, mode)
    write_layer(repository, start, tree, changes, fresh.root)
    if record.is_whole:
        record.backend = fitting(layout, record.backend)
        make_tree(layout, record, fresh.dirty, mode, Tree(fresh.upper, fresh.whole))
        join(changes, fresh.upper)
        remove_tree(changes)
    return fresh


def complete_git(record: Record, fresh: Fresh) -> None:
    """Give the next `.git`, which the caller has made, what an overlay would show below it."""
    if record.is_whole:
        complete_git_directory(fresh.git, f"{fresh.whole}/index")


def copy_git(place: WorkspaceLayout, fresh: Fresh) -> None:
    """The agent's `.git` as it is, less its index and locks: the frozen index shows until git writes one."""
    old, new = os.fsencode(place.git_upper), os.fsencode(fresh.git)
    os.mkdir(new)
    for name in os.listdir(old):
        if name != b"index" and not name.endswith(b".lock"):
            # Git writes objects once, and logs in place.
            link_tree(old + b"/" + name, new + b"/" + name, copied=name != b"objects")


def open_fresh(repository: Repository, layout: Layout, record: Record, fresh: Fresh) -> LiveSandbox:
    """A sandbox without a command that shows the next state; the caller holds the lock and closes it."""
    view = view_of(repository, layout, record)
    view.upper, view.git_upper = fresh.upper, fresh.git
    if record.dirty and not record.is_whole:
        view.stack[0] = fresh.dirty
    return LiveSandbox(layers_of(view), idle_command(record))


def run_git(live: LiveSandbox, *words: str) -> str:
    """Output of git inside a sandbox. Raises StoreError."""
    status, output = live.run_inside(["git", *words], b"")
    if status:
        raise StoreError(
            f"git {words[0]} failed inside the workspace (status {status})",
            hint="run it there yourself: overlayrun shell",
        )
    return output.decode("utf-8", "replace").strip()


@contextmanager
def installed(layout: Layout, record: Record, fresh: Fresh) -> Iterator[str]:
    """Save the record and put the next state in place; give where the old one lies.

    The block is to take the snapshot. If it fails the record stays open, and the next command takes it.
    """
    for place in (layout.root, f"{record.common_dir}/objects"):
        flush_disk(place)  # a record that survives a power cut must not name an upper that did not
    run = record.last_run
    ended = run.ended if run else None
    if run:
        run.ended, run.folder = None, False  # what is made has its HEAD in the agent's `.git`
    record.inode = identity_of(fresh.upper)
    record.save(layout.workspace(record.id).record)
    yield _move_in(layout, record)
    if run:
        run.ended = ended
        record.save(layout.workspace(record.id).record)
        sync_aside(layout, record)  # whoever was flushing for the run notes nothing of a newer record


def complete(layout: Layout, record: Record) -> str | None:
    """Finish an exchange that a kill cut off, and give where the old state lies; None if there was none."""
    try:
        is_begun = identity_of(_fresh(layout.workspace(record.id)).upper) == record.inode
    except FileNotFoundError:
        return None
    return _move_in(layout, record) if is_begun else None


def _move_in(layout: Layout, record: Record) -> str:
    """Every step can be done again; the upper comes last, because by it `complete` knows what is missing.

    Source of the exchange: renameat2(2), RENAME_EXCHANGE: at every moment there is a whole upper.
    """
    place = layout.workspace(record.id)
    fresh = _fresh(place)
    _keep_start(record)
    for new, present, old in (
        (fresh.git, place.git_upper, f"{fresh.root}/git"),
        (fresh.dirty, place.dirty, f"{fresh.root}/dirty"),
        (fresh.whole, place.whole, f"{fresh.root}/whole"),
    ):
        if not os.path.lexists(new):
            continue
        if os.path.lexists(present):
            os.rename(present, old)
        os.rename(new, present)
    if os.path.exists(place.hashes):
        os.unlink(place.hashes)
    syscalls.renameat2(fresh.upper, place.upper, abi.RENAME_EXCHANGE)
    os.rename(fresh.upper, f"{fresh.root}/upper")
    return _put_aside(place)


def _put_aside(place: WorkspaceLayout) -> str:
    os.makedirs(place.kept, mode=0o700, exist_ok=True)
    known = [int(name) for name in os.listdir(place.kept) if name.isdecimal()]
    aside = f"{place.kept}/{max(known, default=0) + 1}"
    os.rename(_fresh(place).root, aside)
    return aside


def _keep_start(record: Record) -> None:
    """Let the workspace's refs keep its start from `git gc`.

    The ref of uncommitted changes stays where all former ones can be reached from it: see `dirty_on`.
    """
    repo = Repo(record.common_dir)
    base, dirty = repo.ref(base_ref(record.id)), repo.ref(dirty_ref(record.id))
    updates = []
    if record.base and record.base != base:
        updates.append(RefUpdate(base_ref(record.id), record.base, base))
    if record.dirty and not (dirty and repo.is_ancestor(record.dirty, dirty)):
        updates.append(RefUpdate(dirty_ref(record.id), record.dirty, dirty))
    if updates:
        update_refs(record.common_dir, updates, why="base")


def dirty_on(repo: Repo, record: Record, base: CommitId | None) -> CommitId | None:
    """The uncommitted changes that the workspace had, or has, over a base.

    Each such commit has the base as its first parent; one that a sync made has the one before as its second.
    """
    at = repo.ref(dirty_ref(record.id))
    while at:
        parents = repo.commit(at).parents
        if parents[:1] == ((base,) if base else ()):
            return at
        at = parents[1] if len(parents) > 1 else None
    return None
