"""Three-way merges by git's own engine (ort): one process for many, away from the user's working tree."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from overlayrun.errors import HostError, StoreError
from overlayrun.model import EMPTY_TREE, CommitId, TreeId
from overlayrun.store.commits import format_commit
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.repo import Repo
from overlayrun.store.rule_tree import RuleTree

_CONFLICT: Final = "CONFLICT"
_CHUNK: Final = 1 << 16
_PATIENCE: Final = 3000  # ms; longer than a start takes, so that what is silent then keeps its answers back
_NOBODY: Final = b"overlayrun <>"
_UNRELATED: Final = b"refusing to merge unrelated histories"


@dataclass(frozen=True, slots=True)
class Stage:
    """One version of a conflicted path. number: 1 base, 2 target, 3 source. mode: as trees.py has it."""

    number: int
    mode: bytes
    oid: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path whose merge has more than one answer left.

    kind: git's word, as `contents`, `modify/delete`. stages: by number; none where a conflict is only about
    the path, such as the one a file had before a rename.
    """

    path: bytes
    kind: str
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge. tree: with conflicts, what git could merge by itself, with zdiff3 markers where it could not.

    conflicts: sorted by path. messages: git's about conflicts, in English.
    """

    tree: TreeId
    conflicts: tuple[Conflict, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether no conflict is left."""
        return not self.conflicts


