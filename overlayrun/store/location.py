"""Where the user's repository is and what is checked out there, by one git process. On the launch path."""

from __future__ import annotations

import os

from overlayrun.errors import HostError, StoreError, UsageError
from overlayrun.model import EMPTY_TREE, BranchName, CommitId, TreeId
from overlayrun.store.git import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from overlayrun.store.refs import RefUpdate

_PLACES = (
    "--is-bare-repository",
    "--path-format=absolute",
    "--git-dir",
    "--git-common-dir",
    "--show-object-format",
)
_TREE = ("--show-toplevel", "--show-prefix")
_HEAD = ("HEAD", "HEAD^{tree}", "--symbolic-full-name", "HEAD")


class Known:
    """What a process that makes many workspaces of one repository asks once, for all of them.

    trees: of commits. ignored: of `bases.ignored`. configuration: of `bases.gitdir`. new_branch: that no
    workspace has, and that a run begins. make_refs: makes its refs from nothing without a git process and
    without a flush, which then is the caller's; raises StoreError.
    """

    __slots__ = ("configuration", "ignored", "make_refs", "new_branch", "trees")

    def __init__(
        self,
        ignored: Sequence[bytes],
        configuration: str,
        make_refs: Callable[[Sequence[RefUpdate]], None],
    ) -> None:
        self.trees: dict[str, TreeId] = {}
        self.ignored = list(ignored)
        self.configuration = configuration
        self.new_branch: str | None = None
        self.make_refs = make_refs


class Repository:
    """A non-bare git repository, as the user's shell sees it.

    root: absolute path of the working tree. git_dir: of this worktree. common_dir: shared by all worktrees.
    prefix: the caller's directory below root, "" or ending in "/". head: None on an unborn branch.
    branch: None on a detached HEAD. known: None where one workspace is made, or few.
    """

    __slots__ = ("branch", "common_dir", "git_dir", "head", "head_tree", "known", "prefix", "root")

    def __init__(self, root: str, git_dir: str, common_dir: str, prefix: str) -> None:
        self.root = root
        self.git_dir = git_dir
        self.common_dir = common_dir
        self.prefix = prefix
        self.branch: BranchName | None = None
        self.head: CommitId | None = None
        self.head_tree = EMPTY_TREE
        self.known: Known | None = None


def find_repository(directory: str) -> Repository:
    """The repository that holds `directory`.

    Raises UsageError outside a working tree, HostError for a format that overlayrun can't work on.
    """
    try:
        # One process where all is well (2 ms each); the parts one by one only to say what is not.
        places, tree, head = _split(_rev_parse(directory, *_PLACES, *_TREE, *_HEAD))
    except StoreError:
        places, tree, head = _ask_in_parts(directory)
    _, git_dir, common_dir, object_format = places
    if object_format != "sha1":
        raise HostError(
            f"the repository's object format is {object_format}, and libgit2 reads sha1 alone",
            hint="overlayrun can't work on it yet",
        )
    if git_dir.endswith("/folder") and os.path.exists(f"{os.path.dirname(git_dir)}/record.json"):
        raise UsageError(
            f"{tree[0]} is the folder of a branch, and not its repository",
            hint="type it in the repository; here plain git works, and every program of yours",
        )
    repository = Repository(tree[0], git_dir, common_dir, tree[1])
    if len(head) == len(_HEAD) - 1:
        repository.head, repository.head_tree = CommitId(head[0]), TreeId(head[1])
    if head[-1].startswith("refs/heads/"):
        repository.branch = BranchName(head[-1].removeprefix("refs/heads/"))
    return repository


def _rev_parse(directory: str, *what: str) -> list[str]:
    return os.fsdecode(git(["rev-parse", *what], cwd=directory)).split("\n")[:-1]


def _split(lines: list[str]) -> tuple[list[str], list[str], list[str]]:
    places, tree = len(_PLACES) - 1, len(_TREE)
    if len(lines) != places + tree + len(_HEAD) - 1:
        raise UsageError("the path of this repository has a line break in it", hint="rename that directory")
    return lines[:places], lines[places : places + tree], lines[places + tree :]


def _ask_in_parts(directory: str) -> tuple[list[str], list[str], list[str]]:
    try:
        places = _rev_parse(directory, *_PLACES)
    except StoreError as err:
        raise _no_repository(directory, err) from err
    if places[0] == "true":
        raise UsageError(
            f"{places[1]} is a bare repository", hint="run it in a clone that has a working tree"
        )
    try:
        tree = _rev_parse(directory, *_TREE)
    except StoreError as err:
        raise UsageError(f"{directory} lies inside {places[1]}", hint="cd into the working tree") from err
    # An unborn HEAD names a branch that has no commit.
    name = git(["symbolic-ref", "-q", "HEAD"], cwd=directory).decode().strip()
    return places, tree, [name]


def _no_repository(directory: str, err: StoreError) -> UsageError:
    words = err.details or ""
    if "dubious ownership" in words:
        return UsageError(
            f"git does not trust {directory}: it belongs to somebody else",
            hint=f"git config --global --add safe.directory {directory}",
        )
    if "bare repository" in words:  # also a directory inside .git, before git 2.43
        return UsageError(
            f"there is no working tree here: {directory}",
            hint="cd into one; a bare repository has it in a clone",
        )
    return UsageError(f"not a git repository: {directory}", hint="cd into one, or make one: git init")


def resolve_commit(repository: Repository, text: str) -> tuple[CommitId, TreeId]:
    """Commit that a revision names, and its tree. Raises UsageError where there is none."""
    if repository.known and text in repository.known.trees:
        return CommitId(text), repository.known.trees[text]
    unknown = UsageError(f"no commit is called {text!r} here", hint="see: git log --oneline --all")
    if text.startswith("^"):  # all but that commit, to git
        raise unknown
    try:
        answer = git(
            ["rev-parse", "--verify", "-q", "--end-of-options", f"{text}^{{commit}}"], cwd=repository.root
        )
        commit = answer.decode().strip()
        tree = (
            git(["rev-parse", "--verify", "-q", f"{commit}^{{tree}}"], cwd=repository.root).decode().strip()
        )
    except StoreError as err:
        raise unknown from err
    return CommitId(commit), TreeId(tree)
