"""A scratch repository in which merges conflict, by the real engine, and proposals to resolve them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overlayrun.model import BranchName, CommitId, TreeId
from overlayrun.reconcile.acceptance import Proposal, Sides, Verdict, judge
from overlayrun.reconcile.conflict import Case
from overlayrun.reconcile.paths import edited
from overlayrun.store.merger import Merged, merge_once
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.repo import Repo
from overlayrun.store.trees import FILE, Entry
from overlayrun.workspace.record import Record

# Content, or (mode, content); of a gitlink the commit's id; None: no such file.
Version = str | bytes | tuple[bytes, str | bytes] | None
Files = Mapping[str, Version]


@dataclass
class Scratch:
    """A repository without a working tree to speak of."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Scratch:
        path.mkdir(parents=True, exist_ok=True)
        scratch = cls(path)
        scratch.git("init", "-q", "-b", "main")
        return scratch

    @property
    def repo(self) -> Repo:
        return Repo(str(self.path / ".git"))

    def git(self, *args: str, data: bytes = b"") -> str:
        identity = ["-c", "user.name=A U Thor", "-c", "user.email=author@example.invalid"]
        done = subprocess.run(
            ["git", *identity, *args], cwd=self.path, input=data, capture_output=True, check=True
        )
        return done.stdout.decode("utf-8", "surrogateescape").strip()

    def tree(self, files: Files, start: TreeId | None = None) -> TreeId:
        repo = self.repo
        with ObjectWriter(repo.objects) as writer:
            edits = {
                name.encode("utf-8", "surrogateescape"): _entry(writer, version)
                for name, version in files.items()
            }
            made = edited(repo, writer, start or TreeId(self.git("mktree")), edits)
            writer.finish()
        return made

    def commit(self, files: Files, *parents: CommitId, message: str = "x") -> CommitId:
        """A commit whose tree is that of its first parent with `files` in it."""
        start = self.repo.tree_of(parents[0]) if parents else None
        above = [word for parent in parents for word in ("-p", parent)]
        return CommitId(self.git("commit-tree", self.tree(files, start), *above, "-m", message))

    def clash(self, base: Files, ours: Files, theirs: Files) -> Clash:
        """The merge of two sides that changed what `base` has."""
        root = self.commit(base)
        tip, source = (
            self.commit(side, root, message=f"{name} side")
            for name, side in (("our", ours), ("their", theirs))
        )
        return Clash(self, root, tip, source, merge_once(self.repo.git_dir, tip, source))


def _entry(writer: ObjectWriter, version: Version) -> Entry | None:
    if version is None:
        return None
    mode, content = version if isinstance(version, tuple) else (FILE, version)
    data = content if isinstance(content, bytes) else content.encode()
    return mode, bytes.fromhex(data.decode()) if mode == b"160000" else writer.add(b"blob", data)


@dataclass
class Clash:
    """One merge that conflicts."""

    scratch: Scratch
    base: CommitId
    tip: CommitId
    source: CommitId
    merged: Merged

    @property
    def repo(self) -> Repo:
        return self.scratch.repo

    @property
    def sides(self) -> Sides:
        return Sides(*(self.repo.tree_of(commit) for commit in (self.base, self.tip, self.source)))

    def judge(self, answer: Files, *declared: str) -> Verdict:
        """The verdict on the automatic merge with `answer` in it."""
        tree = self.scratch.tree(answer, self.merged.tree)
        names = tuple(name.encode("utf-8", "surrogateescape") for name in declared)
        return judge(self.repo, self.merged, self.sides, Proposal(tree, names))

    def content(self, name: str) -> bytes:
        return self.scratch.repo.read_blob(self.scratch.git("rev-parse", f"{self.merged.tree}:{name}"))

    def case(self, *, prompt: str | None = None, log: str | None = None) -> Case:
        record = Record("0" * 12, BranchName("overlay/fix"), str(self.scratch.path), self.sides.base)
        record.base, record.prompt = self.base, prompt
        return Case(record, BranchName("main"), self.tip, self.source, self.base, self.merged, log)
