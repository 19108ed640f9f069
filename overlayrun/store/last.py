"""The end of a workspace's snapshot chain, read by a git process where pygit2's import would cost 45 ms."""

from __future__ import annotations

from overlayrun.errors import StoreError
from overlayrun.model import CommitId, TreeId
from overlayrun.store.commits import TRAILER, parse_trailers
from overlayrun.store.git import git
from overlayrun.store.refs import dirty_ref, snapshots_ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Last:
    """The last snapshot of a workspace: `store.repo.SnapshotInfo` as far as a fork needs it.

    chain: what the chain of a fork begins with, see `continued`.
    """

    __slots__ = ("chain", "commit", "number", "tip", "tree")

    def __init__(self, commit: CommitId, number: int, tip: CommitId | None, tree: TreeId) -> None:
        self.commit = commit
        self.number = number
        self.tip = tip
        self.tree = tree
        self.chain = commit


class Ends:
    """What refs of a workspace hold. last: None without a snapshot; dirty: of its uncommitted changes.

    there: those of the asked refs that exist.
    """

    __slots__ = ("dirty", "last", "there")

    def __init__(self) -> None:
        self.last: Last | None = None
        self.dirty: CommitId | None = None
        self.there: dict[str, CommitId] = {}


def ends_of(git_dir: str, workspace_id: str, refs: Sequence[str]) -> Ends:
    """Look at a workspace's refs, and at others of which to tell whether they exist. Raises StoreError."""
    chain, dirty = snapshots_ref(workspace_id), dirty_ref(workspace_id)
    asked = [chain, dirty, *refs]
    rest = git(["cat-file", "--batch"], git_dir=git_dir, input="".join(f"{ref}\n" for ref in asked).encode())
    found = Ends()
    for ref in asked:
        head, _, rest = rest.partition(b"\n")
        if head.endswith(b" missing"):
            continue
        oid, kind, size = head.decode().split(" ")
        content, rest = rest[: int(size)], rest[int(size) + 1 :]
        found.there[ref] = CommitId(oid)
        if ref == chain and kind == "commit":
            found.last = _parse(git_dir, CommitId(oid), content)
    found.there.pop(chain, None)
    found.dirty = found.there.pop(dirty, None)
    return found


def _parse(git_dir: str, commit: CommitId, data: bytes) -> Last:
    header, _, message = data.decode("utf-8", "replace").partition("\n\n")
    fields = [line.split(" ", 1) for line in header.split("\n")]
    parents = [CommitId(value) for name, value in fields if name == "parent"]
    trailers = parse_trailers(message)
    number = int(trailers.get("Number", "0"))
    if fields[0][0] != "tree" or number < 1:
        raise StoreError(f"{commit} is no snapshot", hint="overlayrun doctor shows what can be saved")
    tips = parents[number > 1 :]
    last = Last(commit, number, tips[0] if tips else None, TreeId(fields[0][1]))
    if "Kept" in trailers:
        last.chain = continued(git_dir, data)
    return last


def continued(git_dir: str, data: bytes) -> CommitId:
    """A snapshot of a branch that was kept in its place, as one that says so of no branch; its commit.

    A fork's branch stands at its tip, and by the trailer it would look as if the user had moved it.
    """
    lines = [line for line in data.split(b"\n") if not line.startswith(f"{TRAILER}Kept: ".encode())]
    words = ["-c", "core.fsync=loose-object", "hash-object", "-t", "commit", "-w", "--stdin"]
    return CommitId(git(words, git_dir=git_dir, input=b"\n".join(lines)).decode().strip())
