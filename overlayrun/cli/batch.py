"""`batch`: many tasks, each in a branch of its own; checked commits, reports and one exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import resources
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.bases.dirty import look
from overlayrun.batch.artifacts import secret_values
from overlayrun.batch.attempt import Shared
from overlayrun.batch.capacity import Capacity
from overlayrun.batch.coordinator import Rerun, Site, plan_batch, run_batch
from overlayrun.batch.documents import Document, read_documents
from overlayrun.batch.engines.api import Engine
from overlayrun.batch.engines.local import HOST, LocalEngine
from overlayrun.batch.foreach import tracked_files
from overlayrun.batch.journal import LATEST, Planned, create_run, find_run, locked, read_plan, write_plan
from overlayrun.batch.landing import land
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.publish import Published
from overlayrun.batch.reports.files import copy_reports, expect_place, write_reports
from overlayrun.batch.reports.github import tell_github
from overlayrun.batch.reports.summary import summary_of
from overlayrun.batch.result import BatchReport
from overlayrun.batch.run_options import options_from_json, options_to_json
from overlayrun.batch.task import Task
from overlayrun.batch.tasks import expand, plan_rows, rates, shard
from overlayrun.cli.batch_engine import dask_engine, reach
from overlayrun.cli.batch_lines import Lines, Silence, ended, heading, next_steps, say_on, unbroken
from overlayrun.cli.batch_options import Typed, batch_options, run_wide_options
from overlayrun.cli.batch_publish import (
    check_publication,
    publish_results,
    publish_run,
    published_lines,
    published_status,
)
from overlayrun.cli.batch_runs import say_runs
from overlayrun.cli.carrying import has_someone, is_wanted
from overlayrun.cli.configured import configured
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.options import run_options
from overlayrun.cli.reconcile import Report
from overlayrun.cli.render import count_text, on_terminal, say, say_json, say_table
from overlayrun.cli.telling import show_error, tell
from overlayrun.errors import OverlayrunError, UsageError
from overlayrun.model import AgentState, DirtyPolicy, RunOptions
from overlayrun.reconcile.settings import ExecPolicy, Settings, read_settings
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout, open_state

_CANCELLED: Final = 130  # as a shell shows SIGINT
_FAILED: Final = 3  # this machine, or one that we asked
_HOW: Final = "overlayrun batch tasks.yaml, or: overlayrun batch -p 'PROMPT' -- COMMAND {prompt}"
# What belongs to the results, and is kept for --resume.
_RESULTS: Final = (
    *(
        "merge",
        "check",
        "report",
        "junit",
        "publish",
        "prefix",
        "publish_forks",
        "publish_ci_files",
        "pull_requests",
    ),
    *("yes_exec", "allow_bare_layout", "bundle", "engine", "remote"),
    *("tls_ca", "tls_cert", "tls_key", "insecure_tcp"),
)
_PATHS: Final = ("report", "junit", "tls_ca", "tls_cert", "tls_key")


class _Batch(click.Command):
    """A command whose words after `--` are the tasks' command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta["command"] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)


@click.command("batch", cls=_Batch, short_help="Run many tasks, each in a branch of its own.")
@click.argument("tasks", required=False, metavar="[TASKS] [-- COMMAND]", type=click.Path(dir_okay=False))
@batch_options
@click.pass_context
def batch_command(ctx: click.Context, /, **given: Any) -> int:
    r"""Run many tasks, several at a time, each in a branch of its own.

    TASKS is a file of tasks (YAML, JSONL, TOML; - for standard input; --schema prints what may
    stand in it). Without one, --foreach, -n and -p make the tasks.

    \b
    Examples:
      overlayrun batch tasks.yaml -j 8
      overlayrun batch tasks.jsonl --agent opencode --check 'pytest -q' --merge --report out
      overlayrun batch --foreach 'src/*.py' -p 'Add type hints to {path}' -- opencode run {prompt}
      overlayrun batch -n 5 -p 'Fix issue 12' --judge scripts/score -- opencode run {prompt}
      overlayrun batch --resume latest --rerun failed

    \b
    Exit code: 0 all succeeded, 1 some failed or conflict, 2 wrong use, 3 this machine,
    4 budget or deadline, 130 cancelled.
    """
    typed = Typed(given)
    command = ctx.meta.get("command", ())
    if typed.schema:
        say(resources.files("overlayrun.batch").joinpath("tasks.schema.json").read_text().rstrip())
        return 0
    opened = open_here()
    if typed.listed:
        return say_runs(opened.layout, as_json=typed.as_json)
    if typed.source:
        return publish_results(opened, typed.values)
    if typed.resume or typed.rerun:
        return _run(opened, *_taken_up(opened, typed, command), typed)
    return _new(opened, typed, command)


