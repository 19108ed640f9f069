"""Fixtures: a user's home and repository below the test's own directory, and the real command run there."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

SHARE: Final = 0 if os.geteuid() == 0 else 1
"""The suite runs as root and as an ordinary user: of many random tries each takes every other one.

So it is in CI with the tests that are marked `shared`; elsewhere whoever runs the suite runs them all.
"""
PATIENCE: Final = 60.0
"""Seconds after which something is taken to hang on a busy machine: a net, not a claim."""
_BIN: Final = Path(sys.executable).parent
_GITCONFIG: Final = (
    "[user]\n\tname = Test User\n\temail = test@example.invalid\n[init]\n\tdefaultBranch = main\n"
    "[maintenance]\n\tauto = false\n"  # a process more after each commit
    '[protocol "file"]\n\tallow = always\n'
)
_DATE: Final = "2024-02-03T04:05:06Z"
_MARKERS: Final = (
    "root: makes file systems or other owners; collected for root alone",
    "shared: what it shows can't depend on who runs it; in CI one half is told by root, the other by the user",
    "by_both: one of a shared module that is about privileges, owners or modes; each of them runs it",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


def _is_for_another(item: pytest.Item) -> bool:
    """Whether this user leaves a test to the other; each is run by one of them at least."""
    if item.get_closest_marker("root"):
        return os.geteuid() != 0
    shared = item.get_closest_marker("shared")
    if os.environ.get("CI") != "true" or shared is None:
        return False
    # By its name, which is the same for both, whatever else either of them collects; a file whose tests stand on
    # one thing that takes long to make is not divided.
    name = item.nodeid.partition("::")[0] if shared.kwargs.get("by") == "file" else item.nodeid
    is_mine = zlib.crc32(name.encode()) % 2 == SHARE
    return not is_mine and not item.get_closest_marker("by_both")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [item for item in items if _is_for_another(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not _is_for_another(item)]


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the configuration of whoever runs the suite, or a repository around it."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text(_GITCONFIG)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_", "OVERLAYRUN_STATE"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}\n-- stderr --\n{self.err}".encode(
            "utf-8", "backslashreplace"
        ).decode()

    @property
    def ours(self) -> list[str]:
        """Lines that overlayrun itself said, without its name."""
        start = "overlayrun: "
        return [line.removeprefix(start) for line in self.err.splitlines() if line.startswith(start)]


def wait_until(is_true: Callable[[], object], what: str = "", seconds: float = PATIENCE) -> None:
    """Ask until the answer is yes; AssertionError when it never is."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.02)


