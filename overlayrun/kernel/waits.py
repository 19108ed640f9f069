"""How a process ended, as a shell gives it: its exit code, or 128 and the signal's number (sh(1p), 2.8.2)."""

from __future__ import annotations

import os


def exit_code(status: int) -> int:
    """Of what waitpid(2) gives."""
    return as_shell(os.waitstatus_to_exitcode(status))


def as_shell(code: int) -> int:
    """Of what Python gives: a signal as a negative number."""
    return code if code >= 0 else 128 - code
