"""This program, started once more by itself."""

from __future__ import annotations

import sys

_LAUNCH = "from overlayrun.launch import main; main()"


def this_program(first: str = "") -> list[str]:
    """Words that start overlayrun; its own follow. first: Python that it executes before.

    -P (python(1)): no module that lies in the current directory, a repository's, stands in for one of ours.
    """
    return [sys.executable, "-P", "-c", first + _LAUNCH]
