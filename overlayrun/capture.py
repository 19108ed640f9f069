"""From a workspace's record to a snapshot of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from overlayrun.account import Account, Session
from overlayrun.collector import Limits
from overlayrun.folders.gitdir import run_on_host
from overlayrun.live import LiveSandbox
from overlayrun.model import SnapshotReason
from overlayrun.sandbox.seeds import unkept
from overlayrun.snapshot import Snapshot, SnapshotJob, take_snapshot
from overlayrun.wording import command_text
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


def capture(
    layout: Layout,
    record: Record,
    reason: SnapshotReason,
    message: str | Account | None,
    live: LiveSandbox | None,
    *,
    force_large: bool = False,
) -> Snapshot:
    """Take a snapshot of a workspace whose lock the caller holds.

    message: words for it, or the agent's account of the step. live: its sandbox, where the agent's own
    commits are packed; without one they wait for the next snapshot. force_large: however much it is.
    """
    job = replace(job_of(layout, record, live), limits=Limits(force_large=force_large))
    return take_snapshot(job, reason=reason, message=message)


def job_of(layout: Layout, record: Record, live: LiveSandbox | None) -> SnapshotJob:
    """What the snapshot engine needs to know."""
    place = layout.workspace(record.id)
    run = record.last_run
    run_inside = live.run_inside if live else None
    in_folder = run is not None and run.folder and record.is_open
    return SnapshotJob(
        git_dir=record.common_dir,
        workspace_id=record.id,
        branch=record.branch,
        base=record.base,
        dirty=record.dirty,
        upper=place.upper,
        index=f"{place.whole}/index" if record.is_whole else None,
        agent_git=place.folder if in_folder else place.git_upper,
        hashes=place.hashes,
        command=command_text(run.command) if run else "",
        carried=tuple(os.fsencode(path) for path in (*record.carried, *_unkept(layout, record))),
        exit_status=run.status if run else None,
        run_inside=run_on_host(place.folder, run_inside) if in_folder else run_inside,
        session=Session.from_json(record.session),
        task=record.prompt,
    )


def _unkept(layout: Layout, record: Record) -> list[str]:
    trees = [f"{layout.root}/{layer}/tree" for layer in record.stack]
    return unkept(record.profile, [layout.workspace(record.id).dirty, *trees])


def answer_of(taken: Snapshot) -> dict[str, Any]:
    """A snapshot as the control socket and `--json` tell of it: plain values."""
    return {
        "commit": taken.commit,
        "tip": taken.tip,
        "number": taken.number,
        "unchanged": taken.unchanged,
        "left_out": [[os.fsdecode(item.path), item.reason.value] for item in taken.left_out],
        "notes": list(taken.notes),
    }
