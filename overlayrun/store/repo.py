"""The user's repository through libgit2: objects, snapshots, diffs, compare-and-swap of refs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pygit2  # noqa: TID251  # this is overlayrun/store/
from pygit2.enums import ObjectType  # noqa: TID251  # likewise

from overlayrun.errors import HostError, RefMoved, StoreError, UsageError
from overlayrun.model import EMPTY_TREE, ZERO_ID, CommitId, TreeId
from overlayrun.store.commits import parse_trailers
from overlayrun.store.refs import RefUpdate, clear_dead_locks, snapshots_ref
from overlayrun.store.trees import Entries, Entry, changed_files, parse_tree

# libgit2 refuses what it doesn't know; in these, objects and refs are stored as ever.
_HARMLESS: Final = ("partialclone", "relativeworktrees")

_LONGEST_WALK: Final = 2000  # commits
_LARGEST_TEXT: Final = 512 << 20  # core.bigFileThreshold (git-config(1)): what is larger has no lines
_BINARY_START: Final = 8000  # bytes in which git looks for a NUL (FIRST_FEW_BYTES of xdiff-interface.c)

pygit2.settings.set_extensions(list(_HARMLESS))
# Neither git nor libgit2 flushes refs by default; a snapshot that a power cut takes away was no snapshot.
pygit2.settings.enable_fsync_gitdir(value=True)


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """A commit; time: seconds since the epoch, of the committer."""

    id: CommitId
    tree: TreeId
    parents: tuple[CommitId, ...]
    time: int
    message: str

    @property
    def subject(self) -> str:
        """First line of the message."""
        return self.message.partition("\n")[0]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot on its chain.

    tip: what the branch stood for then; None on an unborn branch without changes. head: the agent's own last
    commit,
    if it made one. written: where the branch was left, which is not at `tip` if the user had moved it.
    """

    commit: CommitId
    tree: TreeId
    time: int
    subject: str
    reason: str
    number: int
    tip: CommitId | None
    previous: CommitId | None
    head: CommitId | None
    written: CommitId | None


@dataclass(frozen=True, slots=True)
class DiffStat:
    """Size of a change, in files and lines."""

    files: int
    insertions: int
    deletions: int