class Running:
    """A command that goes on while the test does; its output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def expect(self, text: str) -> None:
        """Wait until it has printed `text`; its end before that is a failure."""
        wait_until(lambda: text in self.text() or self.process.poll() is not None, text)
        assert text in self.text(), f"ended with {self.process.returncode}: {self.text()}"

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Close its input, wait for its end, give its exit status."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        return self.process.wait(PATIENCE)


class Terminal:
    """A command in the foreground of a pseudoterminal of its own."""

    def __init__(self, argv: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.master, slave = os.openpty()
        self.resize(24, 80)
        self._read = b""
        self._seen = 0
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave
        )
        self._slave = slave

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def text(self) -> str:
        """Everything shown so far, control sequences included."""
        while select.select([self.master], [], [], 0)[0]:
            self._read += os.read(self.master, 65536)
        return self._read.decode(errors="replace")

    def expect(self, text: str) -> None:
        """Wait until `text` is shown, after what the last `expect` found."""
        wait_until(lambda: text in self.text()[self._seen :] or self.process.poll() is not None, text)
        assert text in self.text()[self._seen :], f"no {text!r} in {self._read!r}"
        self._seen = self.text().index(text, self._seen) + len(text)

    def end(self) -> int:
        wait_until(lambda: (self.text(), self.process.poll())[1] is not None, "the end")
        self.text()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        os.close(self.master)


@dataclass(slots=True)
class UserRepo:
    """A user's repository, and the environment of a shell in it."""

    root: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def state(self) -> Path:
        return self.root / ".git/overlayrun"

    def at(self, root: Path) -> UserRepo:
        """The same user in another repository."""
        return UserRepo(root, self.home, self.env, self.marker)

    def raw_git(self, *args: str, data: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        done = subprocess.run(
            ["git", *args],
            cwd=self.root,
            env={**self.env, **(env or {})},
            input=data,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"git {args}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    def git(self, *args: str) -> str:
        return os.fsdecode(self.raw_git(*args)).strip()

    def write(self, name: str, text: str | bytes = "", mode: int = 0o644) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    def commit(self, message: str = "more", **files: str) -> str:
        """Commit everything, with `files` written before; the commit's id."""
        for name, text in files.items():
            self.write(name, text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")
        return self.git("rev-parse", "HEAD")

    def command(self, *args: str) -> list[str]:
        return [str(_BIN / "overlayrun"), *args]

    def overlayrun(
        self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, data: str = ""
    ) -> Done:
        """Run `overlayrun` to its end without a terminal."""
        done = subprocess.run(
            self.command(*args),
            cwd=cwd or self.root,
            env={**self.env, **(env or {})},
            input=data.encode(),
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        return Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    def sh(self, script: str, *options: str, branch: str | None = "b") -> Done:
        """Run a shell script in a workspace."""
        named = ["-b", branch] if branch else []
        return self.overlayrun(*named, *options, "--", "sh", "-c", script)

    def inside(self, script: str, *options: str, branch: str | None = "b") -> str:
        """Standard output of a script in a workspace that must succeed."""
        done = self.sh(f"set -e\n{script}", *options, branch=branch)
        assert done.code == 0, str(done)
        return done.out

    @contextmanager
    def started(self, *args: str, own_session: bool = True) -> Iterator[Running]:
        """Start `overlayrun`, leave it running until the block ends; its input is a pipe."""
        log = self.home.parent / f"{uuid.uuid4().hex}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(*args),
                cwd=self.root,
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=own_session,
            )
        try:
            yield Running(process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()

    @contextmanager
    def terminal(self, *argv: str) -> Iterator[Terminal]:
        """Start any command on a terminal of its own."""
        terminal = Terminal(list(argv), self.root, self.env)
        try:
            yield terminal
        finally:
            terminal.close()

    def records(self) -> dict[str, dict[str, Any]]:
        """Records by branch; each also holds its `path`."""
        found = {}
        for path in self.state.glob("workspaces/*/record.json"):
            data = json.loads(path.read_text())
            found[data["branch"]] = {**data, "path": path}
        return found

    def workspace(self, branch: str = "b") -> Path:
        path: Path = self.records()[branch]["path"]
        return path.parent

    def refs(self) -> dict[str, str]:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return {name: oid for name, _, oid in (line.partition(" ") for line in lines)}

    def snapshots(self, branch: str = "b") -> list[str]:
        """Commits of a branch's snapshot chain, newest first."""
        ref = f"refs/overlayrun/snapshots/{self.records()[branch]['id']}"
        return self.git("rev-list", "--first-parent", "--grep=^Overlayrun-Number:", ref).split()

    def show(self, branch: str, path: str) -> str:
        return self.raw_git("show", f"{branch}:{path}").decode()

    def files(self, revision: str) -> dict[str, str]:
        """`<mode> <type> <id>` of each file of a revision."""
        listed = os.fsdecode(self.raw_git("ls-tree", "-rz", revision)).split("\0")[:-1]
        return {path: what for what, _, path in (line.partition("\t") for line in listed)}

    def picture(self) -> dict[str, tuple[object, ...]]:
        """What no run may change: the user's tree and git directory, less objects, logs and refs."""
        skipped = {f"{self.root}/.git/{name}" for name in ("objects", "overlayrun", "logs", "refs")}
        found: dict[str, tuple[object, ...]] = {}
        for directory, directories, names in os.walk(self.root):
            directories[:] = [name for name in directories if f"{directory}/{name}" not in skipped]
            for name in [*directories, *names]:
                path = f"{directory}/{name}"
                info = os.lstat(path)
                content = os.readlink(path) if os.path.islink(path) else None
                if content is None and os.path.isfile(path) and os.access(path, os.R_OK):
                    content = Path(path).read_bytes().hex()
                time_ns = None if os.path.isdir(path) else info.st_mtime_ns
                found[path] = (info.st_mode, info.st_uid, info.st_ino, time_ns, content)
        return found

    def marked(self) -> list[int]:
        """Processes, dead ones aside, whose arguments hold this test's marker."""
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.marker in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    alive.append(int(entry.name))
        return alive

    def sleeper(self) -> str:
        """A shell command that sleeps for ever and can be found from outside."""
        return f"sh -c 'while :; do sleep 1; done; : {self.marker}'"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home directory with git's configuration."""
    place = tmp_path / "home"
    place.mkdir()
    (place / ".gitconfig").write_text(_GITCONFIG)
    return place


def _user(place: Path) -> UserRepo:
    """Paths and environment of a user whose home and repository lie in `place`."""
    home = place / "home"
    env = {
        "HOME": str(home),
        "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": _DATE,
        "GIT_COMMITTER_DATE": _DATE,
        "XDG_STATE_HOME": str(home / ".local/state"),
        "XDG_CACHE_HOME": str(home / ".cache"),
    }
    return UserRepo(place / "repo", home, env)


@pytest.fixture
def empty_repo(tmp_path: Path, home: Path) -> UserRepo:
    """A repository without a commit."""
    made = _user(tmp_path)
    assert made.home == home
    made.root.mkdir()
    made.git("init", "--quiet")
    return made


@pytest.fixture(scope="session")
def _repo_to_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `repo` is a copy of: twelve processes of git less for each test."""
    made = _user(tmp_path_factory.mktemp("template"))
    made.home.mkdir()
    (made.home / ".gitconfig").write_text(_GITCONFIG)
    made.root.mkdir()
    made.git("init", "--quiet")
    for sample in (made.root / ".git/hooks").glob("*.sample"):
        sample.unlink()  # a tenth of all files that the suite would copy
    made.write("README", "read me\n")
    made.commit("first")
    made.write("src/app.py", "answer = 41\n")
    made.write("tool.sh", "#!/bin/sh\necho tool\n", 0o755)
    (made.root / "link").symlink_to("src/app.py")
    made.commit("second")
    return made.root


def copy_repo(template: Path, place: Path) -> UserRepo:
    """Make a home and a repository like `repo` in `place`, for a fixture that many tests share."""
    made = _user(place)
    made.home.mkdir(exist_ok=True)
    (made.home / ".gitconfig").write_text(_GITCONFIG)
    shutil.copytree(template, made.root, symlinks=True)
    made.git("update-index", "-q", "--refresh")  # the copies are other files to it
    return made


@pytest.fixture
def repo(tmp_path: Path, home: Path, _repo_to_copy: Path) -> UserRepo:
    """A repository with a few files in two commits, on main."""
    made = copy_repo(_repo_to_copy, tmp_path)
    assert made.home == home
    return made


@pytest.fixture
def until() -> Callable[..., None]:
    """`until(is_true, what)` asks again and again; AssertionError when the answer is never yes."""
    return wait_until


Mounter = Callable[..., Path]


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[Mounter]:
    """`loop_disk("ext4", megabytes)`: a small file system of its own, mounted; for root."""
    mounted: list[Path] = []

    def make(kind: str, megabytes: int) -> Path:
        number = len(mounted)
        image, place = tmp_path / f"disk{number}.img", tmp_path / f"disk{number}"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        force = ["-F"] if kind == "ext4" else []
        subprocess.run([f"mkfs.{kind}", "-q", *force, str(image)], check=True, capture_output=True)
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
