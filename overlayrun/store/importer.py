"""Take the agent's own commits in: packed inside the sandbox, checked in quarantine, then moved in.

Nothing of the agent's repository is opened here; a commit id and a pack are all that comes out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.model import CommitId
from overlayrun.store.git import git
from overlayrun.store.quarantine import Quarantine, quarantined
from overlayrun.store.repo import Repo

RunInside = Callable[[Sequence[str], bytes], tuple[int, bytes]]

LARGEST_PACK: Final = 2 << 30
_MAKES_COMMITS: Final = ("objects", "refs", "packed-refs", "HEAD")
_SAYS_HEAD: Final = ("HEAD", "packed-refs")
# By upper: what its refs looked like when HEAD was found where it had been, so that a supervisor, which
# takes many snapshots, need not ask inside again (two forks and a git process, 8 ms).
_UNMOVED: Final[dict[str, tuple[object, CommitId | None]]] = {}
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST_REF: Final = 32
_MOST_REFS: Final = 10_000
_ID: Final = re.compile(rb"[0-9a-f]{40}")
# One mode and id for each parent, then those of the commit (git-diff-tree(1), "diff format for merges").
_CHANGE: Final = re.compile(rb":+(?:[0-7]{6} )+([0-7]{6})(?: [0-9a-f]+)+ [A-Z]+")


@dataclass(frozen=True, slots=True)
class Imported:
    """The agent's HEAD, as far as the store has it now. head: None where it made no commit."""

    head: CommitId | None
    note: str | None = None


class Refused(Exception):
    """Commits that must not come in; the text says why."""


def import_head(
    repo: Repo,
    agent_git: str,
    run_inside: RunInside | None,
    *,
    base: CommitId | None,
    known: CommitId | None,
    carried: Collection[bytes],
) -> Imported:
    """Bring the agent's HEAD and its history above `base` into the store.

    agent_git: upper of the agent's .git; only its listing is looked at. known: the HEAD imported last time,
    which is
    also the answer where the new one is refused or can't be asked for. carried: paths that no commit may
    hold.
    """
    if run_inside is None or not _may_have_commits(agent_git):
        return Imported(known)
    marks = _ref_marks(agent_git)
    if _UNMOVED.get(agent_git) == (marks, known):
        return Imported(known)
    head = _ask_head(run_inside)
    if head in (base, known):
        _UNMOVED[agent_git] = (marks, None if head == base else known)
    if head is None or head in (base, known):
        return Imported(None if head == base else known)
    try:
        pack = _pack_inside(run_inside, head, [commit for commit in (base, known) if commit])
        with quarantined(repo) as quarantine:
            quarantine.take_pack(pack, LARGEST_PACK)
            _check(quarantine, head, base, carried)
            quarantine.move_in()
        repo.commit(head)
    except (Refused, StoreError) as err:
        return Imported(known, f"the agent's own commits were not taken over: {_words(err)}")
    return Imported(head)


def expect_unmoved(agent_git: str) -> None:
    """Take note that HEAD of a repository that no command has seen yet is at its base.

    The next `import_head` in this process then need not ask inside where no file of its refs has changed.
    """
    _UNMOVED[agent_git] = (_ref_marks(agent_git), None)


def _ask_head(run_inside: RunInside) -> CommitId | None:
    """What the sandbox says; None for an unborn HEAD, and for a repository that is broken or half made."""
    status, answer = run_inside(["git", "rev-parse", "--verify", "-q", "HEAD^{commit}"], b"")
    found = _ID.fullmatch(answer.strip())
    return CommitId(found[0].decode()) if found and not status else None


def _words(err: Exception) -> str:
    details = err.details if isinstance(err, StoreError) else None
    return f"{err}: {details.splitlines()[-1]}" if details else str(err)


