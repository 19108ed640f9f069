"""Folders over plain directories, mounted for real by a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Folders:
    """Folders that are mounted at `mount`; what is in `store` is in them (tests/folders/served.py)."""

    def __init__(self, place: Path, *around: str) -> None:
        """around: a command that is to run the process."""
        self.store = place / "store"
        self.mount = place / "mount"
        for folder in ("branches", "commits", "snapshots"):
            (self.store / folder).mkdir(parents=True, exist_ok=True)
        self.mount.mkdir(exist_ok=True)
        argv = [
            *around,
            sys.executable,
            str(Path(__file__).with_name("served.py")),
            str(self.store),
            str(self.mount),
        ]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.read().split()[1])

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended"
        return line.strip()

    def say(self, words: str) -> str:
        """Tell the control process something; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.read()

    def branch(self, name: str) -> tuple[Path, Path]:
        """A new branch: (where it is shown, where it lies)."""
        (self.store / "branches" / name).mkdir()
        return self.mount / "branches" / name, self.store / "branches" / name

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.communicate("stop\n", timeout=60)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(60)
