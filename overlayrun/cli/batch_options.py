"""Options of `batch`: what they are called, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import CompletionItem  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.batch.coordinator import Rerun
from overlayrun.batch.journal import LATEST, runs
from overlayrun.batch.settings import Rate, Settings, parse_rate
from overlayrun.batch.tasks import Given
from overlayrun.batch.transcript import AGENTS
from overlayrun.cli.carrying import consent_options
from overlayrun.cli.here import find_here
from overlayrun.cli.options import RUN_OPTIONS
from overlayrun.cli.run import click_option
from overlayrun.cli.words import ParamType, json_option
from overlayrun.errors import OverlayrunError, UsageError
from overlayrun.model import AgentState, DirtyPolicy
from overlayrun.values import count, seconds, wanted

JOBS: Final = 4
"""Attempts at a time where nobody says: agents wait for models most of the time."""
# An attempt has them by its task, or not at all.
_NOT_HERE: Final = frozenset(
    {"branch", "base", "rm", "keep", "apply", "message", "timeout", "idle_timeout", "publish", "quiet"}
    | {"memory", "pids", "cpus", "disk"}
)
RUN_WIDE: Final = tuple(option for option in RUN_OPTIONS if option.name not in _NOT_HERE)
"""Run options that hold for every attempt."""
OF_BATCH: Final[Mapping[str, Any]] = {
    "dirty": DirtyPolicy.IGNORE,  # every task starts from the same, whatever you save meanwhile
    # Agents that start at the same moment fight for one database, and a batch would fill your own list.
    "agent_state": AgentState.PRIVATE,
}
"""What a batch takes where nobody says otherwise: other than a run."""
_LONGEST_PROMPT: Final = 1 << 20
RESOURCES: Final = ("memory", "pids", "cpus", "disk")
_OF_TASKS: Final = (
    *("branch", "base", "check", "check_timeout", "timeout", "idle_timeout", "judge", "attempts", "model"),
)


class _Run(ParamType):
    """A run of a batch, found later, completed here."""

    name = "run"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Runs, newest first."""
        try:
            known = [LATEST, *reversed(runs(find_here().layout))]
        except OverlayrunError:
            return []
        return [CompletionItem(name) for name in known if name.startswith(incomplete)]


class _Converted(ParamType):
    """A value that a converter of ours reads, which raises ValueError."""

    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click's own error for what the converter refuses."""
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except (ValueError, UsageError):
            return self.fail(f"{value!a} is not {wanted(self.name)}", param, ctx)


def _rate(text: str) -> tuple[str, Rate]:
    provider, equals, rate = text.rpartition("=")
    if not equals or not provider:
        raise ValueError(text)
    return provider, parse_rate(rate)


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not 1 <= count(number) <= count(total):
        raise ValueError(text)
    return int(number), int(total)


_SPAN: Final = _Converted("SPAN", seconds)
_COUNT: Final = _Converted("N", count)