class Repo:
    """One repository, opened by its common git directory."""

    __slots__ = ("_ancestry", "_mainlines", "_repo", "git_dir")

    def __init__(self, git_dir: str) -> None:
        """Raises HostError for a format that libgit2 can't read, StoreError where there is none."""
        try:
            self._repo = pygit2.Repository(git_dir)
        except (pygit2.GitError, KeyError) as err:
            raise _cannot_open(git_dir, err) from err
        self.git_dir = git_dir
        self._ancestry: dict[tuple[CommitId, CommitId], bool] = {}
        self._mainlines: dict[CommitId, _Mainline] = {}

    @property
    def objects(self) -> str:
        """Directory of the object store."""
        return f"{self.git_dir}/objects"

    def has(self, oid: bytes) -> bool:
        """Whether the store holds an object, by raw id."""
        return self._repo.odb.exists(pygit2.Oid(raw=oid))

    def read_tree(self, oid: bytes) -> Entries:
        """Entries of a tree, by raw id. Raises StoreError if it is missing."""
        return parse_tree(self._read(oid.hex(), ObjectType.TREE))

    def read_blob(self, oid: str) -> bytes:
        """Content of a blob. Raises StoreError if it is missing."""
        return self._read(oid, ObjectType.BLOB)

    def _read(self, oid: str, kind: ObjectType) -> bytes:
        try:
            found, data = self._repo.odb.read(oid)
        except KeyError as err:
            raise StoreError(
                f"object {oid} is missing", hint="in a partial clone, fetch it: git fetch --refetch"
            ) from err
        if found != kind:
            raise StoreError(f"object {oid} is no {kind.name.lower()}")
        return data

    def commit(self, oid: str) -> CommitInfo:
        """A commit. Raises StoreError if it is missing."""
        found = self._repo.get(oid)
        if not isinstance(found, pygit2.Commit):
            raise StoreError(f"commit {oid} is missing")
        return CommitInfo(
            CommitId(str(found.id)),
            TreeId(str(found.tree_id)),
            tuple(CommitId(str(parent)) for parent in found.parent_ids),
            found.commit_time,
            found.raw_message.decode("utf-8", "replace"),
        )

    def write_commit(self, data: bytes) -> CommitId:
        """Store a raw commit, loose."""
        return CommitId(str(self._repo.odb.write(ObjectType.COMMIT, data)))

    def tree_of(self, commit: CommitId | None) -> TreeId:
        """Tree of a commit; the empty tree for None."""
        return self.commit(commit).tree if commit else EMPTY_TREE

    def resolve(self, text: str) -> CommitId:
        """Commit that a revision names. Raises UsageError."""
        try:
            return CommitId(str(self._repo.revparse_single(text).peel(pygit2.Commit).id))
        except (KeyError, ValueError, pygit2.GitError) as err:
            raise UsageError(f"no commit is called {text!a}") from err

    def is_ancestor(self, old: CommitId, new: CommitId) -> bool:
        """Whether `new` holds all of the history of `old`."""
        if old == new:
            return True
        for walk in self._mainlines.values():
            if walk.has(old) and walk.reaches(new, self.commit):
                return walk.depth(old) > walk.depth(new)
        pair = (old, new)
        if pair not in self._ancestry:  # libgit2 walks all that lies between, 7 µs a commit
            self._ancestry[pair] = bool(self._repo.descendant_of(new, old))
        return self._ancestry[pair]

    def is_on_mainline(self, commit: CommitId, tip: CommitId) -> bool:
        """The same as `is_ancestor`, for what is likely to be among the first parents of `tip`."""
        walk = self._mainlines.get(tip)
        if walk is None:
            self._mainlines = {tip: (walk := _Mainline(tip))}
        return walk.reaches(commit, self.commit) or self.is_ancestor(commit, tip)

    def merge_base(self, one: CommitId, other: CommitId) -> CommitId:
        """The best common ancestor. Raises StoreError where there is none."""
        found = self._repo.merge_base(one, other)
        if found is None:
            raise StoreError(f"commits {one[:10]} and {other[:10]} have no history in common")
        return CommitId(str(found))

    def count_first_parents(self, old: CommitId, new: CommitId) -> int:
        """How many steps lead from `new` back to `old` along first parents; all there are where none does."""
        count = 0
        at: CommitId | None = new
        while at and at != old:
            count += 1
            at = next(iter(self.commit(at).parents), None)
        return count

    def ref(self, name: str) -> CommitId | None:
        """Commit a ref points at, None where it does not exist."""
        found = self._repo.references.get(name)
        return CommitId(str(found.resolve().target)) if found else None

    def snapshots(self, workspace_id: str) -> Iterator[SnapshotInfo]:
        """Snapshots of a workspace, newest first."""
        at = self.ref(snapshots_ref(workspace_id))
        while at:
            found = self.snapshot(at)
            yield found
            at = found.previous

    def snapshot(self, commit: CommitId) -> SnapshotInfo:
        """One commit of a snapshot chain."""
        found = self.commit(commit)
        trailers = parse_trailers(found.message)
        number = int(trailers.get("Number", "0"))
        previous, tips = found.parents[: number > 1], found.parents[number > 1 :]
        tip, head, kept = tips[0] if tips else None, trailers.get("Head"), trailers.get("Kept")
        return SnapshotInfo(
            commit=commit,
            tree=found.tree,
            time=found.time,
            subject=found.subject,
            reason=trailers.get("Reason", ""),
            number=number,
            tip=tip,
            previous=previous[0] if previous else None,
            head=CommitId(head) if head else None,
            written=_commit_or_none(kept) if kept else tip,
        )

    def diff(self, old: TreeId, new: TreeId, *, context_lines: int = 3) -> bytes:
        """Patch text between two trees, in git's format."""
        found = self._diff(old, new, context_lines)
        return b"".join(patch.data for patch in found if patch)

    def diff_stat(self, old: TreeId, new: TreeId) -> DiffStat:
        """Files and lines that differ between two trees; reads what differs alone.

        libgit2's own diff of two trees costs 200 ms at 100,000 files, whatever differs.
        """
        files = insertions = deletions = 0
        roots = [None if tree == EMPTY_TREE else bytes.fromhex(tree) for tree in (old, new)]
        for was, now in changed_files(self.read_tree, *roots):
            files += 1
            came, went = self._lines(was, now)
            insertions += came
            deletions += went
        return DiffStat(files, insertions, deletions)

    def _lines(self, was: Entry | None, now: Entry | None) -> tuple[int, int]:
        """Lines that came and went between two versions of a file; none of a submodule or a binary file."""
        before, after = self._blob(was), self._blob(now)
        if before and after:
            _, came, went = before.diff(after).line_stats
            return came, went
        return _count_lines(after), _count_lines(before)

    def _blob(self, entry: Entry | None) -> pygit2.Blob | None:
        found = self._repo.get(entry[1].hex()) if entry else None
        return found if isinstance(found, pygit2.Blob) else None

    def _diff(self, old: TreeId, new: TreeId, context_lines: int) -> pygit2.Diff:
        """Diff of two trees; the empty tree need not be stored."""
        if old == EMPTY_TREE:
            return self._tree(new).diff_to_tree(context_lines=context_lines, swap=True)
        if new == EMPTY_TREE:
            return self._tree(old).diff_to_tree(context_lines=context_lines)
        return self._tree(old).diff_to_tree(self._tree(new), context_lines=context_lines)

    def _tree(self, oid: TreeId) -> pygit2.Tree:
        found = self._repo.get(oid)
        if isinstance(found, pygit2.Tree):
            return found
        raise StoreError(f"tree {oid} is missing")

    def make_refs(self, updates: Sequence[RefUpdate]) -> None:
        """Make refs as `move_refs` does, and leave the flush to the caller."""
        pygit2.settings.enable_fsync_gitdir(value=False)
        try:
            self.move_refs(updates, why="start")
        finally:
            pygit2.settings.enable_fsync_gitdir(value=True)

    def move_refs(self, updates: Sequence[RefUpdate], *, why: str) -> None:
        """Set refs in one transaction, each only from its old value (None: from nothing). Raises RefMoved.

        The same as `update_refs` without a git process; it deletes nothing.
        """
        try:
            self._move_refs(updates, why=why)
        except RefMoved:
            raise
        except StoreError:
            if not clear_dead_locks(self.git_dir, (update.ref for update in updates)):
                raise
            self._move_refs(updates, why=why)

    def _move_refs(self, updates: Sequence[RefUpdate], *, why: str) -> None:
        try:
            with self._repo.transaction() as transaction:
                for update in updates:
                    transaction.lock_ref(update.ref)
                moved = [update.ref for update in updates if self.ref(update.ref) != update.old]
                if moved:
                    raise RefMoved(f"{moved[0]} was moved by somebody else meanwhile")
                for update in updates:
                    assert update.new is not None
                    transaction.set_target(update.ref, update.new, message=f"overlayrun: {why}")
        except (pygit2.GitError, ValueError, KeyError, OSError) as err:
            raise StoreError("refs can't be written", details=str(err)) from err


