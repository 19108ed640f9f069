"""A delivery by exchange: no save of the user is lost while it runs, and a killed one is finished or undone."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import SHARE, UserRepo

from overlayrun.errors import RefMoved
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile import exchange, works
from overlayrun.reconcile.deliver import deliver, recover_delivery
from overlayrun.reconcile.worktrees import Held
from overlayrun.store.refs import update_refs
from overlayrun.workspace.layout import open_state

MAIN: Final = BranchName("main")
_TRIES: Final = 75
_FILES: Final = 60
_BACKUPS: Final = "refs/overlayrun/queue/user-backup/"

# Reads lines "<delay in s> <rename or in-place> <text> <path>...", waits for a delivery to begin, then saves.
_EDITOR: Final = """
import os, sys, time
for line in sys.stdin:
    delay, manner, text, *paths = line.split()
    end = time.monotonic() + 60
    while not os.path.lexists(".git/index.lock") and time.monotonic() < end:
        pass
    time.sleep(float(delay))
    for path in paths:
        if manner == "rename":
            with open(path + "~", "w") as file:
                file.write(text)
            os.replace(path + "~", path)
        else:
            with open(path, "w") as file:
                time.sleep(float(delay) / 10)
                file.write(text)
    print("saved", flush=True)
"""

# Delivers main from one commit to another, to be killed on the way.
_DELIVER: Final = """
import sys
from overlayrun.reconcile.deliver import deliver
from overlayrun.workspace.layout import open_state
common_dir, old, new = sys.argv[1:]
deliver(common_dir, open_state(common_dir), "main", old, new)
"""
# strace counts each system call by itself.
_STEPS: Final = [
    "renameat2",
    "rename",
    "link,linkat",
    "unlink",
    "mkdir",
    "rmdir",
    "fsync",
    "vfork,clone,clone3",
    "wait4",
]


class Desk:
    """A repository with main checked out, and the deliveries to it."""

    def __init__(self, repo: UserRepo) -> None:
        self.repo = repo
        self.common_dir = str(repo.root / ".git")
        self.layout = open_state(self.common_dir)
        self.told: list[str] = []

    def commit(self, parent: str, files: dict[str, str | None]) -> CommitId:
        """A commit that no ref shows, on top of another; None deletes."""
        env = {"GIT_INDEX_FILE": str(self.repo.home / "index")}
        self.repo.raw_git("read-tree", parent, env=env)
        lines = b""
        for name, text in files.items():
            if text is None:
                lines += f"0 {'0' * 40}\t{name}\0".encode()
                continue
            oid = self.repo.raw_git("hash-object", "-w", "--stdin", data=text.encode()).decode().strip()
            lines += f"100644 {oid}\t{name}\0".encode()
        self.repo.raw_git("update-index", "-z", "--index-info", env=env, data=lines)
        tree = self.repo.raw_git("write-tree", env=env).decode().strip()
        return CommitId(self.repo.git("commit-tree", tree, "-p", parent, "-m", "next"))

    @property
    def main(self) -> CommitId:
        return CommitId(self.repo.git("rev-parse", "main"))

    def deliver(self, new: CommitId) -> tuple[Held, ...]:
        return deliver(self.common_dir, self.layout, MAIN, self.main, new, self.told.append)

    def recover(self) -> tuple[Held, ...]:
        return recover_delivery(self.common_dir, self.layout, self.told.append)

    def on_top(self, like: str) -> CommitId:
        """A commit on top of main with the tree of another."""
        return CommitId(self.repo.git("commit-tree", f"{like}^{{tree}}", "-p", "main", "-m", "next"))

    def has_file(self, path: str) -> bool:
        return (self.repo.root / path).exists()

    def backups(self) -> list[str]:
        return [name for name in self.repo.refs() if name.startswith(_BACKUPS)]

    def has(self, path: str, text: str) -> bool:
        """Whether what the user saved is in his tree or in a backup."""
        if self.has_file(path) and (self.repo.root / path).read_text().strip() == text.strip():
            return True
        return any(self.repo.git("show", f"{name}:{path}") == text.strip() for name in self.backups())

    def is_done(self) -> bool:
        """Whether the last delivery went by exchange to its end."""
        return '"done": true' in Path(f"{self.layout.root}/delivery.json").read_text()


@pytest.fixture
def desk(repo: UserRepo) -> Desk:
    return Desk(repo)


def _all_files(text: str) -> dict[str, str | None]:
    return {f"d{n % 7}/f{n}": f"{text} {n}\n" for n in range(_FILES)}


@pytest.fixture
def editor(desk: Desk) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _EDITOR],
        cwd=desk.repo.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("manner", ["rename", "in-place"])
@pytest.mark.parametrize("longest", [0.004, 0.012])
def test_no_save_is_lost_while_files_are_delivered(
    desk: Desk, editor: subprocess.Popen[str], manner: str, longest: float
) -> None:
    assert editor.stdin is not None
    assert editor.stdout is not None
    dice = random.Random(f"{manner} {longest}")
    here = desk.commit("main", _all_files("here") | {"comes-and-goes": "here\n"})
    there = desk.commit("main", _all_files("there"))
    assert desk.deliver(here) == ()
    paths = [*_all_files(""), "comes-and-goes"]
    for number in range(SHARE, _TRIES, 2):
        new = desk.on_top(there if desk.has_file("comes-and-goes") else here)
        saved, text = dice.sample(paths, 3), f"save-{number}-end"
        editor.stdin.write(f"{dice.uniform(0, longest)} {manner} {text} {' '.join(saved)}\n")
        editor.stdin.flush()
        held = desk.deliver(new)
        assert editor.stdout.readline() == "saved\n"
        assert desk.recover() == ()
        assert [path for path in saved if not desk.has(path, text)] == [], (number, held, desk.told)
        assert not desk.has_file(".git/index.lock")
        _is_whole(desk, held, new, saved)
        desk.repo.git("reset", "-q", "--hard")
        desk.repo.git("clean", "-qfd")


def _is_whole(desk: Desk, held: tuple[Held, ...], new: CommitId, saved: list[str]) -> None:
    """All is new, or all is old, but for what the user saved."""
    assert (desk.main == new) == (not held)
    status = desk.repo.git("status", "--porcelain", "--untracked-files=all").split("\n")
    assert {line[2:].strip() for line in status if line} <= set(saved), status


def test_it_goes_by_exchange_to_its_end(desk: Desk) -> None:
    new = desk.commit("main", {"README": "new\n", "src/app.py": None, "deep/er/file": "x\n"})
    assert desk.deliver(new) == ()
    assert desk.is_done()
    assert (desk.repo.root / "deep/er/file").read_text() == "x\n"
    assert not (desk.repo.root / "src").exists()
    assert desk.repo.git("status", "--porcelain") == ""
    assert desk.repo.git("reflog", "-1", "--format=%gs") == "overlayrun: merge"


def test_modes_links_and_file_for_directory_come_through(desk: Desk) -> None:
    desk.repo.git("checkout", "-q", "-b", "side")
    (desk.repo.root / "tool.sh").chmod(0o644)
    desk.repo.write("README", "run me\n", 0o755)
    (desk.repo.root / "link").unlink()
    (desk.repo.root / "link").symlink_to("README")
    shutil.rmtree(desk.repo.root / "src")
    desk.repo.write("src", "a file now\n")
    desk.repo.write("dir/a/b", "deep\n")
    (desk.repo.root / "dangling").symlink_to("nowhere")
    new = CommitId(desk.repo.commit("all kinds"))
    desk.repo.git("checkout", "-q", "main")
    assert desk.deliver(new) == ()
    assert desk.is_done()
    assert desk.repo.git("status", "--porcelain") == ""
    assert desk.repo.git("diff", "--stat", new) == ""
    assert os.readlink(desk.repo.root / "link") == "README"


def test_a_save_found_in_the_displaced_file_is_put_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    new = desk.commit("main", {"README": "new\n", "src/app.py": "new\n", "other": "new\n"})
    readme = desk.repo.root / "README"
    with readme.open("a") as open_file:
        # An editor that has the file open writes after the exchange, within the grace.
        settle = exchange._let_settle

        def save_then_settle(works: list[works.Work]) -> None:
            open_file.write("saved late\n")
            open_file.flush()
            settle(works)

        monkeypatch.setattr(exchange, "_let_settle", save_then_settle)
        held = desk.deliver(new)
    assert held == (Held(str(desk.repo.root), "README was saved just now", (b"README",)),)
    assert readme.read_text() == "read me\nsaved late\n"
    assert desk.repo.git("status", "--porcelain") == "M README"
    assert not (desk.repo.root / "other").exists()


def test_a_write_after_the_delivery_into_a_file_held_open_goes_to_a_backup(desk: Desk) -> None:
    new = desk.commit("main", {"README": "new\n"})
    with (desk.repo.root / "README").open("a") as open_file:
        assert desk.deliver(new) == ()
        open_file.write("saved too late\n")
    assert desk.recover() == ()
    (ref,) = desk.backups()
    assert desk.repo.git("show", f"{ref}:README") == "read me\nsaved too late"
    assert len(desk.told) == 1
    assert ref in desk.told[0]
    assert "README" in desk.told[0]
    assert desk.recover() == ()
    assert len(desk.told) == 1
    assert (desk.repo.root / "README").read_text() == "new\n"


def test_a_branch_that_moves_meanwhile_takes_the_files_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = desk.commit("main", {"README": "new\n", "made/file": "new\n", "src/app.py": None})
    mine = desk.repo.git("commit-tree", "main^{tree}", "-p", "main", "-m", "mine")
    settle = exchange._let_settle

    def move_then_settle(works: list[works.Work]) -> None:
        desk.repo.git("update-ref", "refs/heads/main", mine)
        settle(works)

    monkeypatch.setattr(exchange, "_let_settle", move_then_settle)
    with pytest.raises(RefMoved):
        desk.deliver(new)
    assert desk.main == mine
    assert desk.repo.git("status", "--porcelain") == ""
    assert not (desk.repo.root / "made").exists()
    assert not (desk.repo.root / ".git/index.lock").exists()


@pytest.mark.parametrize("saves", [False, True])
def test_a_tree_switched_to_the_branch_while_it_moves_gets_the_files_and_loses_no_save(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, saves: bool
) -> None:
    """Git resolved the branch before it moved: HEAD names it, index and files are of before."""
    new = desk.commit("main", {"README": "new\n", "other": "new\n"})
    desk.repo.git("checkout", "-q", "-b", "elsewhere")
    settle = exchange._let_settle

    def move_then_switch(*args: Any, **options: Any) -> None:
        update_refs(*args, **options)
        (desk.repo.root / ".git/HEAD").write_text("ref: refs/heads/main\n")

    monkeypatch.setattr("overlayrun.reconcile.deliver.update_refs", move_then_switch)
    with (desk.repo.root / "README").open("a") as held_open:

        def save_then_settle(works: list[works.Work]) -> None:
            held_open.write("mine\n" * saves)
            held_open.flush()
            settle(works)

        monkeypatch.setattr(exchange, "_let_settle", save_then_settle)
        assert desk.deliver(new) == ()
    assert desk.main == new
    assert (desk.repo.root / "README").read_text() == ("read me\nmine\n" if saves else "new\n")
    assert desk.has_file("other") is not saves
    assert len(desk.told) == saves
    assert desk.recover() == ()
    assert not desk.has_file(".git/index.lock")


def test_a_directory_that_can_not_be_written_holds(desk: Desk) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chattr", "+i", "src/app.py"], cwd=desk.repo.root, check=True)
    else:
        (desk.repo.root / "src").chmod(0o555)
    try:
        new = desk.commit("main", {"README": "new\n", "src/app.py": "new\n"})
        (held,) = desk.deliver(new)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", "src/app.py"], cwd=desk.repo.root, check=True)
        else:
            (desk.repo.root / "src").chmod(0o755)
    assert held.paths == (b"src/app.py",)
    assert "src/app.py can't be replaced" in held.why
    assert (desk.repo.root / "README").read_text() == "read me\n"
    assert desk.repo.git("status", "--porcelain") == ""
    assert not (desk.repo.root / ".git/index.lock").exists()


def test_two_trees_get_the_files_together_or_not_at_all(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.repo.git("worktree", "add", "-q", "--force", str(tmp_path / "linked"), "main")
    linked = desk.repo.at(tmp_path / "linked")
    new = desk.commit("main", {"README": "new\n", "src/app.py": None})
    settle = exchange._let_settle

    def save_then_settle(works: list[works.Work]) -> None:
        with open(f"{works[1].scratch}/side/0", "a") as file:
            file.write("saved late\n")
        settle(works)

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "_let_settle", save_then_settle)
        (held,) = desk.deliver(new)
    assert held.worktree == str(linked.root)
    assert (linked.root / "src/app.py").read_text() == "answer = 41\nsaved late\n"
    assert desk.repo.git("status", "--porcelain") == ""
    linked.git("checkout", "-q", "src/app.py")
    assert desk.deliver(new) == ()
    assert (desk.repo.git("status", "--porcelain"), linked.git("status", "--porcelain")) == ("", "")


def test_a_users_lock_is_never_removed(desk: Desk) -> None:
    new = desk.commit("main", {"README": "new\n"})
    assert desk.deliver(new) == ()
    lock = desk.repo.write(".git/index.lock")
    assert desk.recover() == ()
    assert lock.exists()


@pytest.mark.root
def test_a_tree_on_another_file_system_is_left_to_git(desk: Desk, loop_disk: Callable[..., Path]) -> None:
    disk = loop_disk("ext4", 8)
    desk.repo.git("checkout", "-q", "-b", "side")
    desk.repo.git("worktree", "add", "-q", str(disk / "linked"), "main")
    new = desk.commit("main", {"README": "new\n"})
    assert desk.deliver(new) == ()
    assert (disk / "linked/README").read_text() == "new\n"
    assert desk.repo.at(disk / "linked").git("status", "--porcelain") == ""
    assert not Path(f"{desk.layout.root}/delivery.json").exists()


@pytest.mark.shared  # the order of the steps, by the same calls for both
@pytest.mark.parametrize("step", _STEPS)
def test_a_delivery_killed_at_any_step_is_finished_or_undone(desk: Desk, step: str) -> None:
    old, new = _varied(desk)
    kills = 0
    while _killed_at(desk, old, new, step, kills + 1):
        kills += 1
        assert desk.recover() == (), kills
        assert desk.main in (old, new), kills
        assert desk.repo.git("status", "--porcelain") == "", kills
        assert desk.repo.git("diff", "--stat", "HEAD") == "", kills
        locks = {path.name for path in (desk.repo.root / ".git").glob("**/*.lock")}
        assert locks <= {"deliver.lock"}, kills
        desk.repo.git("reset", "-q", "--hard", old)
    assert kills
    assert desk.told == []
    assert desk.main == old
    assert desk.deliver(new) == ()
    desk.repo.git("fsck", "--strict")


@pytest.mark.shared
@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("path", ["a", "gone", "dir/mine", "made/deep/new"])
def test_a_save_into_a_tree_that_a_kill_left_half_done_is_kept(desk: Desk, step: int, path: str) -> None:
    old, new = _varied(desk)
    assert _killed_at(desk, old, new, "renameat2", step)
    try:
        desk.repo.write(path, "saved\n")
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        path = ""
    assert desk.recover() == ()
    assert desk.main == old
    assert not path or desk.has(path, "saved\n")
    status = desk.repo.git("status", "-uall", "--porcelain").split("\n")
    assert {line.split()[-1] for line in status if line} <= {path}


def _varied(desk: Desk) -> tuple[CommitId, CommitId]:
    """Main, and a commit on top of it with changes of every kind."""
    desk.repo.commit("start", **{"a": "a\n", "b": "b\n", "gone": "x\n", "dir/file": "x\n"})
    files = {"a": "1\n", "b": "2\n", "gone": None, "gone/in": "y\n", "dir/file": None, "dir": "y\n"}
    return desk.main, desk.commit("main", {**files, "made/deep/new": "y\n"})


def _killed_at(desk: Desk, old: str, new: str, step: str, number: int) -> bool:
    """Deliver with a kill at the given system call; whether anything was killed."""
    log = desk.repo.home.parent / "strace"
    inject = ["-e", f"trace={step}", "-e", f"inject={step}:signal=SIGKILL:when={number}"]
    command = [sys.executable, "-c", _DELIVER, desk.common_dir, old, new]
    done = subprocess.run(
        ["strace", "-o", str(log), *inject, *command],
        cwd=desk.repo.root,
        env=desk.repo.env,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, -9, 137), done
    killed = "killed by SIGKILL" in log.read_text(errors="replace")
    if not killed:  # it went to its end
        desk.repo.git("reset", "-q", "--hard", old)
        desk.recover()
    return killed
