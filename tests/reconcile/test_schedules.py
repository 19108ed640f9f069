"""A user at work while branches land: whatever he does at whatever moment, nothing of anybody's is lost."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from itertools import count
from typing import Final

import pytest
from conftest import SHARE, UserRepo

from overlayrun.errors import RefMoved
from overlayrun.model import BranchName
from overlayrun.reconcile.deliver import recover_delivery
from overlayrun.reconcile.land import Ledger
from overlayrun.store.repo import Repo
from overlayrun.workspace.layout import open_state
from reconcile.world import agents, assert_only_forward, assert_sound, is_in, reconcile, renew

_PARTS: Final = 8
_EACH: Final = 25
_BRANCHES: Final = ("a", "b", "c", "d", "e", "f")
_FILES: Final = ("f0", "f1", "f2", "f3", "f4", "f5")
_LINES: Final = 12
_TRIES: Final = 40


class User:
    """Somebody at work in a repository, who knows what he has done and not taken back himself.

    saved: by path, the last bytes that he saved and did not discard. touched: every path that he ever saved.
    """

    def __init__(self, repo: UserRepo, dice: random.Random) -> None:
        self.repo = repo
        self.saved: dict[str, str] = {}
        self.touched: set[str] = set()
        self.staged: set[str] = set()
        self.told: list[str] = []
        self.has_been_away = False
        self._dice = dice
        self._numbers = count()

    def act(self) -> None:
        """Do one thing, whichever."""
        steps: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self.save),
            (3, self.commit),
            (2, self.stage),
            (2, self.commit_all),
            (2, self.leave_and_come_back),
            (1, self.amend),
            (1, self.take_back),
            (1, self.delete_branch),
            (1, self.unstage),
        )
        weights = [weight for weight, _ in steps]
        self._dice.choices([step for _, step in steps], weights)[0]()

    def git(self, *args: str) -> bool:
        """Type a git command, again and again while somebody else holds a lock; whether it went through."""
        for _ in range(_TRIES):
            done = subprocess.run(
                ["git", *args],
                cwd=self.repo.root,
                env=self.repo.env,
                capture_output=True,
                check=False,
                text=True,
            )
            if done.returncode == 0:
                self.told.append(" ".join(args))
                return True
            if "index.lock" not in done.stderr and "cannot lock ref" not in done.stderr:
                self.told.append(f"refused: {' '.join(args)}: {done.stderr.strip()}")
                return False
            time.sleep(0.03)
        raise AssertionError(f"git {args}: {done.stderr}")

    def save(self) -> None:
        """In place, or anew under another name first, as editors do; sometimes a new file."""
        name = self._dice.choice(
            (*_FILES, f"mine{next(self._numbers)}", *(f"new.{branch}" for branch in _BRANCHES))
        )
        text = f"saved {self._dice.getrandbits(64)}\n" * 3
        place = self.repo.root / name
        if self._dice.random() < 0.5:
            place.write_text(text)
        else:
            swap = self.repo.root / f".{name}.swap"
            swap.write_text(text)
            swap.replace(place)
        self._remember(name, text)
        self.told.append(f"saved {name}")

    def _remember(self, name: str, text: str) -> None:
        self.saved[name] = text
        self.touched.add(name)

    def stage(self) -> None:
        if self.saved:
            name = self._dice.choice(sorted(self.saved))
            if self.git("add", name):
                self.staged.add(name)

    def unstage(self) -> None:
        if self.git("reset", "-q"):
            self.staged.clear()

    def commit(self) -> None:
        """A new file of its own, whatever else is staged."""
        name = f"own{self._dice.getrandbits(40)}"
        self.repo.write(name, f"{name}\n")
        self._remember(name, f"{name}\n")
        if self.git("add", name) and self.git("commit", "-qm", f"user: {name}"):
            self.staged.clear()

    def commit_all(self) -> None:
        if self.git("add", "--all") and self.git("commit", "-qm", "user: all", "--allow-empty"):
            self.staged.clear()

    def amend(self) -> None:
        if self.git("commit", "-q", "--amend", "--allow-empty", "-m", f"user: amended {next(self._numbers)}"):
            self.staged.clear()

    def take_back(self) -> None:
        """The last commit, whosever it was; what is not committed goes with it by his own will."""
        if self.git("reset", "-q", "--hard", "HEAD~1"):
            self.saved.clear()
            self.staged.clear()

    def leave_and_come_back(self) -> None:
        if self.git("checkout", "-q", "elsewhere"):
            self.has_been_away = True
            time.sleep(self._dice.uniform(0, 0.1))
            self.come_back()

    def come_back(self) -> None:
        self.git("checkout", "-q", "main")

    def delete_branch(self) -> None:
        self.git("branch", "-qD", self._dice.choice(_BRANCHES))


class Place:
    """One repository for many schedules."""

    def __init__(self, repo: UserRepo) -> None:
        self.repo = repo
        lines = "".join(f"{number}\n" for number in range(_LINES))
        repo.commit("start", **dict.fromkeys(_FILES, lines))
        repo.git("branch", "elsewhere")
        agents(repo, *_BRANCHES)
        assert reconcile(repo).code == 0

    def prepare(self, dice: random.Random) -> dict[str, str]:
        """A clean tree, and three to six branches that go on; the commits they stand at."""
        names = dice.sample(_BRANCHES, dice.randint(3, 6))
        work: dict[str, dict[str, str]] = {}
        for name in names:
            path = dice.choice(_FILES)
            lines = self.repo.show("main", path).splitlines(keepends=True)
            lines[dice.randrange(len(lines))] = f"{name} {dice.getrandbits(64)}\n"
            work[name] = {path: "".join(lines), f"new.{name}": f"{dice.getrandbits(64)}\n"}
        renew(self.repo, work)
        return dict(zip(names, self.repo.git("rev-parse", *names).split(), strict=True))

    def clear(self) -> None:
        """Commit what is left, so that the next schedule starts clean."""
        self.repo.git("checkout", "-qf", "main")
        self.repo.git("add", "--all")
        self.repo.git("commit", "-qm", "clear", "--allow-empty")

    def run(self, dice: random.Random, check: tuple[str, ...]) -> User:
        user = User(self.repo, dice)
        with self.repo.started("reconcile", *check) as running:
            time.sleep(dice.uniform(0.05, 0.3))
            while running.process.poll() is None and len(user.told) < 30:
                user.act()
                time.sleep(dice.uniform(0, 0.08))
            code = running.end()
        user.told.append(f"reconcile ended with {code}: {running.text()}")
        assert code in (0, 1), user.told
        if self.repo.git("branch", "--show-current") != "main":
            user.come_back()
        return user


def _kept(repo: UserRepo) -> set[str]:
    """Every object that a ref or a reflog holds."""
    return {
        line.partition(" ")[0] for line in repo.git("rev-list", "--objects", "--all", "--reflog").splitlines()
    }


def _assert_nothing_lost(repo: UserRepo, user: User, branches: dict[str, str]) -> None:
    # What was written into a displaced file after the last look is kept by the next delivery.
    common_dir = str(repo.root / ".git")
    assert recover_delivery(common_dir, open_state(common_dir)) == ()
    kept = _kept(repo)
    for name, text in user.saved.items():
        path = repo.root / name
        in_tree = path.is_file() and path.read_text() == text
        blob = hashlib.sha1(f"blob {len(text)}\0{text}".encode(), usedforsecurity=False).hexdigest()
        assert in_tree or blob in kept, (name, user.told)
    for branch, tip in branches.items():
        assert tip in kept or f"branch -qD {branch}" in user.told, (branch, user.told)


def _assert_own_changes_only(repo: UserRepo, user: User) -> None:
    """What git calls changed is what the user changed.

    Git finds the commit of a branch to check out before it takes a lock: a user who comes back to main in the
    moment in which it is moved gets files of before, in any repository.
    """
    if repo.git("branch", "--show-current") != "main":
        return
    listed = repo.raw_git("status", "--porcelain", "-z", "--no-renames").decode().split("\0")[:-1]
    strange = {line[3:] for line in listed} - user.touched
    has_older = user.has_been_away and all(_was_so_once(repo, path) for path in strange)
    # Told in short: pytest cuts the middle out of a long text.
    told = [" ".join(line.split())[:60] for line in user.told[-12:]]
    assert not strange or has_older, (strange, user.has_been_away, told)


def _was_so_once(repo: UserRepo, path: str) -> bool:
    """Whether a file is what main had there some moves ago."""
    blob = repo.git("hash-object", "--no-filters", path) if (repo.root / path).exists() else ""
    moves = len(repo.git("reflog", "-20", "main").splitlines())
    listed = (repo.git("ls-tree", f"main@{{{back}}}", "--", path) for back in range(1, moves))
    return any((line.split()[2] if line else "") == blob for line in listed)


@pytest.mark.parametrize("part", range(_PARTS))
def test_nothing_is_lost_whatever_a_user_does_meanwhile(repo: UserRepo, part: int) -> None:
    place = Place(repo)
    for number in range(SHARE, _EACH, 2):
        dice = random.Random(f"{part}/{number}")
        branches = place.prepare(dice)
        user = place.run(dice, dice.choice(((), ("--check", "true"))))
        _assert_nothing_lost(repo, user, branches)
        _assert_own_changes_only(repo, user)
        assert_only_forward(repo)
        assert_sound(repo)
        place.clear()


@pytest.mark.parametrize("part", range(2))
def test_a_users_commits_and_all_branches_come_together(repo: UserRepo, part: int) -> None:
    """A user who only commits, and branches that do not conflict: in the end main has all of it."""
    place = Place(repo)
    for number in range(SHARE, 6, 2):
        dice = random.Random(f"together {part}/{number}")
        renew(repo, {name: {f"new.{name}": f"{dice.getrandbits(64)}\n"} for name in _BRANCHES})
        user = User(repo, dice)
        with repo.started("reconcile", *dice.choice(((), ("--check", "true", "--check-each")))) as running:
            while running.process.poll() is None and len(user.saved) < 8:
                user.commit()
                time.sleep(dice.uniform(0, 0.3))
            code = running.end()
        assert code in (0, 1), running.text()
        last = reconcile(repo)
        assert last.code == 0, str(last)
        assert {name for name in _BRANCHES if not is_in(repo, name, "main")} == set()
        assert user.saved.keys() <= repo.files("main").keys()
        assert repo.git("status", "--porcelain") == ""
        assert_only_forward(repo)
    assert_sound(repo)
    assert place.repo is repo


def test_a_commit_made_between_landing_and_delivery_is_not_dropped(repo: UserRepo) -> None:
    """The ledger alone, in that very moment: what has landed does not stand on the user's commit."""
    agents(repo, "a")
    repo.write("a", "in the way\n")
    assert reconcile(repo).code == 1
    (repo.root / "a").unlink()
    mine = repo.commit("mine", mine="x\n")
    common_dir = str(repo.root / ".git")
    ledger = Ledger(open_state(common_dir), Repo(common_dir), BranchName("main"), lambda _: None)
    with pytest.raises(RefMoved):
        ledger.deliver()
    assert repo.git("rev-parse", "main") == mine
    assert reconcile(repo).code == 0
    assert is_in(repo, mine, "main")
    assert repo.show("main", "a") == "a\n"
