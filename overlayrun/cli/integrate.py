"""`integrate`: hooks and plugins in the user's files, for once and to be undone; and the help of `hook`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.agents.claude import settings_json
from overlayrun.agents.integration import (
    Action,
    Change,
    Plan,
    carry_out,
    note_path,
    plan_integration,
    plan_removal,
)
from overlayrun.agents.recipes import AGENTS
from overlayrun.cli.here import inside_of
from overlayrun.cli.render import say, say_json
from overlayrun.cli.words import json_option
from overlayrun.errors import UsageError
from overlayrun.report import printable

_NOTES: Final = {
    Action.UNCHANGED: "nothing to do",
    Action.KEPT: "what integrate put in was changed since; it stays, take it out by hand",
}


@click.command("integrate", short_help="Let OpenCode, Claude Code or Codex use overlayrun by itself.")
@click.argument("agent", type=click.Choice(list(AGENTS)))
@click.option("--remove", is_flag=True, help="Take out what it put in, and nothing else.")
@click.option("--dry-run", is_flag=True, help="Show what it would write, and write nothing.")
@click.option(
    "--print", "printed", is_flag=True, help="Claude Code: print the hooks for `claude --settings` instead."
)
@json_option
def integrate_command(*, agent: str, remove: bool, dry_run: bool, printed: bool, as_json: bool) -> None:
    """Put the hooks and plugins of an agent into your own configuration, for all repositories.

    Shows each file and the lines that come and go. A second time it changes nothing.
    """
    if printed:
        _print_settings(agent)
        return
    if inside_of() is not None:
        raise UsageError("this is a workspace: your configuration is out of reach", hint="type it outside")
    plan = plan_removal(AGENTS[agent]) if remove else plan_integration(AGENTS[agent])
    if not as_json:
        _say_plan(plan, remove=remove)
    if not dry_run:
        carry_out(plan)
    advice = [] if remove else AGENTS[agent].advice()
    if as_json:
        say_json(_shape(plan, advice, dry_run=dry_run))
    else:
        _say_end(plan, advice, dry_run=dry_run)


def _print_settings(agent: str) -> None:
    if agent != "claude":
        raise UsageError("only Claude Code takes its hooks on the command line", hint="without --print")
    say(settings_json())


def _say_plan(plan: Plan, *, remove: bool) -> None:
    for change in plan.changes:
        say(f"{change.action.value} {printable(change.path)}")
        note = _NOTES.get(change.action)
        for line in [note] if note else _difference(change):
            say(f"  {printable(line)}")
    if remove and not plan.changes:
        say(f"nothing to undo: {printable(note_path())} notes nothing of {plan.agent}")


def _difference(change: Change) -> Iterator[str]:
    """Lines that go and come, without the ones around: those are nobody's business."""
    before, after = (_lines(text) for text in (change.before, change.after))
    for line in list(difflib.unified_diff(before, after, n=0))[2:]:
        yield line.rstrip("\n")


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines()


def _say_end(plan: Plan, advice: Sequence[str], *, dry_run: bool) -> None:
    written = sum(change.before != change.after for change in plan.changes)
    if dry_run:
        say("nothing is written: --dry-run")
    elif written:
        say(f"done: {written} of {len(plan.changes)} files written")
    if plan.noted and not dry_run:
        say(f"undo: overlayrun integrate {plan.agent} --remove (noted in {printable(note_path())})")
    for line in advice:
        say(printable(line))


def _shape(plan: Plan, advice: Sequence[str], *, dry_run: bool) -> dict[str, Any]:
    return {
        "agent": plan.agent,
        "dry_run": dry_run,
        "note": note_path(),
        "files": [
            {
                "path": change.path,
                "action": change.action.value,
                "difference": list(_difference(change)),
                "changed": change.before != change.after,
            }
            for change in plan.changes
        ],
        "advice": list(advice),
    }


@click.command("hook", short_help="What agents call by the hooks of `integrate`.")
@click.argument("agent", type=click.Choice(["claude", "codex"]))
def hook_command(*, agent: str) -> None:
    """Read an event of Claude Code or Codex from standard input, as JSON, and hand it on to the run.

    Outside of a workspace it does nothing. `overlayrun integrate` sets it up.
    """
    raise UsageError(
        f"the event of {agent} comes from a pipe, and here is a terminal",
        hint=f"overlayrun integrate {agent}",
    )
