"""What a command may learn of the workspace that it runs in, as plain values."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from overlayrun.model import TreeId
from overlayrun.revision import newest, start
from overlayrun.store.compare import Change, changed_paths
from overlayrun.store.repo import Repo
from overlayrun.workspace.record import Record

_NAMES: Final = 50
_OF_SESSION: Final = ("agent", "id", "title", "model")
_LONGEST: Final = 150  # characters of a name: an answer has to fit into 64 KiB, six bytes a character
_COUNTED: Final = 2000  # files above which nobody counts lines: that reads them all, and the run waits


def whereami(record: Record) -> dict[str, Any]:
    """One running workspace. Spans in seconds; the change is what the last snapshot holds over the start.

    paths: [letter as in `git status`, name] of the first in bytewise order; counted in `change.files`.
    Raises StoreError.
    """
    repo, now = Repo(record.common_dir), time.time()
    began, last = start(repo, record), newest(repo, record)
    taken = last.snapshot
    run = record.last_run
    return {
        "branch": record.branch,
        "id": record.id,
        "throwaway": record.throwaway,
        "target": record.target,
        "base": record.base,
        "dirty": record.dirty is not None,
        "running": now - run.started if run else None,
        "snapshots": taken.number if taken else 0,
        "last_snapshot": {"number": taken.number, "commit": taken.commit, "age": max(0.0, now - taken.time)}
        if taken
        else None,
        **_change(repo, began.tree, last.tree),
        "session": {name: record.session.get(name, "") for name in _OF_SESSION} if record.session else None,
    }


def _change(repo: Repo, old: TreeId, new: TreeId) -> dict[str, Any]:
    found = sorted(changed_paths(repo, old, new), key=lambda change: change.path)
    lines = repo.diff_stat(old, new) if len(found) <= _COUNTED else None
    return {
        "change": {
            "files": len(found),
            "insertions": lines.insertions if lines else None,
            "deletions": lines.deletions if lines else None,
        },
        "paths": [[_letter(change), os.fsdecode(change.path)[:_LONGEST]] for change in found[:_NAMES]],
    }


def _letter(change: Change) -> str:
    if change.before is None:
        return "A"
    return "D" if change.after is None else "M"
