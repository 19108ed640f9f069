"""`batch`: many tasks, each in a branch of its own; checked commits, reports and one exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.bases.dirty import look
from overlayrun.batch.attempt import Shared
from overlayrun.batch.capacity import Capacity
from overlayrun.batch.coordinator import Rerun, Site, plan_batch, run_batch
from overlayrun.batch.documents import Document, read_documents
from overlayrun.batch.engines.api import Engine
from overlayrun.batch.engines.local import HOST, LocalEngine
from overlayrun.batch.foreach import tracked_files
from overlayrun.batch.journal import LATEST, Planned, create_run, find_run, locked, read_plan, write_plan
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.publish import expect_remote
from overlayrun.batch.reports.files import expect_place
from overlayrun.batch.run_options import options_from_json, options_to_json
from overlayrun.batch.task import Task
from overlayrun.batch.tasks import expand, plan_rows, rates, shard
from overlayrun.cli.batch_end import end
from overlayrun.cli.batch_engine import dask_engine, reach
from overlayrun.cli.batch_lines import Lines, Silence, heading
from overlayrun.cli.batch_options import OF_BATCH, Typed, batch_options, run_wide_options
from overlayrun.cli.batch_publish import (
    check_publication,
    publish_results,
)
from overlayrun.cli.batch_runs import say_runs
from overlayrun.cli.configured import configured
from overlayrun.cli.opened import Opened, open_here
from overlayrun.cli.options import run_options
from overlayrun.cli.render import count_text, on_terminal, say, say_json, say_table
from overlayrun.cli.telling import tell
from overlayrun.errors import UsageError
from overlayrun.model import DirtyPolicy, RunOptions
from overlayrun.reconcile.settings import read_settings
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout, open_state

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
_LARGEST: Final = 64 << 20  # bytes of a file of tasks
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
    if typed.merge:
        read_settings(repository.root)  # what is wrong in them is found now
    if typed.engine:
        reach(repository.root, typed.engine, typed.values)
    if typed.dry_run:
        return _show_plan(_expanded(document, typed, command, run="RUN"), as_json=typed.as_json)
    if typed.values.get("publish"):  # agents' time and money would be spent by then
        expect_remote(repository.common_dir, typed.values["publish"], typed.values["prefix"])
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
            data = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_LARGEST + 1)
    except OSError as err:
        raise UsageError(f"the tasks can't be read: {err.strerror}: {name}", hint=_HOW) from err
    if len(data) > _LARGEST:
        raise UsageError(f"a file of tasks is at most {_LARGEST >> 20} MiB: {name}", hint=_HOW)
    return read_documents(name, data)


def _expanded(document: Document | None, typed: Typed, command: tuple[str, ...], *, run: str) -> list[Task]:
    tasks = expand(document, typed.given(command), run=run, tracked=lambda: tracked_files(os.getcwd()))
    return list(shard(tasks, *typed.shard)) if typed.shard else tasks


def _options(repository: Repository, typed: Typed) -> RunOptions:
    """Options of every attempt's run."""
    ours = {**OF_BATCH, "quiet": True}
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
        tell(f"{count_text(changed, 'uncommitted change')} left out; to take along: --dirty include")
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
    if planned.repository != opened.repository.root and os.path.isdir(planned.repository):
        raise UsageError(
            f"run {place.run} belongs to another working tree", hint=f"cd {planned.repository}, then again"
        )
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
    return end(opened, place, report, planned, quiet=typed.quiet or typed.as_json, as_json=typed.as_json)


def _engine(shared: Shared, planned: Planned, results: Mapping[str, Any]) -> tuple[Engine, Capacity | None]:
    if planned.engine == HOST:
        return LocalEngine(shared, planned.settings.jobs, tell), Capacity(shared.layout.root)
    return dask_engine(shared, planned.engine, results), None