def _count_lines(blob: pygit2.Blob | None) -> int:
    """Lines of a file that came or went whole: libgit2's first diff takes 5 ms. By git's rules: see xdiff."""
    if blob is None or blob.size > _LARGEST_TEXT:
        return 0
    data = blob.data
    if b"\0" in data[:_BINARY_START]:
        return 0
    return data.count(b"\n") + (not data.endswith(b"\n") if data else 0)


class _Mainline:
    """First parents of a commit, walked as far as anybody asked."""

    def __init__(self, tip: CommitId) -> None:
        self._depths: dict[CommitId, int] = {}
        self._next: CommitId | None = tip

    def has(self, commit: CommitId) -> bool:
        return commit in self._depths

    def depth(self, commit: CommitId) -> int:
        return self._depths[commit]

    def reaches(self, commit: CommitId, read: Callable[[str], CommitInfo]) -> bool:
        while commit not in self._depths and self._next and len(self._depths) < _LONGEST_WALK:
            self._depths[self._next] = len(self._depths)
            self._next = next(iter(read(self._next).parents), None)
        return commit in self._depths


def _commit_or_none(text: str) -> CommitId | None:
    return CommitId(text) if len(text) == len(ZERO_ID) else None


def _cannot_open(git_dir: str, err: Exception) -> HostError | StoreError:
    words = str(err)
    if "sha256" in words:
        return HostError("the repository's object format is sha256, and libgit2 reads sha1 alone")
    if "unsupported extension" in words:
        return HostError(f"libgit2 can't read this repository: {words}")
    if "not owned" in words:
        return HostError(
            f"git does not trust {git_dir}: it belongs to somebody else",
            hint=f"git config --global --add safe.directory {git_dir}",
        )
    return StoreError(f"not a git repository: {git_dir}", details=words)
