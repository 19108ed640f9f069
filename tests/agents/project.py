"""A user's project for tests with a real agent: home directory, repository, environment, terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .scripted_model import ScriptedModel

_PATIENCE: Final = 120.0
"""Seconds that a whole run of an agent may take on a busy machine: a net against hanging, not a claim."""


@dataclass(frozen=True, slots=True)
class Run:
    """One `overlayrun` that goes on while the test does."""

    process: subprocess.Popen[bytes]
    output: Callable[[], str]

    def is_running(self) -> bool:
        """Say whether it has not ended yet."""
        return self.process.poll() is None

    def end(self) -> int:
        """Wait for its end, and give its exit status."""
        return self.process.wait(_PATIENCE)

    def succeed(self) -> None:
        """Wait for its end; an exit status other than 0 is a failure."""
        assert self.end() == 0, self.output()

    def reach(self, model: ScriptedModel, gate: str) -> None:
        """Wait until its agent waits at the model's `gate`; its end before that is a failure."""
        wait_until(lambda: model.is_reached(gate) or not self.is_running())
        assert model.is_reached(gate), f"ended with {self.process.returncode}:\n{self.output()}"


@dataclass(frozen=True, slots=True)
class Project:
    """A user's home directory with a repository in it, and the environment of a terminal there."""

    home: Path
    repo: Path
    env: dict[str, str]

    def git(self, *args: str) -> str:
        """Run git in the user's repository and give what it prints. Raises: CalledProcessError."""
        return self.output(["git", *args])

    def output(self, command: Sequence[str]) -> str:
        """Run a command outside any workspace, in the repository, and give its standard output."""
        return subprocess.check_output(command, cwd=self.repo, env=self.env, text=True, timeout=_PATIENCE)

    def overlayrun(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run `overlayrun` as a user would, without a terminal, to its end."""
        return subprocess.run(
            ["overlayrun", *args],
            cwd=self.repo,
            env=self.env,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
        )

    @contextmanager
    def started(self, *args: str) -> Iterator[Run]:
        """Start `overlayrun` in a session of its own and leave it running until the block ends."""
        log = self.home.parent / f"{args[1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["overlayrun", *args],
                cwd=self.repo,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with _ended(process):
            yield Run(process, log.read_text)

    @contextmanager
    def on_terminal(self, *args: str) -> Iterator[tuple[Run, Terminal]]:
        """Start `overlayrun` in the foreground of a terminal of its own."""
        with Terminal() as terminal:
            process = subprocess.Popen(
                ["setsid", "--ctty", "overlayrun", *args],
                cwd=self.repo,
                env=self.env,
                stdin=terminal.slave,
                stdout=terminal.slave,
                stderr=terminal.slave,
            )
            with _ended(process):
                yield Run(process, terminal.text), terminal

    def files(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Give mode, size, time (ns) and content of each file of the working tree, by path below it."""
        found = {}
        for path in sorted(self.repo.rglob("*")):
            name = path.relative_to(self.repo)
            if path.is_file() and name.parts[0] != ".git":
                stat = path.stat()
                found[str(name)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, path.read_bytes())
        return found

    def names_in_home(self) -> set[str]:
        """Give the names that the user's home directory holds, not those below them."""
        return {path.name for path in self.home.iterdir()}


class Terminal:
    """A pseudoterminal whose output is read all the time, so that nobody blocks on it; a context manager."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._read_all)

    def type(self, keys: bytes) -> None:
        """Send keys, as typed by the user."""
        os.write(self.master, keys)

    def text(self) -> str:
        """Give what was shown so far, control sequences included."""
        return b"".join(self._read).decode(errors="replace")

    def __enter__(self) -> Terminal:
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.slave)
        self._reader.join()
        os.close(self.master)

    def _read_all(self) -> None:
        # The last slave's end shows as EIO: every process on the terminal is gone by then.
        with suppress(OSError):
            while data := os.read(self.master, 65536):
                self._read.append(data)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            # Asked first, so that overlayrun ends its agent too; then what is left of its group is killed.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(is_true: Callable[[], bool], seconds: float = _PATIENCE) -> None:
    """Ask again and again until the answer is yes. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"not true after {seconds} s")
        time.sleep(0.1)
