"""A repository for merges: commits made of plain dictionaries, and what git itself makes of merging them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlayrun.model import CommitId

NULL: Final = "0" * 40
_REF: Final = "refs/heads/being-made"


@dataclass(frozen=True)
class Node:
    """What a path holds besides a plain file; content: of a file, target of a link, commit of a submodule."""

    mode: str
    content: bytes


def executable(content: str) -> Node:
    return Node("100755", content.encode())


def link(target: str) -> Node:
    return Node("120000", target.encode())


def submodule(commit: str) -> Node:
    return Node("160000", commit.encode())


Content = str | bytes | Node
Files = Mapping[str, Content]  # names as os.fsdecode gives them


class History:
    """A user's repository that only its history matters of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.git("init", "-q", "-b", "main")

    @property
    def git_dir(self) -> str:
        return str(self.path / ".git")

    def git(self, *args: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@x"]
        return subprocess.check_output(["git", *identity, *args], cwd=self.path).decode().strip()

    def commit(self, files: Files, *parents: CommitId) -> CommitId:
        """A commit that no ref shows."""
        lines = [f"commit {_REF}\nmark :1\ncommitter a <a@x> 1700000000 +0000\ndata 1\nx\n".encode()]
        lines += [f"{'merge' if n else 'from'} {parent}\n".encode() for n, parent in enumerate(parents)]
        lines += [b"deleteall\n", *(_modify(name, content) for name, content in files.items())]
        lines += [f"\nget-mark :1\nreset {_REF}\nfrom {NULL}\n\n".encode()]
        command = ["git", "-c", "fastimport.unpackLimit=1000", "fast-import", "--quiet", "--force"]
        done = subprocess.run(command, cwd=self.path, input=b"".join(lines), capture_output=True, check=True)
        return CommitId(done.stdout.decode().strip())

    def show(self, tree: str, name: str) -> str:
        return self.git("show", f"{tree}:{name}")

    def files(self, tree: str) -> dict[str, str]:
        """Mode by path."""
        rows = self.git("ls-tree", "-r", tree).splitlines()
        return {row.partition("\t")[2]: row.split(" ")[0] for row in rows}


def _modify(name: str, content: Content) -> bytes:
    path = os.fsencode(name)
    node = content if isinstance(content, Node) else Node("100644", _bytes(content))
    if node.mode == "160000":
        return b"M 160000 %b %b\n" % (node.content, path)
    return b"M %b inline %b\ndata %d\n%b\n" % (node.mode.encode(), path, len(node.content), node.content)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


Row = tuple[bytes, bytes, str, int]


@dataclass(frozen=True)
class Outcome:
    """What git made of a merge.

    tree: None where git tells none. rows: path, mode, id and stage of what is left to resolve.
    """

    tree: str | None
    rows: frozenset[Row]


class Checkout:
    """A clone with a working tree, where git merges as a user would have it."""

    def __init__(self, history: History, path: Path) -> None:
        self.path = path
        command = ["git", "clone", "-q", "--no-checkout", "--shared", str(history.path), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        for key, value in (("user.name", "a"), ("user.email", "a@x"), ("merge.conflictStyle", "zdiff3")):
            self._git("config", key, value)

    def _git(self, *args: str, failing: tuple[int, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(["git", *args], cwd=self.path, capture_output=True, check=False)
        assert done.returncode in (0, *failing), f"git {args}: {done.stderr!r} {done.stdout!r}"
        return done

    def place(self, commit: str) -> None:
        self._git("checkout", "-q", "--force", "--detach", commit)
        self._git("clean", "-ffdxq")

    def merge(self, target: str, source: str) -> Outcome:
        """`git merge` of `source` into a checkout of `target`."""
        self.place(target)
        done = self._git("merge", "-q", "--no-ff", "--no-commit", source, failing=(1,))
        if done.returncode == 0:
            return Outcome(self._git("write-tree").stdout.decode().strip(), frozenset())
        rows = frozenset(
            _row(row, target) for row in self._git("ls-files", "-u", "-z").stdout.split(b"\0")[:-1]
        )
        return Outcome(None, rows)

    def merge_tree(self, target: str, source: str) -> Outcome:
        """What a single `git merge-tree` there makes; the tree is there with conflicts, too."""
        self.place(target)
        done = self._git("merge-tree", "--write-tree", "-z", target, source, failing=(1,))
        tree, *rest = done.stdout.split(b"\0")
        rows = rest[: rest.index(b"")]
        return Outcome(tree.decode(), frozenset(_row(row, target) for row in rows))


def _row(row: bytes, target: str) -> Row:
    meta, _, path = row.partition(b"\t")
    mode, oid, stage = meta.split(b" ")
    # A file in the way of a directory gets the name of its side; there git knows the target as HEAD.
    return path.replace(b"~HEAD", b"~" + target.encode()), mode, oid.decode(), int(stage)
