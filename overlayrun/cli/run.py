"""`run`: the command of the launch path as click sees it, for help, completion and odd spellings."""

from __future__ import annotations

from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/
from click.shell_completion import CompletionItem  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.options import RUN_OPTIONS, Option
from overlayrun.cli.words import BRANCH, ParamType
from overlayrun.launch import run
from overlayrun.values import shown, wanted


class _Value(ParamType):
    """An option's own converter; choices are completed."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar or "flag"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click's own error for what the converter refuses."""
        if not isinstance(value, str):
            return value
        try:
            return self.option.convert(value)
        except ValueError:
            return self.fail(f"{value!a} is not {wanted(self.name)}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The choices, branches, or files."""
        metavar = self.option.metavar or ""
        if self.option.name in ("branch", "into"):
            return BRANCH.shell_complete(ctx, param, incomplete)
        if metavar == "PATH":
            return [CompletionItem(incomplete, type="dir")]
        choices = metavar.split("|") if "|" in metavar else []
        return [CompletionItem(choice) for choice in choices if choice.startswith(incomplete)]


def click_option(option: Option, default: Any = None) -> click.Option:
    """An option of the table as click has it. default: the one shown, where a command has its own."""
    names = [*option.flags, option.name]
    if option.metavar is None:
        return click.Option(names, is_flag=True, help=option.help)
    chosen = default or option.default
    text = shown(getattr(chosen, "value", chosen))
    told = f"{option.help} [default: {text}]" if text else option.help
    return click.Option(names, metavar=option.metavar, type=_Value(option), multiple=option.many, help=told)


def _run(command: tuple[str, ...], **given: Any) -> int:
    chosen = {name: value for name, value in given.items() if value not in (None, False, ())}
    return run(chosen, list(command))


run_command: Final = click.Command(
    "run",
    callback=_run,
    help="""Run a command in a new branch, or in one that is there (-b).

    The word `run` may be left out where `--` stands before the command. Exit code: the
    command's; 124 its time was up, 125 for a failure of overlayrun, 126 not executable, 127 not found,
    128+n for signal n. SPAN is 90s, 20m or 2h, SIZE 512M or 4G.

    A command can learn where it is: $OVERLAYRUN_HELP names a note, and `overlayrun snapshot`,
    `status` and `fork` work inside.
    """,
    params=[
        *(click_option(option) for option in RUN_OPTIONS),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND..."),
    ],
    context_settings={"allow_interspersed_args": False},
)
