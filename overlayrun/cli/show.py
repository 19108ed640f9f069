"""`show`: everything about one branch, or one snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.account import first_line
from overlayrun.cli.log import snapshot_line
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.patches import file_changes, file_shape, say_patch, say_stat
from overlayrun.cli.render import count_text, disk_text, moment_text, say, say_json, say_pairs, span_text
from overlayrun.cli.shapes import left_out_shape, snapshot_shape, step_shape, workspace_shape
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.errors import StoreError, WorkspaceBusy
from overlayrun.model import CommitId
from overlayrun.overview import Overview, State, overview
from overlayrun.report import printable
from overlayrun.revision import Revision, parse_revision, pick
from overlayrun.snapshot import LeftOut
from overlayrun.store.refs import branch_ref, snapshots_ref
from overlayrun.store.repo import SnapshotInfo
from overlayrun.story import story
from overlayrun.unsaved import left_out
from overlayrun.wording import command_text
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.lock import lock
from overlayrun.workspace.record import Record, Run

_SNAPSHOTS: Final = 5


@click.command("show", short_help="Show everything about one branch or snapshot.")
@branch_argument("[BRANCH | B@{N}]", required=False)
@json_option
def show_command(*, text: str, as_json: bool) -> None:
    """Show everything about one branch; with @{n}, one snapshot: its message, and what it changed."""
    opened = open_here()
    if "@" in text:
        _show_snapshot(opened, parse_revision(opened.layout, opened.repo, text), as_json=as_json)
        return
    record = find(opened.layout, text) if text else pick(opened.layout)
    item = overview(opened.layout, opened.repo, record)
    lost = _left_out(opened, item)
    if as_json:
        say_json(_shape(opened, item, lost))
        return
    say_pairs([*_facts(opened, item), *_snapshot_facts(opened, item), *_left_out_facts(lost)])


def _snapshots(opened: Opened, item: Overview) -> Iterator[SnapshotInfo]:
    """Newest first, as far as git's store still has them."""
    with suppress(StoreError):
        yield from opened.repo.snapshots(item.record.id)


def _snapshot_facts(opened: Opened, item: Overview) -> Iterator[tuple[str, str]]:
    for back, snapshot in enumerate(islice(_snapshots(opened, item), _SNAPSHOTS)):
        yield "" if back else "snapshots", snapshot_line(snapshot, back)
    if item.snapshots > _SNAPSHOTS:
        yield "", f"{item.snapshots - _SNAPSHOTS} more: overlayrun log {item.record.branch}"


def _left_out_facts(lost: tuple[LeftOut, ...]) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(lost):
        yield "" if number else "left out", f"{printable(os.fsdecode(item.path))}: {item.reason.value}"


def _left_out(opened: Opened, item: Overview) -> tuple[LeftOut, ...]:
    """What a snapshot can't hold, of an idle workspace: a running one may change under the reader."""
    if item.state is not State.IDLE:
        return ()
    try:
        held = lock(opened.layout.workspace(item.record.id).lock)
    except (WorkspaceBusy, OSError):  # nor can anybody hold it on a disk that takes no writes
        return ()
    try:
        return left_out(opened.layout, item.record)
    finally:
        os.close(held)


def _facts(opened: Opened, item: Overview) -> list[tuple[str, str]]:
    record, change = item.record, item.change
    facts = [
        ("branch", record.branch),
        ("state", item.state.value + (f": {item.fault}" if item.fault else "")),
        ("base", _base(opened, record)),
        ("target", record.target or "none: it began on a detached HEAD"),
        ("created", moment_text(record.created)),
        ("prompt", record.prompt or ""),
        ("session", _session_text(item)),
        ("asked", first_line(item.session.prompt)),
        ("said", item.session.last_message),
        ("last run", _run_text(record.last_run) if record.last_run else "none"),
        ("blocked", _blocked_text(record.last_run)),
        ("change", f"{count_text(change.files, 'file')}, +{change.insertions} -{change.deletions} lines"),
        ("standing", _standing(item)),
        ("took along", ", ".join(record.carried)),
        ("home", "private" if record.home == "private" else "copy-on-write view of yours"),
        ("agent state", "the branch's own" if record.has_own_agent_state else ""),
        ("disk", disk_text(item.alone)),
        ("workspace", item.place),
        ("refs", f"{branch_ref(record.branch)} {snapshots_ref(record.id)}"),
    ]
    return [(name, printable(value)) for name, value in facts if value]


def _session_text(item: Overview) -> str:
    session = item.session
    told = [session.agent, session.model, session.id, item.turn.value if item.turn else ""]
    facts = ", ".join(fact for fact in told if fact)
    return f"{session.title} ({facts})" if session.title and facts else session.title or facts


def _base(opened: Opened, record: Record) -> str:
    base = f"{record.base[:10]} {_subject(opened, record.base)}".rstrip() if record.base else "the empty tree"
    return f"{base}, with your uncommitted changes ({record.dirty[:10]})" if record.dirty else base


def _subject(opened: Opened, commit: CommitId) -> str:
    try:
        return opened.repo.commit(commit).subject
    except StoreError:
        return ""


def _run_text(run: Run) -> str:
    words = command_text(run.command)
    if run.ended is None:
        return f"{words} (since {moment_text(run.started)})"
    return f"{words} (status {run.status}, {span_text(run.ended - run.started)}, {moment_text(run.ended)})"


def _blocked_text(run: Run | None) -> str:
    rows = sorted(run.blocked.items(), key=lambda row: (-row[1], row[0])) if run else []
    return ", ".join(f"{what} ({times} times)" if times > 1 else what for what, times in rows)


def _standing(item: Overview) -> str:
    if item.ahead is None:
        return "no target to compare with"
    if item.landed:
        return f"landed in {item.record.target}"
    return f"{count_text(item.ahead, 'commit')} ahead of {item.record.target}"


def _shape(opened: Opened, item: Overview, lost: tuple[LeftOut, ...]) -> dict[str, Any]:
    record = item.record
    listed = [snapshot_shape(each, back) for back, each in enumerate(_snapshots(opened, item))]
    paths = {"workspace": item.place, "upper": opened.layout.workspace(record.id).upper}
    refs = [branch_ref(record.branch), snapshots_ref(record.id)]
    return {
        "workspace": workspace_shape(item),
        "snapshot_list": listed,
        "left_out": [left_out_shape(path) for path in lost],
        "carried": record.carried,
        "paths": paths,
        "refs": refs,
    }


def _show_snapshot(opened: Opened, revision: Revision, *, as_json: bool) -> None:
    """One step: its message, and the change against the snapshot before."""
    assert revision.snapshot is not None
    commit, record, repo = revision.snapshot.commit, revision.record, opened.repo
    step = next(each for each in story(repo, record) if each.snapshot.commit == commit)
    trees = (repo.git_dir, step.before, step.snapshot.tree)
    if as_json:
        files = [file_shape(file) for file in file_changes(*trees)]
        say_json({"branch": record.branch, "snapshot": {**step_shape(step, repo), "files": files}})
        return
    say(snapshot_line(step.snapshot, step.back))
    say()
    for line in step.message.rstrip("\n").split("\n"):
        say(f"    {printable(line)}".rstrip())
    say()
    say_stat(*trees)
    if step.before != step.snapshot.tree:
        say()
        say_patch(*trees)