def _ref_marks(agent_git: str) -> object:
    """Stat data of every file that says where HEAD is; no writer can set a change time.

    Equal to nothing else where there are too many. The agent may be at work there: by descriptors, and no
    link is followed.
    """
    found: list[tuple[str, int, int, int]] = []
    fd = os.open(agent_git, _DIRECTORY)
    try:
        for name in _SAYS_HEAD:
            with suppress(OSError):
                found.append(_mark(name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
        is_whole = _mark_below(fd, "refs", found, _DEEPEST_REF)
    finally:
        os.close(fd)
    return tuple(found) if is_whole else object()


def _mark(name: str, info: os.stat_result) -> tuple[str, int, int, int]:
    return (name, info.st_ino, info.st_size, info.st_ctime_ns)


def _mark_below(parent: int, name: str, found: list[tuple[str, int, int, int]], levels: int) -> bool:
    """Add the marks of what is in a directory, and below; whether that was all."""
    try:
        fd = os.open(os.path.basename(name), _DIRECTORY, dir_fd=parent)
    except OSError:
        return True
    try:
        with os.scandir(fd) as entries:
            listed = list(islice(entries, _MOST_REFS))
        found += [_mark(f"{name}/{entry.name}", entry.stat(follow_symlinks=False)) for entry in listed]
        below = [f"{name}/{entry.name}" for entry in listed if entry.is_dir(follow_symlinks=False)]
        if len(found) >= _MOST_REFS or (below and not levels):
            return False
        return all(_mark_below(fd, path, found, levels - 1) for path in below)
    except OSError:  # it changes just now
        return False
    finally:
        os.close(fd)


def _may_have_commits(agent_git: str) -> bool:
    return any(os.path.lexists(f"{agent_git}/{name}") for name in _MAKES_COMMITS)


def _pack_inside(run_inside: RunInside, head: CommitId, have: Sequence[CommitId]) -> bytes:
    """Pack of what `head` has above `have`. Raises Refused."""
    command = ["git", "pack-objects", "--revs", "--stdout", "--delta-base-offset", "-q"]
    wanted = "".join(f"{line}\n" for line in (head, *(f"^{commit}" for commit in have)))
    status, pack = run_inside(command, wanted.encode())
    if status and len(have) > 1:  # the agent may have dropped the commit that was known
        return _pack_inside(run_inside, head, have[:1])
    if status or pack[:4] != b"PACK" or len(pack) < 32:
        raise Refused(f"no pack could be made of them (status {status})")
    if len(pack) > LARGEST_PACK:
        raise Refused("they are larger than 2 GiB")
    return pack


def _check(quarantine: Quarantine, head: CommitId, base: CommitId | None, carried: Collection[bytes]) -> None:
    """All reachable is there, no commit adds gitlinks or carried files. Raises Refused, StoreError."""
    git_dir, environment = quarantine.repo.git_dir, quarantine.environment
    span = f"{head}\n^{base}\n" if base else f"{head}\n"
    git(
        ["rev-list", "--objects", "--quiet", "--stdin"],
        git_dir=git_dir,
        input=span.encode(),
        env=environment,
    )
    commits = git(["rev-list", "--stdin"], git_dir=git_dir, input=span.encode(), env=environment)
    options = [
        "-r",
        "-c",  # of a merge, what no parent has: what comes from the base may be anything
        "--root",
        "--raw",
        "-z",
        "--no-commit-id",
        "--no-renames",
        "--ignore-submodules=none",
    ]
    listed = git(["diff-tree", "--stdin", *options], git_dir=git_dir, input=commits, env=environment).split(
        b"\0"
    )
    for change, path in zip(listed[::2], listed[1::2], strict=False):
        mode = _CHANGE.fullmatch(change)
        if mode is None or mode[1] == b"000000":
            continue
        if mode[1] == b"160000":
            raise Refused(f"they hold a nested repository: {os.fsdecode(path)!a}")
        if any(path == one or path.startswith(one + b"/") for one in carried):
            raise Refused(f"they hold an ignored file of yours: {os.fsdecode(path)!a}")