_TASKS: Final = (
    click.option("--agent", type=click.Choice(list(AGENTS)), help="Agent that gets the prompts, headless."),
    click.option("--model", metavar="NAME", help="Model for the agent, as the agent calls it."),
    click.option(
        "-p", "--prompt", metavar="TEXT", help="Prompt of the tasks; {path} and so on are filled in."
    ),
    click.option(
        "-P", "--prompt-file", metavar="FILE", type=click.Path(dir_okay=False), help="The same, from a file."
    ),
    click.option(
        "--foreach", metavar="GLOB", multiple=True, help="A task for each tracked file, as 'src/**/*.py'."
    ),
    click.option("-n", "--count", metavar="N", type=_COUNT, help="Several tries of each task, side by side."),
    click.option("--judge", metavar="COMMAND", help="Run on each result; prints a number, the highest wins."),
    click.option(
        "--check", metavar="COMMAND", help="Must exit 0 on what a task left, in a throwaway workspace."
    ),
    click.option("--check-timeout", metavar="SPAN", help="End a check after this long. [default: 30m]"),
    click.option("--timeout", metavar="SPAN", help="End a task's command after this long."),
    click.option("--idle-timeout", metavar="SPAN", help="End it when it has printed nothing for this long."),
    click.option("--attempts", metavar="N", type=_COUNT, help="Most attempts of a task. [default: 2]"),
    click.option(
        "--retry-on",
        metavar="OUTCOME,…",
        help="Try again after these. [default: infra,rate-limited,timeout,lost]",
    ),
    click.option("--accept", metavar="OUTCOME,…", help="What counts as success. [default: ok,no-change]"),
    click.option(
        "-b", "--branch", metavar="TEMPLATE", help="Names of the branches. [default: batch/{run}/{id}]"
    ),
    click.option("--base", metavar="REV", help="Start from this commit instead of HEAD."),
    click.option(
        "--memory", metavar="SIZE", help="Most memory of a task; so much must be free to start one."
    ),
    click.option("--disk", metavar="SIZE", help="Most disk of a task; so much must be free to start one."),
    click.option("--cpus", metavar="N", help="Most processors' worth of time of a task."),
    click.option("--pids", metavar="N", help="Most processes and threads of a task."),
)
_RUNNING: Final = (
    click.option("-j", "--jobs", metavar="N", type=_COUNT, help=f"Attempts at a time. [default: {JOBS}]"),
    click.option("--stagger", metavar="SPAN", type=_SPAN, help="Wait so long between two starts."),
    click.option(
        "--rate",
        metavar="PROVIDER=N/SPAN",
        type=_Converted("PROVIDER=N/SPAN", _rate),
        multiple=True,
        help="Most starts of a provider's (or agent's) tasks, as anthropic=30/m.",
    ),
    click.option(
        "--max-failures", metavar="N", type=_COUNT, help="Start nothing more after so many failed tasks."
    ),
    click.option("--fail-fast", is_flag=True, help="End everything at the first failed task."),
    click.option(
        "--budget", metavar="USD", type=click.FloatRange(min=0), help="Start nothing more once this is spent."
    ),
    click.option("--deadline", metavar="SPAN", type=_SPAN, help="End everything after this long."),
    click.option(
        "--engine",
        metavar="ADDRESS",
        default=None,
        help="Run on the workers of dask://HOST:8786 instead of here.",
    ),
    click.option(
        "--remote",
        metavar="URL",
        help="With --engine: repository that the workers fetch from and push to. [default: origin]",
    ),
)
TLS_OPTIONS: Final = (
    click.option("--tls-ca", metavar="FILE", help="Certificate authority of the scheduler and its workers."),
    click.option("--tls-cert", metavar="FILE", help="Our certificate, signed by it."),
    click.option("--tls-key", metavar="FILE", help="Its key."),
    click.option(
        "--insecure-tcp",
        is_flag=True,
        help="Talk to another machine without TLS: who reaches the scheduler runs code on all workers.",
    ),
)
_RESULTS: Final = (
    click.option(
        "--merge", is_flag=True, help="Merge what succeeded into its target, through the same check."
    ),
    click.option(
        "--report", metavar="DIR", type=click.Path(file_okay=False), help="Copy reports and logs there."
    ),
    click.option("--junit", metavar="FILE", type=click.Path(dir_okay=False), help="Write JUnit XML there."),
    click.option(
        "--bundle",
        is_flag=True,
        help="Bundle each task's commits beside its logs, to be published elsewhere.",
    ),
    click.option(
        "--publish", metavar="REMOTE", help="Push the branches of what succeeded there, below --prefix."
    ),
    click.option("--prefix", metavar="PREFIX", help="With --publish: beginning of the branches' names."),
    click.option("--publish-forks", is_flag=True, help="Publish also for a pull request from a fork."),
    click.option("--publish-ci-files", is_flag=True, help="Publish also what changes files that CI runs."),
    click.option(
        "--pull-requests", metavar="N", type=_COUNT, help="With --publish: open at most N pull requests (gh)."
    ),
    click.option(
        "--from",
        "source",
        metavar="DIR",
        multiple=True,
        type=click.Path(file_okay=False, exists=True),
        help="With --publish: results that another job made with --report and --bundle.",
    ),
)
_RUNS: Final = (
    click.option(
        "--resume",
        metavar="RUN",
        type=_Run(),
        help="Go on with a run that was stopped or killed (latest, or its name).",
    ),
    click.option(
        "--rerun", type=click.Choice([each.value for each in Rerun]), help="Start these tasks of a run anew."
    ),
    click.option(
        "--shard",
        metavar="I/N",
        type=_Converted("I/N", _shard),
        help="Only this part of the tasks, the same each time.",
    ),
    click.option("--dry-run", is_flag=True, help="Show what would run, and start nothing."),
    click.option("--list", "listed", is_flag=True, help="Show the runs of this repository."),
    click.option("--schema", is_flag=True, help="Print the JSON Schema of a file of tasks."),
    click.option("-q", "--quiet", is_flag=True, help="No table and no lines, only the end."),
    json_option,
)


