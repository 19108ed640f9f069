"""Lines of ours on standard error. On the launch path."""

from __future__ import annotations

import os

from overlayrun.errors import OverlayrunError
from overlayrun.report import printable


def tell(line: str) -> None:
    """Show a line of ours on standard error, at once and escaped; a closed one is no reason to stop."""
    try:
        os.write(2, f"overlayrun: {printable(line)}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def show_error(err: OverlayrunError) -> None:
    """Show an expected failure: the sentence, git's or the kernel's words, what to type next."""
    tell(err.brief)
    for text, mark in ((err.details, "  "), (err.hint, "hint: ")):
        for line in (text or "").splitlines():
            tell(f"{mark}{line}")
