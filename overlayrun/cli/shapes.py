"""The JSON shapes of workspaces and snapshots. Times: seconds since the epoch; sizes: bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from overlayrun.account import Session
from overlayrun.carriers import Carrier
from overlayrun.incoming import Incoming
from overlayrun.overview import Overview, Turn
from overlayrun.store.repo import DiffStat, Repo, SnapshotInfo
from overlayrun.story import Step
from overlayrun.workspace.record import Run

if TYPE_CHECKING:
    from overlayrun.snapshot import LeftOut


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
        "parent": item.parent,
        "parent_id": record.parent,
        "created": record.created,
        "prompt": record.prompt,
        **session_shape(item.session, item.turn),
        "last_run": run_shape(record.last_run) if record.last_run else None,
        "snapshots": item.snapshots,
        "change": change_shape(item.change),
        "ahead": item.ahead,
        "landed": item.landed,
        "bytes": item.size,
        "fault": item.fault,
    }


def session_shape(session: Session, turn: Turn | None) -> dict[str, str | None]:
    """What an agent told of itself; null for what it did not. turn: working or waiting, while it runs."""
    return {
        "agent": session.agent or None,
        "session_id": session.id or None,
        "session_title": session.title or None,
        "turn": turn.value if turn else None,
        "last_message": session.said or None,
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


def step_shape(step: Step, repo: Repo) -> dict[str, Any]:
    """One snapshot as a step of its story. change: against the one before; null for what nobody told."""
    return {
        **snapshot_shape(step.snapshot, step.back),
        "agent": step.agent or None,
        "session_id": step.session or None,
        "model": step.model or None,
        "tool": step.tool or None,
        "prompt": step.prompt or None,
        "message": step.message,
        "change": change_shape(step.change(repo)),
    }


def left_out_shape(item: LeftOut) -> dict[str, str]:
    """One path that a snapshot does not hold."""
    return {"path": os.fsdecode(item.path), "reason": item.reason.value}
