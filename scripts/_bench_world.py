"""The benchmark's scratch directory: an installed overlayrun, sample repositories, and their cleaning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

from _bench_inside import path_of, text_of
from _bench_measure import AbsentError, BenchError, Runner, note

HERE: Final = os.path.dirname(os.path.realpath(__file__))
_VERSION: Final = "1"  # of the sample repositories
_HIDDEN: Final = ("/tmp", "/var/tmp", "/run", "/dev", "/proc")
_LONG_AGO: Final = 1_700_000_000  # files older than any index: git need not read them again
_SETTINGS: Final = (
    ("user.name", "Bench"),
    ("user.email", "bench@example.invalid"),
    ("gc.auto", "0"),  # it would strike in the middle of some round
    ("safe.directory", "*"),
)


class World:
    """Paths and tools. carried: how many ignored files the repository with a node_modules has."""

    def __init__(self, root: str, carried: int) -> None:
        self.root = os.path.realpath(root)
        if f"{self.root}/".startswith(tuple(f"{place}/" for place in _HIDDEN)):
            raise BenchError(f"a sandbox hides {self.root}: choose another place with --dir")
        self.carried = carried
        self.home = f"{self.root}/home"
        self.scrap = f"{self.home}/scrap"
        self.python = os.path.realpath(sys.executable)
        self.overlayrun = f"{self.home}/venv/bin/overlayrun"
        self.run = Runner(self.root, _environment(self.home))
        self.remove(self.scrap)
        os.makedirs(self.scrap)
        self._seen: set[str] = set()
        # What runs inside lies in HOME: of other homes, as /home/NAME is here, a sandbox shows nothing.
        _install(self.home)
        shutil.copy(f"{HERE}/_bench_floor.py", f"{self.root}/_bench_floor.py")
        shutil.copy(f"{HERE}/_bench_inside.py", f"{self.home}/_bench_inside.py")

    def ours(self, *words: str) -> list[str]:
        """A command line of overlayrun."""
        return [self.overlayrun, *words]

    def inside(self, *words: str) -> list[str]:
        """A command line of `_bench_inside.py`, which also a sandbox can see."""
        return [self.python, "-I", "-S", f"{self.home}/_bench_inside.py", *words]

    def git(self, cwd: str, *words: str, data: str = "") -> str:
        """Run git unmeasured; its stdout, stripped."""
        command = ["git", *words]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.run.environment,
            input=data,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"git {words[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    def repository(self, size: int, carried: int = 0) -> str:
        """A repository of `size` files in one commit, clean, without workspaces."""
        place = f"{self.home}/repositories/{size}" + (f"-carried-{carried}" if carried else "")
        if not _is_ready(place):
            note(
                f"making a repository of {size:,} files"
                + (f" and {carried:,} ignored ones" if carried else "")
            )
            self._make(place, size, carried)
        if place not in self._seen:
            self._seen.add(place)
            self._forget_leftovers(place)
        return place

    def checkout(self, size: int) -> str:
        """A full checkout of the same commit with a git directory of its own, clean."""
        place = f"{self.home}/checkouts/{size}"
        if not _is_ready(place):
            self.remove(place)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            self.git(self.root, "clone", "-q", "--no-hardlinks", self.repository(size), place)
            self._age(place, size)
            _set_ready(place)
        if place not in self._seen:
            self._seen.add(place)
            self.reset_checkout(place)
        return place

    def reset_checkout(self, place: str) -> None:
        """Take a checkout back to the commit that it began with, without the objects made since."""
        self.git(place, "reset", "-q", "--hard", "origin/main")
        self.git(place, "reflog", "expire", "--expire=now", "--all")
        self.git(place, "prune", "--expire=now")
        self.git(place, "status")

    def _make(self, place: str, size: int, carried: int) -> None:
        self.remove(place)
        for number in range(size):
            _write(f"{place}/{path_of(number)}", text_of(number))
        _write(f"{place}/.gitignore", "/node_modules/\n*.o\n*.tmp\n")
        for number in range(carried):
            _write(f"{place}/node_modules/{path_of(number)}", text_of(number))
        self.git(place, "init", "-q", "-b", "main")
        self._age(place, size)
        self.git(place, "add", "-A")
        self.git(place, "commit", "-q", "-m", "Sample")
        self.git(place, "repack", "-a", "-d", "-q")
        _set_ready(place)

    def _age(self, place: str, size: int) -> None:
        for number in range(size):
            os.utime(f"{place}/{path_of(number)}", (_LONG_AGO, _LONG_AGO))
        self.git(place, "status")

    def _forget_leftovers(self, place: str) -> None:
        """Clear what a benchmark that was killed has left behind."""
        self.git(place, "worktree", "prune")
        refs = self.git(place, "for-each-ref", "--format=%(refname)").split("\n")
        stale = [ref for ref in refs if ref not in {"", "refs/heads/main"}]
        workspaces = f"{place}/.git/overlayrun/workspaces"
        if stale or (os.path.isdir(workspaces) and os.listdir(workspaces)):
            self.remove_state(place)
        self.git(place, "update-ref", "--stdin", data="".join(f"delete {ref}\n" for ref in stale))
        self.tidy(place)

    def tidy(self, place: str) -> None:
        """Drop the objects that earlier rounds made; they would slow later ones."""
        self.git(place, "reflog", "expire", "--expire=now", "--all")
        packs = [name for name in os.listdir(f"{place}/.git/objects/pack") if name.endswith(".pack")]
        if len(packs) > 1:
            self.git(place, "repack", "-a", "-d", "-q")
        self.git(place, "prune", "--expire=now")

    def remove_state(self, place: str) -> None:
        """Remove everything that overlayrun keeps of a repository."""
        self.remove(f"{place}/.git/overlayrun")

    def remove(self, path: str) -> None:
        """Remove a tree, whatever its modes: overlayfs leaves a directory of mode 000."""
        if not os.path.lexists(path):
            return
        try:
            self.run(["rm", "-rf", path], self.root)
        except BenchError:
            self.run(["chmod", "-R", "u+rwX", path], self.root)
            self.run(["rm", "-rf", path], self.root)

    def drop(self, place: str, branch: str) -> None:
        """Remove a branch and its workspace."""
        self.run(self.ours("rm", "--force", branch), place)

    def opencode(self) -> str:
        """OpenCode, as `scripts/test` finds or installs it; linked into HOME, where a sandbox shows it."""
        data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        installed = f"{os.environ.get('OVERLAYRUN_ENVIRONMENT') or f'{data}/overlayrun'}/npm/opencode"
        named = os.environ.get("OVERLAYRUN_TEST_OPENCODE") or shutil.which("opencode") or installed
        if not os.access(named, os.X_OK):
            raise AbsentError("no OpenCode: set OVERLAYRUN_TEST_OPENCODE; scripts/test installs it")
        program = f"{self.home}/bin/opencode"
        self.remove(program)
        os.makedirs(os.path.dirname(program), exist_ok=True)
        try:
            os.link(os.path.realpath(named), program)
        except OSError:  # another file system, or protected_hardlinks: a file that belongs to another user
            shutil.copy(named, program)
        return program

    def can_reflink(self) -> bool:
        """Whether the scratch directory's file system shares blocks between files."""
        _write(f"{self.scrap}/blocks", "x" * 8192)
        try:
            self.run(["cp", "--reflink=always", "blocks", "shared"], self.scrap)
        except BenchError:
            return False
        return True


