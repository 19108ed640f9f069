"""The git directory of a branch's folder: one of ours, as nothing that an agent wrote may steer host git.

It lies outside the tree, whose `.git` is a file that names it, as in a linked worktree. Commits made in it
come into the branch as an agent's own do, and the agent's own `.git` then moves on to them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from overlayrun.bases.gitdir import write_git_directory
from overlayrun.errors import StoreError
from overlayrun.files import copy_file, read_bytes, remove_tree, write_whole
from overlayrun.model import CommitId
from overlayrun.sandbox.seeds import excluded
from overlayrun.store.git import GitFailed, git
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from overlayrun.live import LiveSandbox
    from overlayrun.store.importer import RunInside
    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout, WorkspaceLayout
    from overlayrun.workspace.record import Record

_LINK: Final = "link"
_KNOWN: Final = "known"
_HOOK: Final = "hooks/reference-transaction"
# A commit made here while a command works in the branch would compete with the command's own.
_REFUSES: Final = """#!/bin/sh
[ "$1" = prepared ] || exit 0
echo "overlayrun: a command runs in this branch, and commits are made there: overlayrun exec" >&2
exit 1
"""
_SETTINGS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
# Names in a `.git` while git waits for somebody to go on.
_UNFINISHED: Final = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


def head_of(record: Record) -> CommitId | None:
    """The commit that the branch's own git stands on, below that of a snapshot for what is uncommitted."""
    latest = next(Repo(record.common_dir).snapshots(record.id), None)
    return (latest.head if latest else None) or record.base


def prepare_folder(repository: Repository, layout: Layout, record: Record, *, live: bool) -> str:
    """Make the git directory, or let it follow the branch; the path of the file that is shown as `.git`.

    What was committed here and is not in the branch yet stays; where the branch has gone another way, HEAD
    follows it, and the old one is kept below refs/kept. live: a command runs in the branch.
    Raises StoreError.
    """
    place = layout.workspace(record.id)
    head = head_of(record)
    if not os.path.isdir(place.folder):
        _make(repository, layout, record, head)
    else:
        _follow(place, head)
    note_known(place, head)
    hook = f"{place.folder}/{_HOOK}"
    if live:
        write_whole(hook, _REFUSES.encode(), durable=False, mode=0o700)
    elif os.path.lexists(hook):
        os.unlink(hook)
    write_whole(f"{place.folder}/{_LINK}", f"gitdir: {place.folder}\n".encode(), durable=False, mode=0o644)
    return f"{place.folder}/{_LINK}"


def _make(repository: Repository, layout: Layout, record: Record, head: CommitId | None) -> None:
    place = layout.workspace(record.id)
    aside = f"{place.folder}.new"
    remove_tree(aside)
    own = branch_ref(record.branch)
    refs = {own: str(head)} if head else {}
    target = Repo(record.common_dir).ref(branch_ref(record.target)) if record.target else None
    if record.target and target:
        refs.setdefault(branch_ref(record.target), target)
    objects = f"{record.common_dir}/objects"
    write_git_directory(repository, aside, objects, own, refs, excluded(record.profile))
    for name in ("refs/heads", "hooks"):
        os.makedirs(f"{aside}/{name}")
    copy_file(f"{layout.root}/{record.stack[0]}/git/index", f"{aside}/index")
    if head != record.base:
        _read_index(aside, head)
    os.rename(aside, place.folder)


def _follow(place: WorkspaceLayout, head: CommitId | None) -> None:
    now = folder_head(place)
    if head is None or now == head:
        return
    is_new = now is not None and now != _known(place)
    if is_new and now and _is_ancestor(place.folder, head, now):
        return
    if is_new and now and not _is_ancestor(place.folder, now, head):
        _git(place.folder, "update-ref", f"refs/kept/{now}", now)
    _git(place.folder, "update-ref", "-m", "overlayrun: the branch moved on", "HEAD", head)
    _read_index(place.folder, head)


def note_known(place: WorkspaceLayout, head: CommitId | None) -> None:
    """Take note of the commit up to which the branch has everything that was committed here."""
    write_whole(f"{place.folder}/{_KNOWN}", str(head).encode(), durable=False)


def _known(place: WorkspaceLayout) -> str | None:
    try:
        return read_bytes(f"{place.folder}/{_KNOWN}").decode("ascii", "replace")
    except FileNotFoundError:
        return None


def _read_index(git_dir: str, head: CommitId | None) -> None:
    """Let the index be that of a commit; what it knows of files that are the same stays known."""
    _git(git_dir, "read-tree", "-i", "-m", str(head))


def folder_head(place: WorkspaceLayout) -> CommitId | None:
    """HEAD of a folder's git; None where it is unborn or broken."""
    status, answer = run_on_host(place.folder)(["git", "rev-parse", "--verify", "-q", "HEAD^{commit}"], b"")
    return CommitId(answer.decode("ascii", "replace").strip()) if not status else None


def _is_ancestor(git_dir: str, old: CommitId, new: CommitId) -> bool:
    return not run_on_host(git_dir)(["git", "merge-base", "--is-ancestor", old, new], b"")[0]


def _git(git_dir: str, *words: str) -> None:
    git([*_SETTINGS, *words], git_dir=git_dir)


def run_on_host(folder: str, otherwise: RunInside | None = None) -> RunInside:
    """Who answers for a folder's git: git itself, which only the user's programs wrote for.

    otherwise: runs everything but git, filters of the user's for one.
    """

    def run(argv: Sequence[str], data: bytes) -> tuple[int, bytes]:
        if argv[0] != "git":
            return otherwise(argv, data) if otherwise else (127, b"")
        try:
            return 0, git([*_SETTINGS, *argv[1:]], git_dir=folder, input=data)
        except GitFailed as err:
            return err.code, b""

    return run


def hand_over(live: LiveSandbox, place: WorkspaceLayout, head: CommitId | None) -> None:
    """Let the agent's own `.git` stand on a commit made in the folder; its index becomes that commit's.

    Not in the middle of a rebase or a merge there. Raises StoreError.
    """
    if head is None or any(os.path.lexists(f"{place.git_upper}/{name}") for name in _UNFINISHED):
        return
    _, answer = live.run_inside(["git", "rev-parse", "--verify", "-q", "HEAD^{commit}"], b"")
    now = answer.decode("ascii", "replace").strip()
    if now == head:
        return
    for words in (["update-ref", "-m", "folder", "HEAD", head, now or "0" * 40], ["reset", "-q"]):
        status, _ = live.run_inside(["git", *words], b"")
        if status:
            raise StoreError(f"git {words[0]} failed inside the workspace (status {status})")


def git_stamp(place: WorkspaceLayout) -> int:
    """Changes when HEAD of a folder's git moves; ns since the epoch, 0 before the first commit there."""
    try:
        return os.stat(f"{place.folder}/logs/HEAD").st_mtime_ns
    except OSError:
        return 0