batch_command.params[1:1] = run_wide_options()


def _new(opened: Opened, typed: Typed, command: tuple[str, ...]) -> int:
    document = _document(typed.tasks)
    if document is None and not command and not typed.agent:
        raise UsageError("there are no tasks", hint=_HOW)
    repository = opened.repository
    options = _options(repository, typed)
    check_publication(typed.values)
    kept = _kept(typed, opened.layout)
    if typed.engine:
        reach(repository.root, typed.engine, typed.values)
    if typed.dry_run:
        return _show_plan(_expanded(document, typed, command, run="RUN"), as_json=typed.as_json)
    place = create_run(open_state(repository.common_dir))
    try:
        tasks = _expanded(document, typed, command, run=place.run)
        planned = plan_batch(
            repository,
            place,
            tasks,
            typed.settings(rates(document)),
            engine=typed.engine or HOST,
            given={"options": options_to_json(options), "results": kept},
        )
    except BaseException:
        _forget(place)
        raise
    _say_head(repository, options, planned, typed)
    return _run(opened, place, planned, None, typed)


def _forget(place: BatchLayout) -> None:
    """Leave nothing of a run that never began."""
    os.rmdir(place.reports)
    os.rmdir(place.root)


def _document(name: str | None) -> Document | None:
    if name is None:
        return None
    try:
        if name == "-":
            return read_documents(name, sys.stdin.buffer.read())
        with open(name, "rb") as file:
            return read_documents(name, file.read())
    except OSError as err:
        raise UsageError(f"the tasks can't be read: {err.strerror}: {name}", hint=_HOW) from err


def _expanded(document: Document | None, typed: Typed, command: tuple[str, ...], *, run: str) -> list[Task]:
    tasks = expand(document, typed.given(command), run=run, tracked=lambda: tracked_files(os.getcwd()))
    return list(shard(tasks, *typed.shard)) if typed.shard else tasks


def _options(repository: Repository, typed: Typed) -> RunOptions:
    """Options of every attempt's run."""
    ours = {
        "dirty": DirtyPolicy.IGNORE,  # every task starts from the same, whatever you save meanwhile
        # Agents that start at the same moment fight for one database, and a batch would fill your own list.
        "agent_state": AgentState.PRIVATE,
        "quiet": True,
    }
    return run_options({**configured(repository.root, repository.common_dir), **ours, **typed.run_wide()})


def _kept(typed: Typed, layout: Layout) -> dict[str, Any]:
    """What was typed of what belongs to the results, paths as they hold anywhere. Raises UsageError."""
    kept = {name: typed.values[name] for name in _RESULTS if typed.values[name]}
    kept |= {name: os.path.realpath(kept[name]) for name in _PATHS if name in kept}
    for name in ("report", "junit"):
        if name in kept:
            expect_place(kept[name], layout.root)
    return kept


def _show_plan(tasks: Sequence[Task], *, as_json: bool) -> int:
    if as_json:
        say_json({"tasks": [task.to_json() for task in tasks]})
        return 0
    heads = ("TASK", "NEEDS", "FROM", "BRANCH", "LIMITS", "COMMAND")
    rows = [
        (row.id, " ".join(row.needs), row.base or "HEAD", row.branch, row.limits, row.command)
        for row in plan_rows(tasks)
    ]
    say_table(heads, rows)
    tell(f"{count_text(len(tasks), 'task')}; nothing was started")
    return 0


def _say_head(repository: Repository, options: RunOptions, planned: Planned, typed: Typed) -> None:
    if typed.quiet or typed.as_json:
        return
    tell(heading(len(planned.tasks), planned.run, planned.base, planned.settings.jobs))
    changed = len(look(repository).changed) if options.dirty is DirtyPolicy.IGNORE else 0
    if changed:
        tell(f"{count_text(changed, 'uncommitted change')} stay out (--dirty include takes them along)")
    tell(f"if it is stopped: overlayrun batch --resume {planned.run}")


def _taken_up(
    opened: Opened, typed: Typed, command: tuple[str, ...]
) -> tuple[BatchLayout, Planned, Rerun | None]:
    """A run that was planned before, with what was typed now in place of what was typed then."""
    if typed.tasks or command or typed.foreach or typed.dry_run or typed.shard:
        raise UsageError(
            "--resume and --rerun go on with a run, which has its tasks",
            hint="leave the tasks out; runs: overlayrun batch --list",
        )
    place = find_run(opened.layout, typed.resume or LATEST)
    planned = read_plan(place)
    kept = {**planned.given.get("results", {}), **_kept(typed, opened.layout)}
    given = {**planned.given, "results": kept}
    settings = replace(planned.settings, **typed.limits())
    planned = replace(planned, settings=settings, given=given)
    with locked(place):  # not under a batch that is going on
        write_plan(place, planned)
    return place, planned, Rerun(typed.rerun) if typed.rerun else None