def _environment(home: str) -> dict[str, str]:
    os.makedirs(home, exist_ok=True)
    variables = {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1"}
    sections = (
        f"[{name.partition('.')[0]}]\n\t{name.partition('.')[2]} = {value}\n" for name, value in _SETTINGS
    )
    _write(f"{home}/.gitconfig", "".join(sections))
    return variables


def _install(place: str) -> None:
    """Install the checkout into `place`/venv if that is out of date; editable would slow each start."""
    script = 'set -eu; . "$1/_environment"; prepare_venv ""'
    environment = {**os.environ, "OVERLAYRUN_ENVIRONMENT": place}
    if subprocess.run(["bash", "-c", script, "bash", HERE], env=environment, check=False).returncode:
        raise BenchError("overlayrun could not be installed")


def _write(path: str, text: str) -> None:
    try:
        file = open(path, "w", encoding="ascii")  # noqa: SIM115  closed below; a second try must not be nested
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path))
        file = open(path, "w", encoding="ascii")  # noqa: SIM115  closed below
    with file:
        file.write(text)


def _is_ready(place: str) -> bool:
    try:
        with open(f"{place}/.git/benchmark", encoding="ascii") as file:
            return file.read() == _VERSION
    except FileNotFoundError:
        return False


def _set_ready(place: str) -> None:
    _write(f"{place}/.git/benchmark", _VERSION)


def disk_usage(path: str, *, without: tuple[str, ...] = ()) -> int:
    """Bytes that a tree takes on disk, directories included, less some of its directories."""
    total = os.lstat(path).st_blocks * 512
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            if entry.path not in without:
                total += disk_usage(entry.path, without=without)
        else:
            total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
