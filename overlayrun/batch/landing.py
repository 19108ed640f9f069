"""Land a batch: what succeeded goes to its target through the reconciler, as `overlayrun merge` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from overlayrun.batch.result import TaskReport
from overlayrun.errors import OverlayrunError
from overlayrun.model import BranchName
from overlayrun.overview import tip_of
from overlayrun.reconcile.candidates import Clash
from overlayrun.reconcile.door import Ask
from overlayrun.reconcile.events import Event
from overlayrun.reconcile.queue import Queue, Standing, listed
from overlayrun.reconcile.reconciler import Outcome, Reconciler
from overlayrun.reconcile.settings import Settings
from overlayrun.store.location import Repository
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import records
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record

LANDED: Final = "landed"
CONFLICT: Final = "conflict"
CHECK_FAILED: Final = "check failed"
WITHHELD: Final = "withheld"
NOTHING: Final = "nothing to land"
_GOOD: Final = (LANDED, NOTHING)


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of a task's branch: `TaskReport.landing` and its detail."""

    state: str
    detail: str | None = None


def land(
    repository: Repository,
    layout: Layout,
    reports: Sequence[TaskReport],
    settings: Settings,
    show: Callable[[Event], None],
    ask: Ask | None = None,
) -> tuple[TaskReport, ...]:
    """Merge the branches of tasks that succeeded, winners alone of those with a judge; reports that say so.

    Order: what a task needs comes before it, else the order of the file. A task that needs what did not land
    is withheld. Only what the last attempt made lands: a branch that somebody has moved since is withheld.
    Conflicts, failed checks and withheld branches are values, and so is a target that can't be landed on.
    settings: of the reconciler, its check and resolver included. ask: None where there is nobody to ask.
    A second call finds what has landed, and tries the rest again.
    """
    work = _Landings(repository, layout, settings, show, ask)
    for wave in _waves(reports):
        work.land(wave, reports)
    return tuple(_told(report, work.found.get(report.task.id)) for report in reports)


def _told(report: TaskReport, landing: Landing | None) -> TaskReport:
    if landing is None:
        return replace(report, landing=None, landing_detail=None)
    return replace(report, landing=landing.state, landing_detail=landing.detail)


def is_chosen(report: TaskReport) -> bool:
    """Whether a task's work is to land: it is good, and no judge preferred another."""
    if report.outcome not in report.task.accept:
        return False
    if report.winner is not None:
        return report.winner
    return report.task.judge is None or report.task.group == report.task.id


def _named(reports: Sequence[TaskReport], name: str) -> list[TaskReport]:
    """The task of that id, with the other tries before its judge; else all of that group."""
    found = [report for report in reports if report.task.id == name]
    group = found[0].task.group if found and found[0].task.judge else name
    return [report for report in reports if name == report.task.id or report.task.group == group]


def _waves(reports: Sequence[TaskReport]) -> Iterator[list[TaskReport]]:
    """Tasks, each in a later wave than all that it needs. What needs itself comes last, and is withheld."""
    left = list(reports)
    while left:
        ids = {report.task.id for report in left}
        wave = [report for report in left if not _needed(reports, report) & ids] or left
        yield wave
        taken = {report.task.id for report in wave}
        left = [report for report in left if report.task.id not in taken]


def _needed(reports: Sequence[TaskReport], report: TaskReport) -> set[str]:
    return {each.task.id for name in report.task.needs for each in _named(reports, name)}