def batch_options(command: Callable[..., Any]) -> Any:
    """All options of `batch`."""
    own = (*_TASKS, *_RUNNING, *TLS_OPTIONS, *_RESULTS, consent_options, *_RUNS)
    for option in reversed(own):
        command = option(command)
    return command


def run_wide_options() -> list[click.Option]:
    """Run options as `run` has them, but for what a batch sets otherwise."""
    return [click_option(option, OF_BATCH.get(option.name)) for option in RUN_WIDE]


@dataclass(frozen=True, slots=True)
class Typed:
    """Everything that was typed, by option name; None and () for what was not."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    def given(self, command: tuple[str, ...]) -> Given:
        """What the tasks are made from, beside their file."""
        return Given(
            command=command,
            agent=self.agent,
            agents=AGENTS,
            prompt=self._prompt(),
            foreach=tuple(self.foreach),
            count=self.count,
            values=dict(self._task_values()),
        )

    def _prompt(self) -> str | None:
        if not self.prompt_file:
            return self.prompt and str(self.prompt)
        if self.prompt:
            raise UsageError("-p and -P are both given", hint="choose one")
        try:
            with open(self.prompt_file, "rb") as file:
                data = file.read(_LONGEST_PROMPT + 1)
            if len(data) > _LONGEST_PROMPT:
                raise UsageError(f"a prompt is at most 1 MiB: {self.prompt_file}", hint="-P FILE")
            return data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as err:
            raise UsageError(f"the prompt can't be read: {err}", hint="-P FILE takes UTF-8 text") from err

    def _task_values(self) -> Any:
        for name in _OF_TASKS:
            if self.values.get(name) is not None:
                yield name, self.values[name]
        for name in ("retry_on", "accept"):
            if self.values[name]:
                yield name, [word.strip() for word in self.values[name].split(",")]
        resources = {name: self.values[name] for name in RESOURCES if self.values[name] is not None}
        if resources:
            yield "resources", resources

    def settings(self, rates: Mapping[str, str]) -> Settings:
        """How to run them. rates: of the file."""
        every = {name: parse_rate(text) for name, text in rates.items()} | dict(self.rate)
        return Settings(
            jobs=self.jobs or JOBS,
            stagger=self.stagger or 0.0,
            rates=every,
            max_failures=self.max_failures,
            fail_fast=self.fail_fast,
            budget=self.budget,
            deadline=self.deadline,
        )

    def limits(self) -> dict[str, Any]:
        """Fields of the settings that were typed: for a run that is taken up again."""
        names = ("jobs", "stagger", "max_failures", "budget", "deadline")
        typed = {name: self.values[name] for name in names if self.values[name] is not None}
        return {**typed, **({"fail_fast": True} if self.fail_fast else {})}

    def run_wide(self) -> dict[str, Any]:
        """Run options that were typed."""
        names = (option.name for option in RUN_WIDE)
        return {name: self.values[name] for name in names if self.values[name] not in (None, False, ())}
