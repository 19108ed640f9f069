"""`fork`: a new branch from the present state of another."""

from __future__ import annotations

from typing import Any

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.capture import answer_of, capture
from overlayrun.cli.configured import configured
from overlayrun.cli.here import inside_of
from overlayrun.cli.inside_client import fork_lines, fork_shape, inside_lean
from overlayrun.cli.opened import Opened, locked, open_here
from overlayrun.cli.options import run_options
from overlayrun.cli.render import say, say_json
from overlayrun.cli.snapshot_client import ask_running
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument, json_option
from overlayrun.errors import UsageError
from overlayrun.fork import fork_answer, make_fork
from overlayrun.idle import idle_sandbox
from overlayrun.model import SnapshotReason
from overlayrun.overview import State, state_of
from overlayrun.recover import recover_all
from overlayrun.revision import parse_revision
from overlayrun.workspace.record import Record


@click.command("fork", short_help="Make a new branch from the present state of another.")
@branch_argument(required=False)
@click.option("-b", "--branch", metavar="NAME", help="Name of the new branch.")
@json_option
def fork_command(*, text: str, branch: str | None, as_json: bool) -> None:
    """Make a new branch from the present state of another, running or not. Inside a workspace: of this one.

    What is uncommitted there comes along, ignored files as your tree has them now. The new branch has the
    same target; nothing runs in it until you start something: overlayrun -b NAME -- COMMAND
    """
    inside = inside_of()
    if inside is not None:
        if text not in ("", inside):
            raise UsageError(f"from here only branch {inside} can be forked", hint="overlayrun fork -b NAME")
        words = [*([] if branch is None else [f"--branch={branch}"]), *["--json"] * as_json]
        raise SystemExit(inside_lean(["fork", *words]) or 0)
    opened = open_here()
    told = _fork(opened, parse_revision(opened.layout, opened.repo, text).record, branch)
    if as_json:
        say_json(fork_shape(told))
        return
    for line in fork_lines(told):
        say(line)


def _fork(opened: Opened, source: Record, name: str | None) -> dict[str, Any]:
    repository, layout = opened.repository, opened.layout
    told = _take(opened, source)
    options = run_options(configured(repository.root, repository.common_dir))
    answer = fork_answer(make_fork(repository, layout, source, options, name), None) | told
    recover_all(repository, layout, tell)  # it gets its files now: who types this waits for no command
    return answer


def _take(opened: Opened, source: Record) -> dict[str, Any]:
    """Let the last snapshot of a branch be its present state; what it left out, and notes."""
    if state_of(opened.layout, source) is State.RUNNING:
        taken = ask_running(opened.layout, source, None)
        return {"left_out": taken["left_out"], "notes": taken["notes"]}
    if source.last_run is None:  # a fork itself, or nothing yet
        return {}
    hint = f"try again: overlayrun fork {source.branch}"
    with (
        locked(opened, source.branch, hint) as held,
        idle_sandbox(opened.repository, opened.layout, held) as live,
    ):
        found = capture(opened.layout, held, SnapshotReason.REQUEST, None, live)
    told = answer_of(found)
    return {"left_out": told["left_out"], "notes": told["notes"]}