class _Landings:
    """What has become of each task so far."""

    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        settings: Settings,
        show: Callable[[Event], None],
        ask: Ask | None,
    ) -> None:
        self._repository = repository
        self._layout = layout
        self._settings = settings
        self._show = show
        self._ask = ask
        self._repo = Repo(repository.common_dir)
        self._records = {record.branch: record for record in records(layout) if not record.throwaway}
        self.found: dict[str, Landing] = {}

    def land(self, wave: Sequence[TaskReport], reports: Sequence[TaskReport]) -> None:
        """Land tasks that do not need each other."""
        targets: dict[BranchName, dict[str, Record]] = {}
        for report in filter(is_chosen, wave):
            before = self._before(report, reports)
            if isinstance(before, Landing):
                self.found[report.task.id] = before
            elif before.target is None:
                hint = f"overlayrun merge {before.branch} --into BRANCH"
                self.found[report.task.id] = Landing(WITHHELD, f"it has no target: {hint}")
            else:
                targets.setdefault(before.target, {})[report.task.id] = before
        for target, wanted in targets.items():
            self.found |= self._merge(target, wanted)

    def _before(self, report: TaskReport, reports: Sequence[TaskReport]) -> Landing | Record:
        """The workspace whose branch is to land, or why none is."""
        missing = [name for name in report.task.needs if not self._is_there(_named(reports, name))]
        if missing:
            return Landing(WITHHELD, f"it needs {', '.join(missing)}, which did not land")
        last = report.results[-1] if report.results else None
        if last is None or last.tip is None:
            return Landing(NOTHING)
        record = self._records.get(BranchName(last.branch))
        if record is None:
            return Landing(WITHHELD, f"branch {last.branch} has no workspace; what was made: {last.ref}")
        if tip_of(self._repo, record) != last.tip:
            hint = f"overlayrun merge {last.branch}"
            return Landing(WITHHELD, f"branch {last.branch} was moved after the attempt; as it is: {hint}")
        return record

    def _is_there(self, needed: Sequence[TaskReport]) -> bool:
        """Whether the target has what is needed; of several tries those that were to land."""
        chosen = [self.found.get(each.task.id) for each in needed if is_chosen(each)]
        return bool(chosen) and all(landing is not None and landing.state in _GOOD for landing in chosen)

    def _merge(self, target: BranchName, wanted: Mapping[str, Record]) -> dict[str, Landing]:
        """Merge branches into one target, in this order. wanted: by task id."""
        trouble = "it was not tried"
        with Reconciler(
            self._repository, self._layout, target, self._settings, self._show, self._ask
        ) as worker:
            try:
                worker.merge(list(wanted.values()))
            except OverlayrunError as err:  # what landed before it has landed
                trouble = err.brief
        by_workspace = _landings(worker.outcome)
        return {
            task: by_workspace.get(record.id) or self._left(target, record, trouble)
            for task, record in wanted.items()
        }

    def _left(self, target: BranchName, record: Record, trouble: str) -> Landing:
        """What the reconciler had nothing to do for, or did not come to."""
        try:
            standing = Queue(self._layout, self._repo, target, self._settings).item(record).standing
        except OverlayrunError as err:
            return Landing(WITHHELD, err.brief)
        if standing is Standing.LANDED:
            return Landing(LANDED)
        return Landing(NOTHING) if standing is Standing.UNCHANGED else Landing(WITHHELD, trouble)


def _landings(outcome: Outcome) -> dict[str, Landing]:
    """What a reconciliation came to, by workspace id; a branch that landed in the end has landed."""
    found: dict[str, Landing] = {}
    for item, note in outcome.failed:
        why = f"{note.why}: overlayrun log --checks {item.branch}"
        found[item.record.id] = Landing(CHECK_FAILED, why)
    for each in outcome.withheld:
        found[each.item.record.id] = Landing(WITHHELD, each.why)
    for clash in outcome.clashes:
        found[clash.item.record.id] = Landing(CONFLICT, _conflict(clash))
    held = outcome.delivery.held if outcome.delivery and outcome.delivery.waiting else ()
    waits = f"it waits: {'; '.join(each.why for each in held)}" if held else None
    for one in outcome.landed:
        found[one.item.record.id] = Landing(LANDED, waits or f"{one.item.target} is at {one.commit[:10]}")
    return found


def _conflict(clash: Clash) -> str:
    paths = listed([each.path for each in clash.conflicts])
    return f"in {paths}: overlayrun conflicts {clash.item.branch}"
