"""The JSON shapes of workspaces and snapshots. Times: seconds since the epoch; sizes: bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from overlayrun.carriers import Carrier
from overlayrun.incoming import Incoming
from overlayrun.overview import Overview
from overlayrun.snapshot import LeftOut
from overlayrun.store.repo import DiffStat, SnapshotInfo
from overlayrun.workspace.record import Run


def workspace_shape(item: Overview) -> dict[str, Any]:
    """One workspace."""
    record = item.record
    return {
        "branch": record.branch,
        "id": record.id,
        "repository": record.root,
        "state": item.state.value,
        "base": record.base,
        "dirty": record.dirty,
        "target": record.target,
        "created": record.created,
        "prompt": record.prompt,
        "last_run": run_shape(record.last_run) if record.last_run else None,
        "snapshots": item.snapshots,
        "change": change_shape(item.change),
        "ahead": item.ahead,
        "landed": item.landed,
        "bytes": item.size,
        "fault": item.fault,
    }


def run_shape(run: Run) -> dict[str, Any]:
    """One run; status and ended are null while it is open."""
    return {
        "number": run.number,
        "command": run.command,
        "status": run.status,
        "started": run.started,
        "ended": run.ended,
    }


def change_shape(change: DiffStat) -> dict[str, int]:
    """Size of a change."""
    return {"files": change.files, "insertions": change.insertions, "deletions": change.deletions}


def carrier_shapes(carriers: Iterable[Carrier]) -> list[dict[str, str]]:
    """Files that run code, and why."""
    return [{"path": os.fsdecode(carrier.path), "why": carrier.why} for carrier in carriers]


def incoming_shape(found: Incoming) -> dict[str, Any]:
    """What there is to tell of a change. bare: directories; unsafe: sentences."""
    return {
        "carriers": carrier_shapes(found.carriers),
        "bare": [os.fsdecode(path) for path in found.bare],
        "unsafe": list(found.unsafe),
    }


def snapshot_shape(snapshot: SnapshotInfo, back: int) -> dict[str, Any]:
    """One snapshot. back: the n of @{n}."""
    return {
        "back": back,
        "number": snapshot.number,
        "commit": snapshot.commit,
        "tip": snapshot.tip,
        "tree": snapshot.tree,
        "time": snapshot.time,
        "reason": snapshot.reason,
        "subject": snapshot.subject,
    }


def left_out_shape(item: LeftOut) -> dict[str, str]:
    """One path that a snapshot does not hold."""
    return {"path": os.fsdecode(item.path), "reason": item.reason.value}
