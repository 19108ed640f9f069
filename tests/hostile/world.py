"""A user with secrets and a repository, and what must hold on the host after anything that an agent did there.

Z1 no program of the agent's ran on the host. Z2 the host is as it was. Z3 no secret was taken. Z4 the repository is
sound. Z5 nothing is left. Z6 overlayrun ended by itself, in words. Z7 it wrote nothing that a terminal obeys.
Z8 (no layer is off without a word) is what `test_d_kernel` and `test_z8_layers` prove.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from conftest import Done, UserRepo, wait_until

COVERED_ELSEWHERE: Final[Mapping[int, str]] = {
    24: "tests/test_bad_input.py::test_bad_branch_name",
    29: "tests/test_snapshot_entries.py::test_names_that_are_swapped_meanwhile_lead_nowhere",
    30: "tests/test_snapshot_entries.py::test_names_that_are_swapped_meanwhile_lead_nowhere",
    37: "tests/test_snapshot_entries.py::test_too_many_files_are_refused_unless_forced",
    39: "tests/test_snapshot_entries.py::test_a_tree_5000_deep_neither_crashes_nor_loses_what_git_can_hold",
    51: "tests/test_snapshot_storage.py::test_a_store_through_an_old_mapping_is_seen_by_the_last_snapshot",
    60: "tests/test_bad_input.py::test_branch_that_runs_already",
    61: "tests/test_workspace_view.py::test_base_is_frozen_against_the_users_later_work",
    82: "tests/test_run.py::test_kill_of_the_supervisor_kills_everything",
    89: "tests/test_run.py::test_every_exit_status_passes_through",
    90: "tests/test_terminal.py::test_hangup_of_the_terminal_ends_everything_and_keeps_the_work",
    127: "tests/test_snapshot_storage.py::test_a_kill_at_any_time_leaves_the_old_snapshot_or_the_new_one",
    130: "tests/test_full_disk.py::test_disk_full_before_the_start",
    131: "tests/test_snapshot_chain.py::test_two_workspaces_do_not_meet",
    132: "tests/test_snapshot_storage.py::test_locks_of_a_killed_snapshot_are_cleared_and_the_users_are_not",
    133: "tests/reconcile/test_story.py::test_a_commit_made_while_a_check_runs_stays_and_comes_first",
    134: "tests/store/test_merge_kinds.py::test_of_fifty_branches_that_edit_one_line_each_later_one_is_a_listed_conflict",
    135: "tests/store/test_merger.py::test_a_source_chooses_no_driver_of_the_users",
    137: "tests/test_bad_input.py::test_state_directory_of_somebody_else",
    139: "tests/test_snapshot_chain.py::test_dates_never_go_back_on_a_chain",
    142: "tests/test_run_snapshots.py::test_freeze_lets_the_command_go_on",
    144: "tests/kernel/test_refusals.py::test_the_reason_is_named_with_its_cure",
    145: "tests/kernel/test_refusals.py::test_the_reason_is_named_with_its_cure",
}
"""Cases whose own test stands with the part that it tests."""

PAYLOADS: Final = Path(__file__).parent / "payloads"
_BIN: Final = Path(sys.executable).parent
_GITCONFIG: Final = (
    "[user]\n\tname = Test User\n\temail = test@example.invalid\n[init]\n\tdefaultBranch = main\n"
)
_SECRETS: Final = (
    ".ssh/id_ed25519",
    ".netrc",
    ".git-credentials",
    ".config/gh/hosts.yml",
    ".aws/credentials",
)
_DOTFILES: Final = (".bashrc", ".profile", ".zshrc", ".local/bin/git")
# What an ordinary user types next: whatever the agent planted, none of it may run.
_HOST_GIT: Final = """
set -e
git status; git diff; git log -p --all -3; git stash list; git branch -a; git submodule status
for branch; do
    git worktree add -q --detach "$SCRATCH" "$branch"
    cd "$SCRATCH"; git status; git add -A; git diff HEAD; cd "$ROOT"
    git worktree remove --force "$SCRATCH"
