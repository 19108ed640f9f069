"""Names of refs and their compare-and-swap. On the launch path."""

from __future__ import annotations

import os

from overlayrun.errors import RefMoved, UsageError
from overlayrun.files import read_bytes
from overlayrun.model import ZERO_ID, BranchName, CommitId
from overlayrun.store.git import GitFailed, git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final

OWN: Final = "refs/overlayrun/"
QUEUE: Final = f"{OWN}queue/"
# ext4 takes 255 bytes a name; git appends ".lock", and long names break listings.
_LONGEST: Final = 200
_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_HEX: Final = frozenset("0123456789abcdef")
_ABBREVIATED: Final = 7  # digits of an id, as git shows it
_RESERVED: Final = frozenset({"HEAD", "FETCH_HEAD", "ORIG_HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "refs"})


class RefUpdate:
    """One step of a transaction: move `ref` from `old` to `new`.

    old: None asserts that the ref does not exist. new: None deletes it; the same as `old` asserts that alone.
    """

    __slots__ = ("new", "old", "ref")

    def __init__(self, ref: str, new: CommitId | None, old: CommitId | None) -> None:
        self.ref = ref
        self.new = new
        self.old = old


def snapshots_ref(workspace_id: str) -> str:
    """Chain of every snapshot of a workspace."""
    return f"{OWN}snapshots/{workspace_id}"


def base_ref(workspace_id: str) -> str:
    """Commit that a workspace was made from."""
    return f"{OWN}base/{workspace_id}"


def dirty_ref(workspace_id: str) -> str:
    """Uncommitted changes that a workspace started with."""
    return f"{OWN}dirty/{workspace_id}"


def tip_ref(target: BranchName) -> str:
    """Where a target stands once everything that has landed is delivered; absent while nothing waits."""
    return f"{QUEUE}tip/{target}"


def from_ref(target: BranchName) -> str:
    """Where the target stood when that tip was made: from there alone it is moved to the tip."""
    return f"{QUEUE}from/{target}"


def landed_ref(workspace_id: str, target: BranchName) -> str:
    """A note on the last landing of a branch: its parents are the target's commit and the branch's own."""
    return f"{QUEUE}landed/{workspace_id}/{target}"


def parked_ref(workspace_id: str, target: BranchName) -> str:
    """A note on why a branch does not land as it is; its first parent is the branch's commit."""
    return f"{QUEUE}park/{workspace_id}/{target}"


def conflict_ref(workspace_id: str, target: BranchName) -> str:
    """The automatic merge with its conflicts marked; parents: the target's commit and the branch's."""
    return f"{QUEUE}conflict/{workspace_id}/{target}"


def candidate_ref(target: BranchName) -> str:
    """The chain of candidates that is being checked; kept from `git gc`, and nothing more."""
    return f"{QUEUE}candidate/{target}"


def approved_ref(workspace_id: str) -> str:
    """The commit of a branch that the user has approved."""
    return f"{QUEUE}approved/{workspace_id}"


def branch_ref(name: BranchName) -> str:
    """Full ref name of a branch."""
    return f"refs/heads/{name}"


def parse_branch_name(text: str) -> BranchName:
    """A branch name that is safe as a ref, as an argument and on a terminal.

    Narrower than git-check-ref-format(1): ASCII letters, digits and `._/-`, starting with a letter or digit.
    Raises UsageError.
    """
    fault = _fault(text)
    if fault:
        raise UsageError(
            f"not a usable branch name: {text[:80]!a}: {fault}",
            hint="use letters, digits and . _ / - as in: -b fix/login-page",
        )
    return BranchName(text)


def _fault(text: str) -> str | None:
    faults = (
        (not text, "it is empty"),
        (len(text) > _LONGEST, f"it is longer than {_LONGEST} characters"),
        (text[:1] not in _LETTERS, "it must start with a letter or a digit"),
        (not set(text) <= _LETTERS | set("._/-"), "it has other characters in it"),
        (text in _RESERVED or text.startswith("refs/"), "git keeps that name for itself"),
        (".." in text, "git does not allow .. in it"),
    )
    for is_so, fault in faults:
        if is_so:
            return fault
    for part in text.split("/"):
        if not part or part[0] in ".-" or part.endswith((".lock", ".")):
            return f"git does not allow the part {part!r}"
    return None


def shadowed_by(git_dir: str, name: BranchName) -> str | None:
    """What of the user's a new branch of this name would pass for; None if nothing.

    git takes a branch for a remote's branch, or a commit, of the same name (gitrevisions(7)): who types
    `git merge origin/main` would get it. `git switch` takes it for the remote's `name`.
    """
    if len(name) >= _ABBREVIATED and set(name.lower()) <= _HEX:
        return "a commit's id"
    remote = name.partition("/")[0]
    patterns = (f"refs/tags/{name}", f"refs/remotes/{remote}", f"refs/remotes/*/{name}")
    words = ["for-each-ref", "--count=1", "--format=%(refname)", *patterns]
    return git(words, git_dir=git_dir).decode("utf-8", "replace").strip() or None


def update_refs(git_dir: str, updates: Sequence[RefUpdate], *, why: str = "update") -> None:
    """Make all `updates` or none of them.

    why: ends up in the reflog, after "overlayrun: ".
    Raises RefMoved where a ref is not at its old value, UsageError where a branch `a` stands in the way of
    `a/b`.
    """
    lines = ["start", *(_step(update) for update in updates), "prepare", "commit"]
    data = b"".join(line.encode() + b"\0" for line in lines)
    options = [
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "core.fsync=reference",
    ]  # git flushes no ref by default
    command = [*options, "update-ref", "-m", f"overlayrun: {why}", "--create-reflog", "--stdin", "-z"]
    if not any(update.ref.startswith("refs/heads/") for update in updates):
        command.remove("--create-reflog")
    try:
        git(command, git_dir=git_dir, input=data)
    except GitFailed as err:
        if not clear_dead_locks(git_dir, (update.ref for update in updates)):
            raise _translated(git_dir, updates, err) from err
        update_refs(git_dir, updates, why=why)


def clear_dead_locks(git_dir: str, names: Iterable[str]) -> bool:
    """Remove locks of refs that are older than this boot: a power cut left them; whether there were any.

    Git itself never removes a lock, and nobody holds such a one. `HEAD` is locked with the branch it stands
    for, `packed-refs` with every ref that is deleted.
    """
    found = False
    for lock in _locks(git_dir, names):
        try:
            if os.lstat(lock).st_mtime < _boot_time():
                os.unlink(lock)
                found = True
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def _locks(git_dir: str, names: Iterable[str]) -> Iterator[str]:
    """git_dir: of a linked worktree too, where only HEAD is its own (gitrepository-layout(5), commondir)."""
    yield f"{git_dir}/HEAD.lock"
    common = git_dir
    if os.path.exists(f"{git_dir}/commondir"):
        common = os.path.join(git_dir, os.fsdecode(read_bytes(f"{git_dir}/commondir").rstrip(b"\n")))
    for name in (*names, "packed-refs"):
        yield f"{common}/{name}.lock"


def _boot_time() -> int:
    """When the kernel started, in seconds since the epoch (proc_stat(5), btime)."""
    with open("/proc/stat", "rb") as file:
        return next(int(line[6:]) for line in file if line.startswith(b"btime "))


def flush_refs(git_dir: str, names: Iterable[str]) -> None:
    """Flush refs that were made without it, and their names, which git never flushes; for what is told of.

    One that is packed or gone needs none. Flushing a file whose rename is not written yet writes that too.
    """
    for name in names:
        try:
            fd = os.open(f"{git_dir}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _step(update: RefUpdate) -> str:
    old = update.old or ZERO_ID
    if update.new is None:
        # All zeroes as an old value would mean "whatever it is" to delete.
        return f"delete {update.ref}\0{old}" if update.old else f"verify {update.ref}\0{ZERO_ID}"
    verb = f"verify {update.ref}" if update.new == update.old else f"update {update.ref}\0{update.new}"
    return f"{verb}\0{old}"


def _translated(
    git_dir: str, updates: Sequence[RefUpdate], err: GitFailed
) -> UsageError | RefMoved | GitFailed:
    words = err.details or ""
    for update in updates:
        is_meant = update.new and f"cannot lock ref '{update.ref}'" in words
        other = name_in_the_way(git_dir, update.ref) if is_meant else None
        if other:
            return blocked_name(update.ref, other)
    if "cannot lock ref" in words or "reference already exists" in words:
        return RefMoved("a ref was moved by somebody else meanwhile", details=words)
    return err


def blocked_name(ref: str, other: str) -> UsageError:
    """What to say when `other` stands in the way of `ref`."""
    short, taken = ref.removeprefix("refs/heads/"), other.removeprefix("refs/heads/")
    return UsageError(
        f"branch {short!r} can't be made: branch {taken!r} exists, and git allows only one of them",
        hint=f"choose another name, or rename that one: git branch -m {taken} NEW-NAME",
    )


def name_in_the_way(git_dir: str, ref: str) -> str | None:
    """An existing ref that is a leading directory of `ref`, or lies below it; git can't have both."""
    listed = git(["for-each-ref", "--format=%(refname)", f"{ref}/"], git_dir=git_dir).decode().split("\n")
    if listed[0]:
        return listed[0]
    parts = ref.split("/")
    above = ["/".join(parts[:end]) for end in range(3, len(parts))]
    for name in above:
        if (
            git(["for-each-ref", "--format=%(refname)", name], git_dir=git_dir).decode().split("\n")[0]
            == name
        ):
            return name
    return None
