"""What `doctor` says of folders: whether they can be shown here, and how those of the repository stand."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from overlayrun.checks import Finding, State
from overlayrun.folders.place import is_open, status_of
from overlayrun.folders.server import is_mounted, missing
from overlayrun.report import printable
from overlayrun.workspace.layout import Layout

_WHY = "`overlayrun open` shows branches as folders"


def examine_folders(layout: Layout | None) -> Iterator[Finding]:
    """Try what folders need; layout: of the repository around, None where there is none."""
    lacking = missing()
    if lacking is not None:
        yield Finding("folders", State.LIMITED, lacking.brief, _WHY, lacking.hint or "")
        return
    if layout is None:
        yield Finding("folders", State.OK, "they can be shown", _WHY)
        return
    yield _standing(layout)


def _standing(layout: Layout) -> Finding:
    told, shown = status_of(layout), layout.shown_in()
    if told is not None and told["troubles"]:
        found = printable(told["troubles"][0])
        return Finding("folders", State.LIMITED, found, _WHY, "make room, then: overlayrun ls")
    if told is not None:
        return Finding(
            "folders", State.OK, f"open in {printable(told['place'])}, process {told['pid']}", _WHY
        )
    if is_open(layout):
        log = shlex.quote(f"{layout.folders}/log")
        return Finding("folders", State.LIMITED, "their process does not answer", _WHY, f"see: tail {log}")
    if shown is not None and os.path.lexists(shown) and is_mounted(shown):
        found = f"a process that was killed left them mounted in {printable(shown)}"
        return Finding("folders", State.LIMITED, found, _WHY, "overlayrun open")
    return Finding("folders", State.OK, "they can be shown, and are not open", _WHY)
