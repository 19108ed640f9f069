"""The agent's own commits: taken over when sound, refused and told otherwise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from snapshot_world import World

from overlayrun.model import SnapshotReason

pytestmark = pytest.mark.shared

IDENTITY = (
    "export GIT_AUTHOR_NAME=Agent GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=Agent GIT_COMMITTER_EMAIL=a@x;"
)


class Agent:
    """A workspace whose `.git` is a repository of its own that borrows the real objects."""

    def __init__(self, tmp_path: Path) -> None:
        self.world = World.make(tmp_path, {"a": "1\n", ".gitignore": "*.log\n.env\n"})
        self.git_dir = Path(self.world.job.agent_git)
        self.calls: list[str] = []
        self.git_dir.mkdir()
        self.world.job = replace(self.world.job, run_inside=self.run_inside, carried=(b".env",))

    def init(self) -> None:
        self.raw("init", "-q", "-b", "work")
        (self.git_dir / "objects/info/alternates").write_text(f"{self.world.repo}/.git/objects\n")
        self.raw("update-ref", "HEAD", str(self.world.job.base))
        self.raw("read-tree", "HEAD")

    def raw(self, *args: str, data: bytes = b"") -> str:
        command = ["git", f"--git-dir={self.git_dir}", f"--work-tree={self.world.root / 'merged'}", *args]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout.decode().strip()

    def sh(self, script: str) -> None:
        place = f"export GIT_DIR={self.git_dir} GIT_WORK_TREE={self.world.root}/merged; {IDENTITY}"
        self.world.sh(place + script)

    def run_inside(self, argv: Sequence[str], data: bytes) -> tuple[int, bytes]:
        self.calls.append(argv[1])
        script = f'cd {self.world.root}/merged; GIT_DIR={self.git_dir} GIT_WORK_TREE=. exec "$@"'
        return self.world.run_inside(["sh", "-c", script, "sh", *argv], data)

    def head(self) -> str:
        return self.raw("rev-parse", "HEAD")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    made = Agent(tmp_path)
    made.init()
    return made


def test_commits_of_the_agent_are_the_branch(agent: Agent) -> None:
    agent.sh("echo 2 > a; git commit -qam one; echo 3 > a; echo 1 > n; git add -A; git commit -qm two")
    taken = agent.world.snapshot()
    assert taken.tip == agent.head() == agent.world.git("rev-parse", "agent/one")
    assert agent.world.git("log", "--format=%s %an", f"{agent.world.job.base}..agent/one").splitlines() == [
        "two Agent",
        "one Agent",
    ]
    agent.world.fsck()


def test_what_the_agent_left_uncommitted_is_one_commit_on_top(agent: Agent) -> None:
    agent.sh("echo 2 > a; git commit -qam one; echo 3 > a")
    taken = agent.world.snapshot()
    assert agent.world.git("rev-parse", f"{taken.tip}^") == agent.head()
    assert agent.world.content(taken.tree, "a") == b"3\n"
    assert agent.world.git("log", "-1", "--format=%an", "agent/one") == "Test User"


def test_a_head_already_imported_is_not_packed_again_and_stays_without_a_sandbox(agent: Agent) -> None:
    agent.sh("echo 2 > a; git commit -qam one")
    agent.world.snapshot(SnapshotReason.INTERVAL)
    agent.calls.clear()
    assert agent.world.snapshot(SnapshotReason.INTERVAL).unchanged
    assert agent.calls == ["rev-parse"]
    agent.world.job = replace(agent.world.job, run_inside=None)
    agent.world.sh("echo 3 > a")
    taken = agent.world.snapshot()
    assert agent.world.git("rev-parse", f"{taken.tip}^") == agent.head()


def test_later_commits_and_amended_ones_follow(agent: Agent) -> None:
    agent.sh("echo 2 > a; git commit -qam one")
    agent.world.snapshot(SnapshotReason.INTERVAL)
    agent.sh("echo 3 > a; git commit -qam two --amend; git gc -q --prune=now")
    assert agent.world.snapshot().tip == agent.head()
    agent.sh(f"git reset -q --hard {agent.world.job.base}")
    assert agent.world.snapshot().tip == agent.world.job.base
    agent.world.fsck()


def test_an_ignored_file_that_the_agent_commits_by_force_is_kept(agent: Agent) -> None:
    agent.sh("echo 1 > x.log; echo 1 > y.log; git add -f x.log; git commit -qm log")
    taken = agent.world.snapshot()
    assert taken.tip == agent.head()
    assert agent.world.names(taken.tree) == {"a", ".gitignore", "x.log"}


def test_a_sandbox_without_commits_is_not_asked(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    (agent.git_dir / "index").touch()
    agent.world.snapshot()
    assert agent.calls == []


@pytest.mark.parametrize(
    "wreck", ["rm -rf $GIT_DIR/refs $GIT_DIR/HEAD", "echo x > $GIT_DIR/HEAD", "touch $GIT_DIR/index.lock"]
)
def test_a_broken_repository_inside_stops_nothing(agent: Agent, wreck: str) -> None:
    agent.sh(f"echo 2 > a; {wreck}")
    taken = agent.world.snapshot()
    assert agent.world.content(taken.tree, "a") == b"2\n"
    assert agent.world.git("rev-parse", f"{taken.tip}^") == agent.world.job.base


def _tree(agent: Agent, *entries: bytes) -> str:
    return agent.raw("hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=b"".join(entries))


def _entry(agent: Agent, mode: bytes, name: bytes, content: bytes = b"x\n") -> bytes:
    oid = agent.raw("hash-object", "-w", "--stdin", data=content)
    return b"%b %b\0%b" % (mode, name, bytes.fromhex(oid))


def _dotgit(agent: Agent) -> bytes:
    tree = bytes.fromhex(_tree(agent, _entry(agent, b"100755", b"config")))
    return b"40000 .git\0" + tree


HOSTILE: dict[str, Callable[[Agent], bytes]] = {
    "a .git directory": _dotgit,
    "a spelling of .git": lambda agent: _entry(agent, b"100644", b"GIT~1"),
    "a path with a slash": lambda agent: _entry(agent, b"100644", b"x/../../y"),
    "a .gitmodules that runs": lambda agent: _entry(
        agent, b"100644", b".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = -u./evil\n'
    ),
    "a nested repository": lambda agent: b"160000 sub\0" + b"\1" * 20,
    "a carried file": lambda agent: _entry(agent, b"100644", b".env", b"SECRET\n"),
    "an object that is not there": lambda agent: b"100644 gone\0" + b"\2" * 20,
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_commits_are_refused_and_the_tree_is_still_taken(agent: Agent, what: str) -> None:
    tree = _tree(agent, HOSTILE[what](agent))
    agent.raw("config", "user.name", "x")
    agent.raw("config", "user.email", "x")
    if what == "an object that is not there":
        commit = agent.raw(
            "hash-object", "-t", "commit", "-w", "--literally", "--stdin",
            data=b"tree %b\nparent %b\nauthor a <b> 1 +0000\ncommitter a <b> 1 +0000\n\nx\n"
            % (tree.encode(), str(agent.world.job.base).encode()),
        )  # fmt: skip
    else:
        commit = agent.raw("commit-tree", tree, "-p", str(agent.world.job.base), "-m", "x")
    agent.raw("update-ref", "HEAD", commit)
    agent.sh("echo 2 > a")
    taken = agent.world.snapshot()
    assert "not taken over" in taken.notes[0]
    assert agent.world.content(taken.tree, "a") == b"2\n"
    assert agent.world.git("rev-parse", f"{taken.tip}^") == agent.world.job.base
    everything = subprocess.check_output(
        ["git", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"], cwd=agent.world.repo
    )
    assert commit.encode() not in everything
    assert not list((agent.world.repo / ".git/objects").glob("tmp_objdir*"))
    agent.world.fsck()


@pytest.mark.parametrize(
    "answer", [(0, b"--upload-pack=x\n"), (0, b""), (1, b"0" * 40), (0, b"f" * 40 + b"\n")]
)
def test_a_lying_sandbox_gets_nothing(agent: Agent, answer: tuple[int, bytes]) -> None:
    agent.sh("echo 2 > a; git commit -qam one")
    agent.world.job = replace(agent.world.job, run_inside=lambda argv, data: answer)
    taken = agent.world.snapshot()
    assert agent.world.git("rev-parse", f"{taken.tip}^") == agent.world.job.base


def test_replace_refs_of_the_user_do_not_count(agent: Agent) -> None:
    other = agent.world.git("commit-tree", f"{agent.world.job.base}^{{tree}}", "-m", "other")
    agent.world.git("replace", str(agent.world.job.base), other)
    agent.sh("echo 2 > a; git commit -qam one")
    assert agent.world.snapshot().tip == agent.head()


def test_an_agent_on_an_unborn_branch(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.raw("init", "-q", "-b", "work")
    agent.world.job = replace(agent.world.job, base=None)
    agent.sh("echo 2 > a; git add a; git commit -qm first")
    taken = agent.world.snapshot()
    assert taken.tip == agent.head()
