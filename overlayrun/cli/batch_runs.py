"""`batch --list`: the runs of a repository."""

from __future__ import annotations

import json
import os
from typing import Any

from overlayrun.batch.journal import runs
from overlayrun.batch.layout import BatchLayout
from overlayrun.cli.render import ago, say_json, say_table, span_text
from overlayrun.cli.telling import tell
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.lock import is_locked


def say_runs(layout: Layout, *, as_json: bool) -> int:
    """A row a run, newest first."""
    rows = [_shape(BatchLayout(layout, name)) for name in reversed(runs(layout))]
    if as_json:
        say_json({"runs": rows})
    elif rows:
        say_table(("RUN", "STATE", "BEGAN", "TOOK", "TASKS", "REPORT"), [_cells(row) for row in rows])
    else:
        tell("no batch was run here; see: overlayrun batch --help")
    return 0


def _shape(place: BatchLayout) -> dict[str, Any]:
    """What is known of a run; `state` is running, stopped, or the exit code it ended with."""
    page = f"{place.reports}/report.html"
    try:
        with open(f"{place.reports}/summary.json", encoding="utf-8") as file:
            summary = json.load(file)
    except (OSError, ValueError):
        summary = {}
    state = "running" if is_locked(place.lock) else "ended" if summary else "stopped"
    return {
        "run": place.run,
        "state": state,
        "began": os.stat(place.plan).st_mtime,
        "status": summary.get("status"),
        "seconds": summary.get("seconds"),
        "tasks": summary.get("counts", {}),
        "report": page if os.path.exists(page) else None,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = f"exit {row['status']}" if row["status"] is not None and row["state"] == "ended" else row["state"]
    tasks = ", ".join(f"{number} {name}" for name, number in row["tasks"].items() if number)
    took = span_text(row["seconds"]) if row["seconds"] is not None else ""
    return row["run"], state, ago(row["began"]), took, tasks, row["report"] or ""