class MergeEngine:
    """Merges commits through one git process that goes on, by the attributes of `rules`; for one thread.

    It writes objects and moves nothing. The objects are not flushed: the caller calls syncfs(2) before a ref
    shows one of them. For a target with other attributes, which `fits` tells, there has to be another engine.
    """

    __slots__ = ("_is_alone", "_process", "_rule_tree", "git_dir")

    def __init__(self, git_dir: str, rules: CommitId | None, *, alone: bool = False) -> None:
        """Finds the .gitattributes files of `rules`. Raises StoreError.

        That is O(files) for the first commit of a repository, 30 ms at 100,000, then O(change).
        alone: a git process for each merge, which is the better way for a single one.
        """
        self.git_dir = git_dir
        self._is_alone = alone
        self._process: _CoProcess | None = None
        self._rule_tree = RuleTree(git_dir, rules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, remove the directory; a second time does nothing."""
        if self._process:
            self._process.end()
        self._rule_tree.remove()

    def fits(self, commit: CommitId) -> bool:
        """Whether a commit has the attributes that this engine merges by. Raises StoreError."""
        return self._rule_tree.fits(commit)

    def merge(self, target: CommitId, source: CommitId, base: CommitId | None = None) -> Merged:
        """Combine what `source` changed since `base` with `target`.

        base: None takes the merge base of both, or what git makes of several. Any commit will do; then
        conflict markers name commits that stand for target and source.
        Raises StoreError where there is no common history or git fails; the next merge may do well.
        """
        if base is not None:
            target, source = _related(Repo(self.git_dir), base, target, source)
        if not self._is_alone and (self._process is None or self._process.is_over):
            self._restart(target)
        if self._process is None or self._is_alone:
            return self._merge_alone(target, source)
        return self._process.merge(target, source)

    def _restart(self, target: CommitId) -> None:
        """Start a process, and ask it for a merge of nothing, to see that it answers at once.

        git < 2.49 does not flush after each merge; stdbuf cures that, if it is there and git is linked
        dynamically.
        """
        if self._process:
            self._process.end()
        unbuffered = ["stdbuf", "-o0"] if shutil.which("stdbuf") else []
        process = _CoProcess([*unbuffered, *self._command("--stdin")], self._rule_tree)
        is_prompt = False
        try:
            is_prompt = process.is_prompt(target)
            self._is_alone = not is_prompt
        finally:
            if not is_prompt:
                process.end()
        self._process = process

    def _merge_alone(self, target: CommitId, source: CommitId) -> Merged:
        try:
            done = subprocess.run(
                self._command("--write-tree", "-z", target, source),
                cwd=self._rule_tree.path,
                env=self._rule_tree.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                start_new_session=True,
            )
        except OSError as err:
            raise _no_git(err) from err
        if done.returncode not in (0, 1) or not done.stdout:
            raise _failure(target, source, done.stderr)
        answer = b"%d\0%b\0" % (done.returncode == 0, done.stdout)
        return _parse(iter(answer.split(b"\0")))

    def _command(self, *words: str) -> list[str]:
        return ["git", f"--git-dir={self.git_dir}", "merge-tree", *words]


def merge_once(git_dir: str, target: CommitId, source: CommitId, base: CommitId | None = None) -> Merged:
    """Merge two commits by the target's attributes, as `MergeEngine.merge` does. Raises StoreError."""
    with MergeEngine(git_dir, target, alone=True) as engine:
        return engine.merge(target, source, base)


class _CoProcess:
    """A `git merge-tree --stdin`; over when it has ended, or when one answer was not read to its end."""

    __slots__ = ("_answers", "_process", "_requests", "_said", "_words")

    def __init__(self, argv: Sequence[str], rule_tree: RuleTree) -> None:
        self._said = os.memfd_create("git-stderr", os.MFD_CLOEXEC)
        try:
            # A session of its own: Ctrl-C is for us, and a merge driver can't wait for the terminal.
            self._process = subprocess.Popen(
                argv,
                bufsize=0,
                cwd=rule_tree.path,
                env=rule_tree.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,
            )
        except OSError as err:
            os.close(self._said)
            raise _no_git(err) from err
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._words = _split(lambda: self._answers.read(_CHUNK))

    @property
    def is_over(self) -> bool:
        """Whether it takes no further request."""
        return self._requests.closed or self._process.poll() is not None

    def is_prompt(self, commit: CommitId) -> bool:
        """Merge a commit with itself, and tell whether the answer came. Raises StoreError."""
        self._ask(commit, commit)
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(_PATIENCE):
            return False
        self._read(commit, commit)
        return True

    def merge(self, target: CommitId, source: CommitId) -> Merged:
        """Merge two commits. Raises StoreError."""
        self._ask(target, source)
        return self._read(target, source)

    def _ask(self, target: CommitId, source: CommitId) -> None:
        # What earlier merges made drivers and git say; the process writes at the same offset.
        os.lseek(self._said, 0, os.SEEK_SET)
        os.ftruncate(self._said, 0)
        with suppress(BrokenPipeError):  # it ended early; its last words are read with the answer
            self._requests.write(f"{target} {source}\n".encode())

    def _read(self, target: CommitId, source: CommitId) -> Merged:
        merged = None
        try:
            merged = _parse(self._words)
        except StopIteration:
            self._process.wait()
            raise _failure(target, source, os.pread(self._said, _CHUNK, 0)) from None
        finally:
            if merged is None:
                self.end()
        return merged

    def end(self) -> None:
        """End it, with any merge driver it runs; a second time does nothing."""
        if self._requests.closed:
            return
        self._requests.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # between two merges it has nothing to lose
            self._process.wait()
        self._answers.close()
        os.close(self._said)


def _related(repo: Repo, base: CommitId, target: CommitId, source: CommitId) -> tuple[CommitId, CommitId]:
    """Commits of the same trees whose merge base has `base`'s tree; nothing refers to them."""
    with ObjectWriter(repo.objects, durable=False) as writer:

        def write(of: CommitId, parents: list[str]) -> CommitId:
            tree = bytes.fromhex(repo.tree_of(of))
            text = f"Stands for {of} in one merge\n"
            return CommitId(writer.add(b"commit", format_commit(tree, parents, _NOBODY, 0, text)).hex())

        root = write(base, [])
        pair = write(target, [root]), write(source, [root])
        writer.finish()
    return pair


def _split(read: Callable[[], bytes | None]) -> Iterator[bytes]:
    """Words that end in NUL, as they come."""
    rest = b""
    while piece := read():
        *words, rest = (rest + piece).split(b"\0")
        yield from words


def _parse(words: Iterator[bytes]) -> Merged:
    """One answer. Raises StopIteration where the words end before it does.

    Source: git-merge-tree(1), "OUTPUT" and "INPUT FORMAT", with -z.
    """
    status, tree = next(words), TreeId(next(words).decode("ascii", "replace"))
    if status not in (b"0", b"1") or len(tree) != len(EMPTY_TREE):
        raise StoreError("git gave an answer that is no merge", details=f"{status!a} {tree!a}")
    try:
        stages = _parse_stages(words) if status == b"0" else {}
        kinds, messages = _parse_messages(words)
    except ValueError as err:
        raise StoreError("git gave an answer that can't be read", details=str(err)) from err
    if status == b"1":
        return Merged(tree, (), messages)
    # A conflict may name only the path a file had before a rename; both count.
    paths = sorted(stages.keys() | kinds.keys())
    if not paths:
        raise StoreError("git reports a conflict and names no path", details="\n".join(messages) or None)
    conflicts = (Conflict(path, kinds.get(path, "contents"), tuple(stages.get(path, ()))) for path in paths)
    return Merged(tree, tuple(conflicts), messages)


def _parse_stages(words: Iterator[bytes]) -> dict[bytes, list[Stage]]:
    found: dict[bytes, list[Stage]] = {}
    while word := next(words):
        meta, _, path = word.partition(b"\t")
        mode, oid, number = meta.split(b" ")
        found.setdefault(path, []).append(Stage(int(number), mode, oid.decode()))
    return found


def _parse_messages(words: Iterator[bytes]) -> tuple[dict[bytes, str], tuple[str, ...]]:
    """Kind of conflict by path, the first one that git names; all messages."""
    kinds: dict[bytes, str] = {}
    messages = []
    while count := next(words):
        if not count.isdigit():
            break  # advice on submodules, which is not ended by a NUL: this one ended the answer
        paths = [next(words) for _ in range(int(count))]
        kind, text = next(words).decode(), next(words)
        messages.append(text.decode("utf-8", "replace").strip())
        # "CONFLICT (x)", but "CONFLICT(x)" for two that directory renames make.
        if kind.startswith(_CONFLICT):
            # The machine-readable word calls this one "contents" as well.
            is_double = text.startswith(b"CONFLICT (add/add)")
            word = "add/add" if is_double else kind.removeprefix(_CONFLICT).strip(" ()")
            kinds |= {path: kinds.get(path, word) for path in paths}
    return kinds, tuple(messages)


def _failure(target: CommitId, source: CommitId, stderr: bytes) -> StoreError:
    if _UNRELATED in stderr:
        return StoreError(f"commits {target} and {source} have no history in common")
    words = stderr.decode("utf-8", "replace").strip()
    return StoreError(f"git could not merge commit {source} into {target}", details=words or None)


def _no_git(err: OSError) -> HostError:
    return HostError("git can't be started", details=str(err), hint="install git 2.39 or newer")
