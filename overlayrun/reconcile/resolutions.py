"""Resolutions that were accepted before, by exactly what conflicted: path and (base, ours, theirs).

They lie in the tree of one commit, so that `git gc` keeps them: `<2 letters of the key>/<the rest>/result` is
the file as it was resolved, `…/absent` says that it was removed. The commit has no parent: what is replaced
may go.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

from overlayrun.errors import StoreError
from overlayrun.model import CommitId, TreeId
from overlayrun.reconcile.acceptance import Proposal, Sides, judge
from overlayrun.reconcile.paths import edited, entry_at
from overlayrun.store.commits import format_commit
from overlayrun.store.compare import changed_paths
from overlayrun.store.merger import Conflict, Merged
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.refs import QUEUE, RefUpdate
from overlayrun.store.repo import Repo
from overlayrun.store.settings import read_settings
from overlayrun.store.trees import FILE, Entry

RESOLUTIONS: Final = f"{QUEUE}resolutions"
_ATTEMPTS: Final = 5
_PAUSE: Final = 0.05  # seconds


def remembered(repo: Repo, merged: Merged) -> TreeId | None:
    """The automatic merge with every conflict resolved as it was before; None unless all are known.

    It is judged once more: the same versions may merge otherwise under other attributes.
    """
    at = repo.ref(RESOLUTIONS)
    if at is None or merged.is_clean:
        return None
    known = repo.tree_of(at)
    edits: dict[bytes, Entry | None] = {}
    for conflict in _resolvable(merged):
        place = _place(conflict)
        result = entry_at(repo, known, place + b"/result")
        if result is None and entry_at(repo, known, place + b"/absent") is None:
            return None
        edits[conflict.path] = result
    with ObjectWriter(repo.objects) as writer:
        tree = edited(repo, writer, merged.tree, edits)
        writer.finish()
    # Nothing but conflicted paths was changed, so that the sides' other files don't matter.
    sides = Sides(merged.tree, merged.tree, merged.tree)
    verdict = judge(repo, merged, sides, Proposal(tree, tuple(edits)))
    return None if verdict.refused else tree


def remember(repo: Repo, merged: Merged, tree: TreeId) -> bool:
    """Keep an accepted resolution, and say whether that was done.

    One that changed other paths as well is not kept: it would be no resolution without them. Nor is it where
    somebody else keeps winning the race for the ref.
    """
    conflicts = _resolvable(merged)
    paths = {conflict.path for conflict in conflicts}
    if any(change.path not in paths for change in changed_paths(repo, merged.tree, tree)):
        return False
    results = {_place(conflict): entry_at(repo, tree, conflict.path) for conflict in conflicts}
    for _ in range(_ATTEMPTS if results else 0):
        old = repo.ref(RESOLUTIONS)
        new = _written(repo, old, results)
        try:
            repo.move_refs([RefUpdate(RESOLUTIONS, new, old)], why="resolution")
        except StoreError:
            time.sleep(_PAUSE)
            continue
        return True
    return False


def _written(repo: Repo, old: CommitId | None, results: dict[bytes, Entry | None]) -> CommitId:
    with ObjectWriter(repo.objects) as writer:
        mark = (FILE, writer.add(b"blob", b""))
        edits: dict[bytes, Entry | None] = {}
        for place, entry in results.items():
            edits |= {place + b"/result": entry, place + b"/absent": None if entry else mark}
        tree = edited(repo, writer, repo.tree_of(old), edits)
        identity = read_settings(repo.git_dir).identity
        data = format_commit(bytes.fromhex(tree), [], identity, int(time.time()), "Resolutions\n")
        oid = writer.add(b"commit", data)
        writer.finish()
    return CommitId(oid.hex())


def _resolvable(merged: Merged) -> list[Conflict]:
    """Conflicts about a file; the others are about a name alone."""
    return [conflict for conflict in merged.conflicts if conflict.stages]


def _place(conflict: Conflict) -> bytes:
    """Where the resolution of a conflict lies."""
    stages = sorted(conflict.stages, key=lambda stage: stage.number)
    versions = (b"%d %b %b" % (stage.number, stage.mode, stage.oid.encode()) for stage in stages)
    key = hashlib.sha256(b"\0".join((conflict.path, *versions))).hexdigest().encode()
    return key[:2] + b"/" + key[2:]
