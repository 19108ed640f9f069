"""A run of `overlayrun` beside this process: a check or a resolver in a workspace of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial

from overlayrun.kernel import namespaces
from overlayrun.kernel.waits import as_shell
from overlayrun.program import this_program


class Background:
    """`overlayrun *options -- /bin/sh -c command` in a session of its own; dies with this process.

    fd: readable when it has ended (pidfd_open(2)). log: file that its output is appended to. The caller has
    one thread only.
    """

    def __init__(
        self,
        options: Sequence[str],
        command: str,
        *,
        cwd: str,
        log: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; raises OSError where the log can't be written."""
        self.log = log
        self._began = time.monotonic()
        self._ended: float | None = None
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [*this_program(), *options, "--", "/bin/sh", "-c", command],
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to deal with
                preexec_fn=partial(namespaces.die_with_parent, os.getpid()),  # noqa: PLW1509  # this process has one thread
            )
        self.fd = os.pidfd_open(self._process.pid)

    @property
    def seconds(self) -> float:
        """How long it has been running, or ran."""
        return (self._ended or time.monotonic()) - self._began

    def poll(self) -> int | None:
        """Its exit status as a shell shows it; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if self._ended is None:
            self._ended = time.monotonic()
            os.close(self.fd)
        return as_shell(code)

    def wait(self) -> int:
        """Wait for its end and give its exit status."""
        self._process.wait()
        status = self.poll()
        assert status is not None
        return status

    def end(self) -> int:
        """Ask it to end, wait, give its exit status; its supervisor kills what does not listen."""
        if self.poll() is None:
            self._process.terminate()
        return self.wait()
