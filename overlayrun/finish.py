"""The end of a run that changed something: the last snapshot, what became of a throwaway, the summary."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from overlayrun.capture import capture, job_of
from overlayrun.live import LiveSandbox
from overlayrun.model import RunOptions, SnapshotReason
from overlayrun.prepare import claim
from overlayrun.removal import drop
from overlayrun.report import next_commands, summary, throwaway_summary
from overlayrun.snapshot import Snapshot, preview
from overlayrun.store.location import Repository
from overlayrun.store.repo import DiffStat, Repo
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


@dataclass(frozen=True, slots=True)
class Ending:
    """The last snapshot of a run, and its size against what the workspace started with."""

    taken: Snapshot
    stat: DiffStat


def finish(
    repository: Repository,
    layout: Layout,
    record: Record,
    options: RunOptions,
    live: LiveSandbox,
    tell: Callable[[str], None],
) -> Ending | None:
    """Take the last snapshot of a dead tree and say what is in it; a throwaway's workspace is removed.

    Gives what was taken, None for a throwaway that leaves nothing.

    Raises OverlayrunError where the snapshot can't be taken: the workspace is kept as it is.
    """
    if record.throwaway and not (options.keep or options.apply):
        _forget(layout, record, tell)
        return None
    if record.throwaway:
        record.throwaway = False
        claim(repository, layout, record, record.last_run.command if record.last_run else ["run"], None)
        record.save(layout.workspace(record.id).record)
        os.unlink(layout.workspace(record.id).throwaway)
    taken = capture(layout, record, SnapshotReason.EXIT, options.message or record.prompt, live)
    stat = Repo(record.common_dir).diff_stat(taken.start_tree, taken.tree)
    if record.is_whole and taken.is_empty:
        return Ending(taken, stat)
    for line in summary(taken, stat):
        tell(line)
    if not options.apply:
        tell(next_commands(record))
    else:
        from overlayrun.bring import apply  # one run in many

        applied = apply(repository, layout, record, tell=tell)
        tell(applied.said)
        if applied.is_whole:
            drop(layout, record, branch=True)
        else:
            tell(next_commands(record))
    return Ending(taken, stat)


def _forget(layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    found = preview(job_of(layout, record, None))
    for line in ["nothing changed"] if found.is_empty else throwaway_summary(found):
        tell(line)
    drop(layout, record, branch=False)