done
"""
# Every command in a process of its own, but pygit2, click and rich are imported once for all.
_OURS: Final = """
import json, os, sys, tempfile
import click, pygit2, rich.console, rich.table, overlayrun.cli.main
from overlayrun import launch
answers = []
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["overlayrun", *words]
            sys.exit(launch.main())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        answers.append([status, out.read().decode("utf-8", "backslashreplace"),
                        err.read().decode("utf-8", "backslashreplace")])
print(json.dumps(answers))
"""
MERGE_ANYWAY: Final = ("--yes-exec",)
"""The user says yes to files that run code on his machine."""
_LOOKS: Final = 3  # branches of a world at which commands that only look are tried; git and merge see all
_UNSOUND: Final = re.compile(r"hasDot|gitmodules|gitattributes|fullPathname|treeNotSorted|zeroPadded")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(slots=True)
class Attack:
    """One run of hostile code and what was found on the host afterwards.

    report: what the payload said, by probe. broken: one sentence for each promise that did not hold.
    """

    branch: str
    done: Done
    report: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def part(self, name: str) -> Any:
        assert name in self.report, f"the payload did not get to {name}: {self.done}"
        return self.report[name]

    def refused(self, name: str, *allowed: str) -> None:
        """A probe must have failed, with one of the errors `allowed` (any that is none of ours without)."""
        answer = self.part(name)
        assert answer in (allowed or ("EPERM", "EACCES", "ENOENT", "ENOSYS", "EROFS")), f"{name}: {answer}"

    def assert_sound(self) -> None:
        assert not self.broken, "\n".join([*self.broken, str(self.done)])


class World:
    """One user, one repository, one other branch with work of its own, canaries everywhere."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.secret = f"OLRSECRET-{uuid.uuid4()}"
        self.test_id = uuid.uuid4().hex
        self.home = place / "home"
        self.pwn = self.home / "pwn"
        self.payloads = place / "payloads"
        shutil.copytree(PAYLOADS, self.payloads)
        self._make_home()
        self.repo = self._make_repo()
        self._host_secret = Path("/dev/shm") / f"olr-{self.test_id}"
        self._host_secret.write_text(self.secret)
        self.tmp_secret = Path("/tmp") / f"olr-{self.test_id}"
        self.tmp_secret.write_text(self.secret)

    def _make_home(self) -> None:
        self.pwn.mkdir(parents=True)
        (self.home / ".gitconfig").write_text(_GITCONFIG)
        for name in _SECRETS:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{self.secret}\n")
            path.chmod(0o600)
        for name in _DOTFILES:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("# the user's own\n")

    def _make_repo(self) -> UserRepo:
        env = {
            "HOME": str(self.home),
            "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "GIT_CONFIG_NOSYSTEM": "1",
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "OLR_SECRET_ACCESS_KEY": self.secret,
        }
        repo = UserRepo(self.place / "repo", self.home, env, self.test_id)
        repo.root.mkdir()
        repo.git("init", "--quiet")
        repo.write("README", "read me\n")
        repo.commit("first")
        repo.write("src/app.py", "answer = 41\n")
        repo.write("tool.sh", "#!/bin/sh\necho tool\n", 0o755)
        repo.commit("second")
        repo.git("branch", "private/mine")
        repo.git("config", "remote.origin.url", f"https://me:{self.secret}@example.invalid/x.git")
        repo.git("config", "http.https://example.invalid/.extraheader", f"Authorization: {self.secret}")
        return repo

    def close(self) -> None:
        self._host_secret.unlink()
        self.tmp_secret.unlink()

    def other_branch(self) -> Path:
        """Another workspace with a secret that is in none of its commits; its directory."""
        script = 'read line; echo "$line" >"$HOME/.mine"; echo work >work'
        done = self.repo.overlayrun("-b", "other", "--", "sh", "-c", script, data=f"{self.secret}\n")
        assert done.code == 0, str(done)
        return self.repo.workspace("other")

    def words(self, branch: str, *options: str) -> list[str]:
        """Options of a run whose processes can be found by the test's own name."""
        mark = ["--env", f"OLR_TEST_ID={self.test_id}", "--env", f"PWN={self.pwn}/pwned"]
        return ["-b", branch, *mark, "--bind-ro", str(self.payloads), *options]

    def sh(self, script: str, *options: str, branch: str, sound: bool = True) -> Attack:
        """Run a hostile shell script, then look at the host."""
        return self.attack(["sh", "-c", script], *options, branch=branch, sound=sound)

    def payload(self, name: str, *args: str, branch: str, options: Sequence[str] = ()) -> Attack:
        """Run a program of `payloads/`, which prints its report as JSON, then look at the host."""
        given = {"secret_paths": self.secret_paths(), "root": str(self.repo.root), "mark": self.test_id}
        argv = ["python3", f"{self.payloads}/{name}.py", json.dumps(given), *args]
        return self.attack(argv, *options, branch=branch)

    def secret_paths(self) -> list[str]:
        return [str(self.home / name) for name in _SECRETS] + [
            str(self.tmp_secret),
            str(self._host_secret),
            "/etc/shadow",
            "/etc/gshadow",
        ]

    def attack(self, argv: Sequence[str], *options: str, branch: str, sound: bool = True) -> Attack:
        """sound: whether the repository must pass a strict fsck afterwards, what the agent brought included."""
        with self.watched(branch) as watch:
            done = self.repo.overlayrun(*self.words(branch, *options), "--", *argv)
        attack = Attack(branch, done)
        with suppress(ValueError):
            attack.report = json.loads(done.out) if done.out.startswith("{") else {}
        attack.broken += watch.broken
        self.examine(attack, sound=sound)
        return attack

    def watched(self, branch: str) -> Watch:
        """A context that compares the host before and after a run of `branch` (Z2, Z5)."""
        return Watch(self, branch)

    def examine(self, attack: Attack, *, sound: bool = True) -> None:
        """Z3, Z4, Z6, Z7 after a run; Z1 as far as the run itself could break it."""
        attack.broken += [*_of_output(attack.done), *self._of_store(sound=sound)]
        if planted := os.listdir(self.pwn):
            attack.broken.append(f"Z1: the agent's code ran on the host: {planted}")

    def use_everything(self) -> list[str]:
        """Z1, with Z6 and Z7 of each command: what a user does on the host with every branch, once it is there."""
        branches = [name for name in self.repo.records() if f"refs/heads/{name}" in self.repo.refs()]
        broken = [*self._use_git(branches), *self._use_ours(branches)]
        if planted := os.listdir(self.pwn):
            broken.append(f"Z1: the agent's code ran on the host: {planted}")
        return broken

    def _use_git(self, branches: Sequence[str]) -> Iterator[str]:
        done = subprocess.run(
            ["sh", "-c", _HOST_GIT, "sh", *branches],
            cwd=self.repo.root,
            env={**self.repo.env, "SCRATCH": f"{self.place}/scratch", "ROOT": str(self.repo.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            yield f"Z1: git on the host ended with {done.returncode}: {done.stderr[-300:]!r}"

    def _use_ours(self, branches: Sequence[str]) -> Iterator[str]:
        commands = [["status"]]
        looks = (["diff", "--stat"], ["log"], ["show"])
        commands += [[*looks[number % 3], name] for number, name in enumerate(branches[:_LOOKS])]
        self.repo.git("branch", "--force", "landing/all", "main")
        commands += [["merge", *MERGE_ANYWAY, "--into", "landing/all", *branches]] if branches else []
        for words, done in zip(commands, self.ours(commands), strict=True):
            yield from (f"{line} ({words})" for line in _of_output(done, all_ours=True))
            if done.code and words[0] != "merge":
                yield f"Z1: {words}: {done}"

    def merge(self, branch: str, *options: str) -> Done:
        """Merge a branch into one that stands where main does: nothing else of the repository moves."""
        self.repo.git("branch", "--force", f"landing/{branch}", "main")
        return self.repo.overlayrun("merge", *options, "--into", f"landing/{branch}", branch)

    def ours(self, commands: Sequence[Sequence[str]]) -> list[Done]:
        """Run several of overlayrun's commands on the host."""
        done = subprocess.run(
            [sys.executable, "-c", _OURS, json.dumps(commands)],
            cwd=self.repo.root,
            env=self.repo.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return [Done(*answer) for answer in json.loads(done.stdout)]

    def _of_store(self, *, sound: bool) -> Iterator[str]:
        objects = self.repo.raw_git("cat-file", "--batch-all-objects", "--batch", "--buffer")
        if self.secret.encode() in objects:
            yield "Z3: the secret is in the repository"
        checked = subprocess.run(
            ["git", "fsck", "--strict", "--full", "--no-dangling"],
            cwd=self.repo.root,
            env=self.repo.env,
            capture_output=True,
            text=True,
            check=False,
        )
        said = checked.stdout + checked.stderr
        if sound and (checked.returncode or _UNSOUND.search(said)):
            yield f"Z4: fsck: {said}"

    def picture(self) -> dict[str, object]:
        """Z2: everything of the user's that no run may change."""
        seen: dict[str, object] = {**self.repo.picture()}
        for name in (*_SECRETS, *_DOTFILES, ".gitconfig"):
            path = self.home / name
            info = path.lstat()
            seen[str(path)] = (info.st_mode, info.st_uid, info.st_ino, path.read_bytes())
        seen["home"] = sorted(set(os.listdir(self.home)) - {".cache"})
        seen["refs"] = {
            name: commit
            for name, commit in self.repo.refs().items()
            if not name.startswith(("refs/overlayrun/", "refs/heads/landing/"))
        }
        return seen

    def left(self) -> list[str]:
        """Z5: what is still there of a run that is over."""
        found = [f"process {pid}" for pid in self._processes()]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [f"mount {line}" for line in mounts.splitlines() if str(self.place) in line]
        sockets = Path("/proc/net/unix").read_text()
        found += [f"socket {line}" for line in sockets.splitlines() if f"@{self.test_id}" in line]
        ids = {record["id"] for record in self.repo.records().values()}
        for group in Path("/sys/fs/cgroup").glob("**/*overlayrun*"):
            if any(name in group.name for name in ids):
                found.append(f"control group {group}")
        return found

    def inside(self) -> list[int]:
        """Processes of this test's that are in another pid namespace."""
        ours = os.stat("/proc/self/ns/pid").st_ino
        found = []
        for pid in self._processes():
            with suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/pid").st_ino != ours:
                    found.append(pid)
        return found

    def _processes(self) -> Iterator[int]:
        mark = self.test_id.encode()
        for entry in Path("/proc").glob("[0-9]*"):
            for name in ("environ", "cmdline"):
                with suppress(OSError):
                    if mark in (entry / name).read_bytes() and int(entry.name) != os.getpid():
                        yield int(entry.name)


class Watch:
    """What Z2 and Z5 say of a stretch of time; `broken` is filled at its end."""

    def __init__(self, world: World, branch: str) -> None:
        self.world = world
        self.branch = branch
        self.broken: list[str] = []

    def __enter__(self) -> Watch:
        self.before = self.world.picture()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):
            wait_until(lambda: not self.world.left(), "the end", 10)
        self.broken += [f"Z5: left behind: {thing}" for thing in self.world.left()]
        self.broken += _differences(self.before, self.world.picture(), self.branch)


def _differences(before: dict[str, Any], after: dict[str, Any], branch: str) -> Iterator[str]:
    for refs in (before["refs"], after["refs"]):
        refs.pop(f"refs/heads/{branch}", None)
    if before["refs"] != after["refs"]:
        yield f"Z2: refs changed: {before['refs']} to {after['refs']}"
    for path in sorted((before.keys() | after.keys()) - {"refs"}):
        if before.get(path) != after.get(path):
            yield f"Z2: changed on the host: {path}: {before.get(path)} to {after.get(path)}"


def _of_output(done: Done, *, all_ours: bool = False) -> Iterator[str]:
    """Z6 and Z7 of what a command of ours printed; all_ours: its standard output is ours as well."""
    if "Traceback" in done.err:
        yield f"Z6: a traceback: {done.err[-500:]}"
    said = done.err + done.out if all_ours else "\n".join(done.ours)
    if found := _CONTROL.search(said.replace("\t", " ").replace("\n", " ")):
        yield f"Z7: {found.group()!r} in {said!r}"


def make_world(place: Path, *, other: bool = False) -> Iterator[World]:
    """A world for a fixture."""
    world = World(place)
    try:
        if other:
            world.other_branch()
        yield world
        assert world.use_everything() == []
    finally:
        world.close()
