"""`merge` and `reconcile`: branches go to their target."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final, NoReturn

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.absorb import absorb
from overlayrun.carriers import Carrier
from overlayrun.cli.carrying import (
    carrier_lines,
    consent_options,
    consented,
    has_someone,
    is_wanted,
    notes_of,
)
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.render import SCHEMA, on_terminal, say, say_json
from overlayrun.cli.shapes import carrier_shapes, incoming_shape
from overlayrun.cli.targets import target_of
from overlayrun.cli.telling import tell
from overlayrun.cli.words import BRANCH, Decorated, json_option
from overlayrun.errors import UsageError
from overlayrun.incoming import MEANING
from overlayrun.model import BranchName
from overlayrun.overview import State, state_of
from overlayrun.reconcile.candidates import Candidate, Chain, Clash
from overlayrun.reconcile.door import Obstacle, Withheld
from overlayrun.reconcile.events import Event, EventKind
from overlayrun.reconcile.queue import Item, Queue, Standing
from overlayrun.reconcile.reconciler import Outcome, Reconciler
from overlayrun.reconcile.settings import KEYS, LandingMode, Settings, parse_value, read_settings
from overlayrun.report import printable
from overlayrun.store.refs import parse_branch_name
from overlayrun.workspace.catalogue import find, find_exact
from overlayrun.workspace.record import Record

# What the end tells again, or a line has told of before.
_SILENT: Final = (EventKind.TICK, EventKind.CHECKED, EventKind.CONFLICT)


def _option(key: str) -> Decorated:
    """A setting of the reconciler as an option."""
    known = KEYS[key]
    if known.metavar is None:
        return click.option(f"--{key}", is_flag=True, default=None, help=known.help)

    def convert(_: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        return None if text is None else parse_value(key, text, str(parameter.opts[0]))

    return click.option(f"--{key}", metavar=known.metavar, callback=convert, help=known.help)


_SHARED: Final = ("check", "check-each", "slots", "timeout", "resolve", "resolve-timeout")
_OPTIONS: Final[tuple[Decorated, ...]] = (
    click.option("--into", metavar="BRANCH", type=BRANCH, help="Into this branch instead of its target."),
    *map(_option, _SHARED),
    click.option("--squash", "mode", flag_value="squash", help="One commit a branch, without its history."),
    click.option("--rebase", "mode", flag_value="rebase", help="The branch's commits again, on the target."),
)


def landing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `merge` and `reconcile` share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(opened: Opened, given: dict[str, Any]) -> Settings:
    """Settings in force; given: options, of which those that were typed win."""
    given = {**consented(given), "mode": LandingMode(given["mode"]) if given.get("mode") else None}
    return read_settings(opened.repository.root).merged(given)


@click.command("merge", short_help="Merge branches into their target.")
@click.argument("branches", nargs=-1, required=True, type=BRANCH, metavar="BRANCH...")
@landing_options
@consent_options
@click.option("--dry-run", is_flag=True, help="Tell what would happen, and change nothing.")
@json_option
def merge_command(
    *, branches: tuple[str, ...], into: str | None, dry_run: bool, as_json: bool, **given: Any
) -> int:
    """Merge branches into their target: the branch that was checked out when they began.

    Fast-forward, else a merge commit. What conflicts, or fails the check, changes nothing; the exit code is
    then 1. Where a file of yours is in the way, what has landed waits until it is not.

    Before files that run code on your machine when opened or built come to you, you are asked; without a
    terminal such a branch is left out, and the exit code is 3.

    Into a branch that has a workspace, such as the one that a fork came from, the files come there, whether
    it runs or not, and nothing is checked.
    """
    opened = open_here()
    settings = settings_of(opened, given)
    status = 0
    shapes = []
    for target, wanted in _by_target([_find(opened, text) for text in branches], into).items():
        parent = find_exact(opened.layout, target)
        if parent is not None:
            _refuse_check(target, given)
            shapes.append(_absorbed(opened, parent, wanted, dry_run=dry_run, as_json=as_json))
            status = max(status, shapes[-1]["status"])
            continue
        report = Report(settings, as_json=as_json)
        ask = _ask if has_someone(as_json=as_json) else None
        with Reconciler(opened.repository, opened.layout, target, settings, report.show, ask) as worker:
            if dry_run:
                shape = report.foreseen(worker.foresee(wanted), target)
            else:
                shape = report.ended(opened, wanted, worker.merge(wanted), target)
        shapes.append(shape)
        status = max(status, shape["status"])
    if as_json:
        say_json({"targets": shapes})
    return status


def _absorbed(
    opened: Opened, parent: Record, wanted: Sequence[Record], *, dry_run: bool, as_json: bool
) -> dict[str, Any]:
    """Merge branches into a workspace, one after another."""
    shape = _shape(parent.branch)
    for record in wanted:
        done = absorb(opened.repository, opened.layout, parent, record, dry_run=dry_run)
        if not as_json:
            say(done.said)
            for each in done.conflicts:
                say(f"conflict: {printable(os.fsdecode(each.path))} ({each.kind})")
        paths = [{"path": os.fsdecode(each.path), "kind": each.kind} for each in done.conflicts]
        if paths:
            shape["conflicts"].append({"branch": record.branch, "paths": paths})
            shape["status"] = 1
        elif done.files:
            commit = done.snapshot["tip"] if done.snapshot else None
            nothing: dict[str, Any] = {"carriers": [], "bare": [], "unsafe": []}
            landed = {"branch": record.branch, "commit": commit, "files": done.files, **nothing}
            shape["landed"].append(landed)
    return shape


def _refuse_check(target: BranchName, given: dict[str, Any]) -> None:
    if given.get("check") is not None:
        raise UsageError(
            f"{target} is a branch with a workspace: what comes into it is not checked",
            hint="leave --check out; it is for the way from there to its own target",
        )


def _shape(target: BranchName) -> dict[str, Any]:
    """Of a merge that came to nothing."""
    lists: dict[str, Any] = {name: [] for name in ("landed", "conflicts", "failed", "withheld")}
    return {"target": target, **lists, "waiting": 0, "status": 0}


def _ask(item: Item, carriers: Sequence[Carrier]) -> bool:
    return is_wanted(item.branch, "merge", carriers)


@click.command("reconcile", short_help="Merge every branch that is ready.")
@landing_options
@consent_options
@click.option("--only", multiple=True, metavar=KEYS["only"].metavar, help=KEYS["only"].help)
@click.option("--watch", is_flag=True, help="Go on, and take branches as they become ready.")
@json_option
def reconcile_command(*, into: str | None, watch: bool, as_json: bool, **given: Any) -> int:
    """Merge every branch that is ready into its target, oldest first.

    Ready is what does not run, and was not given back or parked as it stands. With a check, only what has
    passed it lands. Exit code 1 if a branch is given back, parked or conflicts, or if a file of yours is in
    the way.
    """
    opened = open_here()
    settings = settings_of(opened, given)
    target = target_of(opened, into)
    if watch:
        _watch(opened, target, settings, as_json=as_json)
    report = Report(settings, as_json=as_json)
    with Reconciler(opened.repository, opened.layout, target, settings, report.show) as worker:
        shape = report.ended(opened, [], worker.reconcile(), target)
    if as_json:
        say_json({"targets": [shape]})
    return int(shape["status"])


def _watch(opened: Opened, target: BranchName, settings: Settings, *, as_json: bool) -> NoReturn:
    """Until somebody ends it: a live table on a terminal, else a line for each event."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        show = Report(settings, as_json=False).show
        if as_json:
            show = _say_event
        elif on_terminal():
            from overlayrun.cli.live import LiveTable  # rich: 60 ms, and only a terminal needs it

            show = stack.enter_context(LiveTable(opened, target, settings)).show
        worker = stack.enter_context(Reconciler(opened.repository, opened.layout, target, settings, show))
        try:
            worker.watch()
        except KeyboardInterrupt:
            raise click.exceptions.Exit(0) from None