def _run(opened: Opened, place: BatchLayout, planned: Planned, rerun: Rerun | None, typed: Typed) -> int:
    options = options_from_json(planned.given["options"])
    results = planned.given["results"]
    shared = Shared(opened.repository, opened.layout, options, place, bundle=bool(results.get("bundle")))
    engine, capacity = _engine(shared, planned, results)
    with ExitStack() as stack:
        watcher: Any = Silence() if typed.quiet or typed.as_json else Lines()
        if on_terminal() and not (typed.quiet or typed.as_json):
            from overlayrun.cli.batch_table import LiveBatch  # rich: 60 ms, and only a terminal needs it

            watcher = stack.enter_context(LiveBatch())
        site = Site(
            repository=opened.repository,
            layout=opened.layout,
            watcher=watcher,
            capacity=capacity,
            variables=options.env,
        )
        report = run_batch(engine, planned, place, site, rerun=rerun)
    return _close(opened, place, _landed(opened, report, results, typed), results, typed, options)


def _engine(shared: Shared, planned: Planned, results: Mapping[str, Any]) -> tuple[Engine, Capacity | None]:
    if planned.engine == HOST:
        return LocalEngine(shared, planned.settings.jobs, tell), Capacity(shared.layout.root)
    return dask_engine(shared, planned.engine, results), None


def _landed(opened: Opened, report: BatchReport, results: Mapping[str, Any], typed: Typed) -> BatchReport:
    """The report with what became of the branches, where they are to be merged."""
    if not results.get("merge") or report.status == _CANCELLED:
        return report
    quiet = typed.quiet or typed.as_json
    settings = _landing_settings(opened, report, results)
    ask = is_wanted_by if has_someone(as_json=quiet) else None
    show = unbroken(Report(settings, as_json=quiet).show)
    tasks = land(opened.repository, opened.layout, report.tasks, settings, show, ask)
    failed = any(task.landing and not task.succeeded for task in tasks)
    return replace(report, tasks=tasks, status=report.status or int(failed))


def is_wanted_by(item: Any, carriers: Any) -> bool:
    """Ask the user about files that run code on his machine."""
    return is_wanted(item.branch, "merge", carriers)


def _landing_settings(opened: Opened, report: BatchReport, results: Mapping[str, Any]) -> Settings:
    """The reconciler's settings; without a check, the one that all tasks have."""
    settings = read_settings(opened.repository.root)
    checks = {task.task.check for task in report.tasks}
    common = checks.pop() if len(checks) == 1 else None
    return settings.merged(
        {
            "check": results.get("check") or settings.check or common,
            "exec": ExecPolicy.ALLOW if results.get("yes_exec") else None,
            "allow_bare_layout": results.get("allow_bare_layout") or None,
        }
    )


def _close(
    opened: Opened,
    place: BatchLayout,
    report: BatchReport,
    results: Mapping[str, Any],
    typed: Typed,
    options: RunOptions,
) -> int:
    """Write, copy and publish what there is, and tell of it: each though another may fail; the exit code."""
    let_in = dict(text.split("=", 1) for text in options.env if "=" in text)
    secrets = secret_values(os.environ, let_in)
    failed: list[OverlayrunError] = []
    published: list[Published] = []

    def written(status: int) -> BatchReport:
        told = replace(report, status=report.status or status)
        with _noted(failed):
            write_reports(told, place.reports, secrets)
        return told

    told = written(0)  # first of all: the rest can fail
    if results.get("publish"):
        with _noted(failed):
            published = publish_run(opened, report, results)
        told = written(published_status(published) or _FAILED * bool(failed))
    with _noted(failed):
        copy_reports(place.reports, results.get("report"), results.get("junit"))
    if failed and not told.status:
        told = written(_FAILED)
    if typed.as_json:
        say_json(summary_of(told, place.reports))
    else:
        for line in (*ended(told), *published_lines(published)):
            say_on(line)
        for line in next_steps(told, results.get("report") or place.reports):
            tell(line)
        with _noted(failed):
            for line in tell_github(told, place.reports, os.environ):
                say_on(line)
    for err in failed:
        show_error(err)
    return told.status


@contextmanager
def _noted(failed: list[OverlayrunError]) -> Iterator[None]:
    """Go on after an error, which is told at the end."""
    try:
        yield
    except OverlayrunError as err:
        failed.append(err)
