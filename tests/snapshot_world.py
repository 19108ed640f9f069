"""A real repository, a real overlay over its files, and a plain directory to compare with."""

from __future__ import annotations

import os
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overlayrun.files import remove_tree
from overlayrun.kernel import abi
from overlayrun.kernel.namespaces import map_identity
from overlayrun.kernel.syscalls import capset, mount, unshare
from overlayrun.model import BranchName, CommitId, SnapshotReason, TreeId
from overlayrun.snapshot import Snapshot, SnapshotJob, take_snapshot

GIT_ENV = {
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def run_git(*args: str, cwd: Path, data: bytes | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """Run git as a user would and give its stdout."""
    environment = {**os.environ, **GIT_ENV, **(env or {})}
    return subprocess.run(
        ["git", *args], cwd=cwd, input=data, env=environment, check=True, capture_output=True
    ).stdout


def in_child(action: Callable[[], object]) -> None:
    """Do something in a process of its own; it must not raise."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001  # the child of a fork must not return into the test
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def without_privileges(action: Callable[[], object]) -> None:
    """Do something as the owner of the files and no more, even where the tests are run by root."""

    def act() -> None:
        # Without it root can't map itself into a user namespace (since Linux 5.12), as the reader does.
        capset(1 << abi.CAP_SETFCAP if os.getuid() == 0 else 0)
        action()

    in_child(act)


@dataclass
class World:
    """One repository with one workspace."""

    root: Path
    job: SnapshotJob

    @classmethod
    def make(cls, root: Path, files: dict[str, str | bytes] | None = None) -> World:
        """Make a repository with `files` committed, and an upper without changes."""
        repo = root / "repo"
        repo.mkdir(parents=True)
        run_git("init", "-q", "-b", "main", cwd=repo)
        for key, value in {"user.name": "Test User", "user.email": "user@example.invalid"}.items():
            run_git("config", key, value, cwd=repo)
        for name, content in (files or {}).items():
            path = repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        run_git("add", "-A", cwd=repo)
        run_git("commit", "-q", "--allow-empty", "-m", "base", cwd=repo)
        base = CommitId(run_git("rev-parse", "HEAD", cwd=repo).decode().strip())
        world = cls(root, _job(root, base))
        world.checkout(base)
        return world

    @property
    def repo(self) -> Path:
        """The user's repository."""
        return self.root / "repo"

    @property
    def upper(self) -> Path:
        """Upper layer of the tree."""
        return Path(self.job.upper)

    def checkout(self, commit: CommitId) -> None:
        """Start again from another commit, with an empty upper."""
        for name in ("lower", "upper", "work", "merged", "workspace"):
            remove_tree(str(self.root / name))
            (self.root / name).mkdir()
        archive = run_git("archive", "--format=tar", commit, cwd=self.repo)
        subprocess.run(["tar", "x", "-C", str(self.root / "lower")], input=archive, check=True)
        self.job = replace(self.job, base=commit)

    def git(self, *args: str, data: bytes | None = None) -> str:
        """Run git in the user's repository."""
        return os.fsdecode(run_git(*args, cwd=self.repo, data=data)).strip()

    def inside(self, action: Callable[[], object]) -> None:
        """Do something in the workspace: a real overlay, in a user namespace, as the current directory."""
        in_child(lambda: self._enter(action))
        remove_tree(str(self.root / "work"))  # mode 000: pytest could not remove it

    def sh(self, script: str) -> None:
        """Run a shell script in the workspace."""
        self.inside(lambda: subprocess.run(["sh", "-ec", script], check=True))

    def run_inside(self, argv: Sequence[str], data: bytes) -> tuple[int, bytes]:
        """Run a command in the workspace, as `SnapshotJob.run_inside` does."""
        answer = self.root / "answer"

        def action() -> None:
            done = subprocess.run(argv, input=data, capture_output=True, check=False)
            answer.write_bytes(done.returncode.to_bytes() + done.stdout)

        self.inside(action)
        given = answer.read_bytes()
        return given[0], given[1:]

    def _enter(self, action: Callable[[], object]) -> None:
        self._mount()
        os.chdir(self.root / "merged")
        action()

    def _mount(self) -> None:
        uid, gid = os.getuid(), os.getgid()
        unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
        map_identity(uid, gid)
        work = self.root / "work" / os.urandom(4).hex()
        work.mkdir(parents=True)
        layers = f"lowerdir={self.root}/lower,upperdir={self.upper},workdir={work},userxattr"
        mount("overlay", str(self.root / "merged"), "overlay", 0, layers)

    def snapshot(self, reason: SnapshotReason = SnapshotReason.EXIT, message: str | None = None) -> Snapshot:
        """Take a snapshot of the workspace as it is."""
        return take_snapshot(self.job, reason=reason, message=message)

    def files(self, tree: str) -> dict[bytes, bytes]:
        """Every entry of a tree: mode and id by path."""
        listed = run_git("ls-tree", "-r", "-z", tree, cwd=self.repo).split(b"\0")[:-1]
        return {path: info for info, _, path in (line.partition(b"\t") for line in listed)}

    def names(self, tree: str) -> set[str]:
        """Every path of a tree."""
        return {os.fsdecode(path) for path in self.files(tree)}

    def content(self, tree: str, path: str) -> bytes:
        """Bytes of a blob."""
        return run_git("cat-file", "blob", f"{tree}:{path}", cwd=self.repo)

    def add_all(self, directory: Path, start: str) -> TreeId:
        """Tree that `git add -A` makes of `directory`, for a user whose index was at `start`."""
        env = {"GIT_INDEX_FILE": str(self.root / "index"), "GIT_DIR": str(self.repo / ".git")}
        run_git("read-tree", start, cwd=directory, env=env)
        run_git("add", "-A", cwd=directory, env=env | {"GIT_WORK_TREE": str(directory)})
        return TreeId(run_git("write-tree", cwd=directory, env=env).decode().strip())

    def fsck(self) -> str:
        """What a strict check says of everything in the store, dangling objects aside."""
        return self.git("fsck", "--strict", "--full", "--no-dangling")


def _job(root: Path, base: CommitId) -> SnapshotJob:
    return SnapshotJob(
        git_dir=str(root / "repo/.git"),
        workspace_id="w1",
        branch=BranchName("agent/one"),
        base=base,
        dirty=None,
        upper=str(root / "upper"),
        agent_git=str(root / "agent-git"),
        hashes=str(root / "workspace/hashes.json"),
        command="agent",
        exit_status=0,
    )
