"""A terminal that shows a screen: tmux, on a server of the test's own."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .project import wait_until

_SIZE: Final = ("-x", "150", "-y", "45")


class Screen:
    """A program on a screen. place: a directory for tmux's socket."""

    def __init__(self, place: Path, cwd: Path, env: Mapping[str, str]) -> None:
        self._socket = str(place / "tmux")
        self._cwd = cwd
        self._env = dict(env)

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-f", "/dev/null", "-S", self._socket, *words]
        done = subprocess.run(
            command, cwd=self._cwd, env=self._env, capture_output=True, check=False, text=True
        )
        return done.stdout

    @contextmanager
    def showing(self, command: Sequence[str]) -> Iterator[None]:
        """Run a command on the screen until the block ends."""
        self._tmux("new-session", "-d", *_SIZE, shlex.join(command))
        try:
            yield
        finally:
            self._tmux("kill-server")

    def text(self) -> str:
        """What the screen shows, trailing blanks aside."""
        return "\n".join(line.rstrip() for line in self._tmux("capture-pane", "-p").splitlines())

    def see(self, text: str) -> None:
        """Wait until the screen shows a text. Raises: AssertionError with the screen."""
        try:
            wait_until(lambda: text in self.text(), 60)
        except TimeoutError:
            raise AssertionError(f"not seen: {text}\n{self.text()}") from None

    def enter(self, text: str, *, seen: str = "") -> None:
        """Type a line. seen: what of it the screen shows before it is sent; the whole of it by default."""
        self._tmux("send-keys", "-l", text)
        self.see(seen or text)
        time.sleep(0.3)  # a key that comes at once after others is taken for a part of what was pasted
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Send keys by tmux's names."""
        self._tmux("send-keys", *keys)