def _say_event(event: Event) -> None:
    """An event as a line of JSON."""
    if event.kind is not EventKind.TICK:
        say(json.dumps({"schema": SCHEMA, "event": event.kind.value, "branch": event.branch, **event.data}))


def _by_target(wanted: Iterable[Record], into: str | None) -> dict[BranchName, list[Record]]:
    found: dict[BranchName, list[Record]] = {}
    for record in wanted:
        target = parse_branch_name(into) if into else record.target
        if target is None:
            raise UsageError(
                f"branch {record.branch} has no target: it began on a detached HEAD",
                hint="name one: --into BRANCH",
            )
        found.setdefault(target, []).append(record)
    return found


def _find(opened: Opened, text: str) -> Record:
    record = find(opened.layout, text)
    if state_of(opened.layout, record) is State.RUNNING:
        tell(f"branch {record.branch} is running: what its newest snapshot holds is taken")
    return record


class Report:
    """Tells what happens, a line each; with --json nothing until the end."""

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        self._settings = settings
        self._as_json = as_json

    def show(self, event: Event) -> None:
        """One event."""
        if self._as_json or event.kind in _SILENT:
            return
        if event.kind in (EventKind.CHECKING, EventKind.RESOLVING):
            tell(event.text)
        else:
            say(printable(event.text))

    def _say(self, line: str) -> None:
        if not self._as_json:
            say(line)

    def foreseen(self, chain: Chain, target: BranchName) -> dict[str, Any]:
        """What a dry run found."""
        for one in chain.candidates:
            files = f"{one.files} file{'s' * (one.files != 1)}"
            self._say(f"{one.item.branch} would land on {target} ({files})")
            for line in notes_of(one.incoming):
                self._say(line)
        self._clashes(chain.clashes, target)
        return {
            "target": target,
            "landed": [_candidate_shape(one) for one in chain.candidates],
            "conflicts": [_clash_shape(clash) for clash in chain.clashes],
            "failed": [],
            "withheld": [],
            "waiting": 0,
            "status": int(bool(chain.clashes)),
        }

    def ended(
        self, opened: Opened, wanted: list[Record], outcome: Outcome, target: BranchName
    ) -> dict[str, Any]:
        """What a merge came to. wanted: branches that were asked for by name."""
        landed = {one.item.record.id for one in outcome.landed}
        queue = Queue(opened.layout, opened.repo, target, self._settings)
        for record in wanted:
            if record.id not in landed:
                self._already(queue.item(record), target)
        self._clashes(outcome.clashes, target)
        for each in outcome.withheld:
            self._withheld(each)
        if not wanted and not self._as_json:
            self._left_behind(outcome, queue, target)
        return {
            "target": target,
            "commit": queue.tip,
            "landed": [_candidate_shape(one) for one in outcome.landed],
            "conflicts": [_clash_shape(clash) for clash in outcome.clashes],
            "failed": [
                {"branch": item.branch, "why": note.why, "log": note.log} for item, note in outcome.failed
            ],
            "withheld": [_withheld_shape(each) for each in outcome.withheld],
            "waiting": outcome.delivery.waiting if outcome.delivery else 0,
            "held": [held.why for held in outcome.delivery.held] if outcome.delivery else [],
            "status": _status(outcome),
        }

    def _left_behind(self, outcome: Outcome, queue: Queue, target: BranchName) -> None:
        """What did not land, in a line."""
        left = [
            f"{item.branch} ({item.standing.value})" for item in queue.items() if not item.standing.is_home
        ]
        if left:
            tell(f"not on {target} yet: {', '.join(left)}; see: overlayrun queue")
        elif not outcome.landed:
            tell(f"nothing waits for {target}")

    def _already(self, item: Item, target: BranchName) -> None:
        if item.standing is Standing.UNCHANGED:
            self._say(f"branch {item.branch} changed nothing")
        elif item.standing is Standing.LANDED:
            self._say(f"branch {item.branch} is in {target} already")
        elif item.is_empty:
            self._say(f"branch {item.branch} has no snapshot yet")

    def _withheld(self, each: Withheld) -> None:
        branch = each.item.branch
        told = f"branch {branch} is not merged"
        if each.obstacle is Obstacle.DECLINED:
            self._say(told)
        elif not self._as_json:
            tell(f"{told}: it brings {MEANING}" if each.carriers else f"{told}: {each.why}")
            for line in carrier_lines(each.carriers):
                tell(line)
            if each.carriers:
                tell(f"hint: overlayrun diff {branch}, then: overlayrun merge {branch} --yes-exec")

    def _clashes(self, clashes: Iterable[Clash], target: BranchName) -> None:
        for clash in clashes:
            self._say(f"branch {clash.item.branch} conflicts with {target}; nothing was changed")
            for each in clash.conflicts:
                self._say(f"conflict: {printable(os.fsdecode(each.path))} ({each.kind})")


def _candidate_shape(one: Candidate) -> dict[str, Any]:
    found = incoming_shape(one.incoming)
    return {"branch": one.item.branch, "commit": one.commit, "files": one.files, **found}


def _withheld_shape(each: Withheld) -> dict[str, Any]:
    return {
        "branch": each.item.branch,
        "obstacle": each.obstacle.value,
        "why": each.why,
        "carriers": carrier_shapes(each.carriers),
    }


def _status(outcome: Outcome) -> int:
    """Exit code: 3 where something was refused, 1 where something else did not land."""
    refused = any(each.obstacle is not Obstacle.DECLINED for each in outcome.withheld)
    return 3 if refused else int(not outcome.is_whole)


def _clash_shape(clash: Clash) -> dict[str, Any]:
    paths = [{"path": os.fsdecode(each.path), "kind": each.kind} for each in clash.conflicts]
    return {"branch": clash.item.branch, "paths": paths}
