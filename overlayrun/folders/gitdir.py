"""The git directory of a branch's folder: one of ours, as nothing that an agent wrote may steer host git.

It lies outside the tree, whose `.git` is a file that names it, as in a linked worktree. Commits made in it
come into the branch as an agent's own do, and the agent's own `.git` then moves on to them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from overlayrun.bases.gitdir import write_git_directory
from overlayrun.bases.stack import BOOT
from overlayrun.errors import StoreError
from overlayrun.files import copy_file, flush_directory, flush_file, read_bytes, remove_tree, write_whole
from overlayrun.model import CommitId
from overlayrun.sandbox.seeds import excluded
from overlayrun.store.git import GitFailed, git
from overlayrun.store.refs import branch_ref
from overlayrun.store.repo import Repo
from overlayrun.store.torn import put_torn_aside
from overlayrun.workspace.record import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlayrun.live import LiveSandbox
    from overlayrun.store.importer import RunInside
    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout, WorkspaceLayout
    from overlayrun.workspace.record import Record

_LINK: Final = "link"
# What is committed, stashed or staged here is nowhere else for a moment, or for good; git flushes only refs.
_DURABLE: Final = "[core]\n\tfsync = added\n\tfsyncMethod = batch\n"
_SAME_OR_NOT: Final = (0, 1)
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


def prepare_folder(
    repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None], *, live: bool
) -> str:
    """Make the git directory, or let it follow the branch; the path of the file that is shown as `.git`.

    What was committed here and is not in the branch yet stays; where the branch has gone another way, HEAD
    follows it, and the old one is kept below refs/kept. live: a command runs in the branch. tell: called
    with a line where a power cut tore the directory, which is made anew then.
    Raises StoreError.
    """
    place = layout.workspace(record.id)
    head = head_of(record)
    if os.path.isdir(place.folder):
        _join_objects(place.folder, f"{record.common_dir}/objects")
        _mend(place, head, tell)
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
    with open(f"{aside}/config", "a", encoding="utf-8") as file:
        file.write(_DURABLE)
    write_whole(f"{aside}/{BOOT}", boot_id().encode(), durable=False)
    if head != record.base:
        _read_index(aside, head)
    os.rename(aside, place.folder)
    _flush_aside(place.folder)


def _flush_aside(git_dir: str) -> None:
    """Bring it to the disk, by a process that nobody waits for: there is no work in it yet.

    What git writes there later, it flushes itself; the index can be made anew.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if not os.fork():
                _flush(git_dir)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _flush(git_dir: str) -> None:
    for directory, _, names in os.walk(git_dir):
        for name in names:
            if name != "index":
                flush_file(f"{directory}/{name}")
        flush_directory(directory)
    flush_directory(os.path.dirname(git_dir))


def _join_objects(folder: str, objects: str) -> None:
    """Have it find the repository's objects, be it that the repository was moved or this was torn."""
    path, line = f"{folder}/objects/info/alternates", os.fsencode(f"{objects}\n")
    with suppress(FileNotFoundError):
        if read_bytes(path) == line:
            return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_whole(path, line, durable=False, mode=0o644)


def _mend(place: WorkspaceLayout, head: CommitId | None, tell: Callable[[str], None]) -> None:
    """Once after each start of the machine: put a directory aside that a power cut tore."""
    note, now = f"{place.folder}/{BOOT}", boot_id().encode()
    with suppress(FileNotFoundError):
        if read_bytes(note) == now:
            return
    put_torn_aside(place.folder, f"{place.kept}/torn")
    if not _is_sound(place.folder, head):
        aside = f"{place.kept}/folder-{int(time.time())}"
        os.makedirs(place.kept, mode=0o700, exist_ok=True)
        os.rename(place.folder, aside)
        tell(
            f"a power cut tore the git directory of a folder: it is made anew, and the old one is in {aside}"
        )
        return
    write_whole(note, now, durable=False)


def _is_sound(folder: str, head: CommitId | None) -> bool:
    """Whether git can read all refs and what they name, and the index, which is made anew where it can't.

    head: for a HEAD whose ref was torn.
    """
    ask = run_on_host(folder)
    if ask(["git", "for-each-ref", "--format=%(objecttype)"], b"")[0]:
        return False
    if head and ask(["git", "rev-parse", "-q", "--verify", "HEAD"], b"")[0]:
        ask(["git", "update-ref", "HEAD", head], b"")
    if ask(["git", "diff-index", "--cached", "--quiet", "HEAD"], b"")[0] in _SAME_OR_NOT:
        return True
    with suppress(FileNotFoundError):
        os.unlink(f"{folder}/index")
    return not ask(["git", "read-tree", "HEAD"], b"")[0]


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
