"""`fork`: new branches from the present state of another."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.here import Here, find_here, inside_of
from overlayrun.cli.inside_client import fork_lines, fork_shape, inside_lean
from overlayrun.cli.render import say, say_json
from overlayrun.cli.snapshot_client import ask_running
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.errors import UsageError, WorkspaceBusy, WorkspaceError
from overlayrun.fork import Forked, Wanted, flush_forks, fork_answer, make_forks
from overlayrun.model import SnapshotReason
from overlayrun.recover import recover_all
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.flushed import refuse_torn
from overlayrun.workspace.lock import lock
from overlayrun.workspace.record import UNFILLED, Record

_PATIENCE: Final = 20.0  # seconds to wait for another fork, or for a run that only begins or ends
_PAUSE: Final = 0.02


@click.command("fork", short_help="Make new branches from the present state of another.")
@branch_argument(required=False)
@click.option("-b", "--branch", metavar="NAME", help="Name of the new branch; of several: NAME-1, NAME-2, …")
@click.option("-n", "--count", type=click.IntRange(1), default=1, metavar="N", help="How many (default: 1).")
@json_option
def fork_command(*, text: str, branch: str | None, count: int, as_json: bool) -> None:
    """Make new branches from the present state of another, running or not. Inside a workspace: of this one.

    All that is there comes along: what is uncommitted or ignored, the index, changes in HOME. The new
    branches have the same target; nothing runs in them until you start something: overlayrun -b NAME --
    COMMAND. Back into the branch that they came from: overlayrun merge NAME --into BRANCH
    """
    inside = inside_of()
    if inside is not None:
        if text not in ("", inside):
            raise UsageError(f"from here only branch {inside} can be forked", hint="overlayrun fork -b NAME")
        words = [] if branch is None else [f"--branch={branch}"]
        raise SystemExit(inside_lean(["fork", *words, f"--count={count}", *["--json"] * as_json]) or 0)
    here = find_here()
    recover_all(here.repository, here.layout, tell)
    wanted = Wanted(branch, count)
    wanted.tell = tell
    told = _fork(here, _meant(here, text), wanted)
    if as_json:
        say_json(fork_shape(told))
        return
    for line in fork_lines(told):
        say(line)


def _meant(here: Here, text: str) -> Record:
    if text:
        return find(here.layout, text)
    from overlayrun.revision import pick  # with pygit2, 45 ms

    return pick(here.layout)


def _fork(here: Here, source: Record, wanted: Wanted) -> dict[str, Any]:
    """Of an idle branch with its lock held; a run takes a snapshot itself first, and may go on writing."""
    made, taken = _make(here, source, wanted)
    if made[0].record.inode == UNFILLED:
        recover_all(here.repository, here.layout, tell)  # they get their files now
    flush_forks(here.layout, made)
    return fork_answer(made, taken)


def _make(here: Here, source: Record, wanted: Wanted) -> tuple[list[Forked], dict[str, Any] | None]:
    path = here.layout.workspace(source.id).lock
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            held = lock(path)
        except WorkspaceBusy:
            taken = _ask(here, source, is_last=time.monotonic() > until)
            if taken is not None:
                return make_forks(here.layout, _loaded(here, source), wanted), taken
            time.sleep(_PAUSE)
            continue
        try:
            record = _loaded(here, source)
            refuse_torn(here.layout.workspace(record.id), record)
            wanted.is_quiet = not record.is_open
            taken = _take(here, record) if record.is_open else None
            return make_forks(here.layout, record, wanted), taken
        finally:
            os.close(held)


def _ask(here: Here, source: Record, *, is_last: bool) -> dict[str, Any] | None:
    """A snapshot by the run; None where somebody else has the lock, for a moment."""
    try:
        return ask_running(here.layout, source, None, wait=0)
    except WorkspaceError:
        if is_last:
            raise
        return None


def _take(here: Here, record: Record) -> dict[str, Any]:
    """A snapshot of a branch that is shown as a folder, and may be written to."""
    from overlayrun.capture import answer_of, capture  # with pygit2, 80 ms
    from overlayrun.idle import idle_sandbox

    with idle_sandbox(here.repository, here.layout, record) as live:
        return answer_of(capture(here.layout, record, SnapshotReason.REQUEST, None, live))


def _loaded(here: Here, source: Record) -> Record:
    """The record as it is now."""
    record = Record.load(here.layout.workspace(source.id).record)
    if record.common_dir != here.repository.common_dir:  # the repository was moved
        record.root, record.common_dir = here.repository.root, here.repository.common_dir
    return record
