"""`status`: what runs now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.account import Session
from overlayrun.cli.here import inside_of
from overlayrun.cli.inside_client import inside_lean
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import ago, count_text, say, say_json, size_text, span_text
from overlayrun.cli.sessions import say_with_sessions
from overlayrun.cli.shapes import change_shape, run_shape, session_shape
from overlayrun.cli.words import json_option
from overlayrun.control import ask
from overlayrun.errors import WorkspaceError
from overlayrun.folders.place import status_of
from overlayrun.overview import State, state_of, turn_of
from overlayrun.process import Usage, usages
from overlayrun.report import printable
from overlayrun.revision import newest, start
from overlayrun.store.git import git
from overlayrun.store.repo import DiffStat, SnapshotInfo
from overlayrun.wording import command_text
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.record import Record

_HEADS = ("BRANCH", "RUNS", "PROCESSES", "MEMORY", "CPU", "LAST SNAPSHOT", "FILES", "LINES", "COMMAND")


@dataclass(frozen=True, slots=True)
class _Running:
    """A running workspace. usage: None where the run did not answer. snapshot: the last; change: in it."""

    record: Record
    usage: Usage | None
    snapshot: SnapshotInfo | None
    change: DiffStat


@click.command("status", short_help="Show what runs now, and how your own tree stands.")
@json_option
def status_command(*, as_json: bool) -> None:
    """Show the branches in which a command runs now, what each uses, and how your own tree stands.

    Inside a workspace: what it is, and what it changed by its last snapshot.
    """
    if inside_of() is not None:
        raise SystemExit(inside_lean(["status", *["--json"] * as_json]) or 0)
    opened = open_here()
    running = list(_running(opened))
    if as_json:
        told = {"tree": _tree_shape(opened), "running": [_shape(item) for item in running]}
        say_json({**told, "folders": status_of(opened.layout)})
        return
    say(_tree_line(opened))
    folders = status_of(opened.layout)
    if folders is not None:
        say(_folders_line(folders))
    if not running:
        say("nothing runs")
        return
    say_with_sessions(_HEADS, [_row(item) for item in running], [_session(item) for item in running])


def _folders_line(told: dict[str, Any]) -> str:
    names = [f"{one['branch']}{' (live)' * one['live']}" for one in told["branches"]]
    used = f": {printable(', '.join(names))}" if names else ""
    return f"folders in {printable(told['place'])} (process {told['pid']}){used}"


def _running(opened: Opened) -> Iterator[_Running]:
    known = [record for record in records(opened.layout) if state_of(opened.layout, record) is State.RUNNING]
    keepers = {record.id: _keeper(opened, record) for record in known}
    used = usages([pid for pid in keepers.values() if pid])
    for record in known:
        last = newest(opened.repo, record)
        change = opened.repo.diff_stat(start(opened.repo, record).tree, last.tree)
        yield _Running(record, used.get(keepers[record.id]), last.snapshot, change)


def _session(item: _Running) -> Session:
    return Session.from_json(item.record.session)


def _keeper(opened: Opened, record: Record) -> int:
    """Process id of the keeper; 0 where nobody answers, because the run begins or ends."""
    try:
        answer, _ = ask(opened.layout.workspace(record.id).sockets, "outside", {"op": "running"}, wait=0.3)
    except WorkspaceError:
        return 0
    return int(answer.get("keeper", 0))


def _row(item: _Running) -> list[str]:
    run, usage = item.record.last_run, item.usage
    return [
        f"{item.record.branch} (throwaway)" if item.record.throwaway else item.record.branch,
        span_text(time.time() - run.started) if run else "-",
        str(usage.processes) if usage else "-",
        size_text(usage.memory) if usage else "-",
        f"{usage.load:.0%}" if usage else "-",
        ago(item.snapshot.time) if item.snapshot else "none",
        str(item.change.files),
        f"+{item.change.insertions} -{item.change.deletions}",
        command_text(run.command) if run else "",
    ]


def _shape(item: _Running) -> dict[str, Any]:
    usage = item.usage
    return {
        "branch": item.record.branch,
        "id": item.record.id,
        "throwaway": item.record.throwaway,
        **session_shape(_session(item), turn_of(item.record)),
        "run": run_shape(item.record.last_run) if item.record.last_run else None,
        "processes": usage.processes if usage else None,
        "memory": usage.memory if usage else None,
        "cpu_seconds": round(usage.cpu, 3) if usage else None,
        "cpu_load": round(usage.load, 3) if usage else None,
        "last_snapshot": item.snapshot.time if item.snapshot else None,
        "change": change_shape(item.change),
    }


def _uncommitted(opened: Opened) -> int:
    listed = git(["status", "--porcelain", "-z", "--no-renames"], cwd=opened.repository.root)
    return listed.count(b"\0")


def _tree_shape(opened: Opened) -> dict[str, Any]:
    repository = opened.repository
    return {
        "root": repository.root,
        "branch": repository.branch,
        "head": repository.head,
        "uncommitted": _uncommitted(opened),
    }


def _tree_line(opened: Opened) -> str:
    repository = opened.repository
    head = repository.head[:10] if repository.head else "no commit yet"
    where = f"{repository.branch or 'detached HEAD'} ({head})"
    root = printable(os.path.basename(repository.root))
    return f"your tree {root}: {printable(where)}, {count_text(_uncommitted(opened), 'uncommitted change')}"
