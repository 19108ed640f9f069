"""The way in for every command but a lean run: the group of commands, and the one handler of errors."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.telling import show_error, tell
from overlayrun.errors import OverlayrunError, UsageError

RUN_FAILED: Final = 125  # ours, where the other codes are the command's
USAGE: Final = 2
FAILED: Final = 3
BUG: Final = 70  # EX_SOFTWARE, sysexits(3)
PIPE_CLOSED: Final = 141  # as a shell shows SIGPIPE
# What a disk or its owner can do to any command.
_NO_BUGS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_LIKE_A_RUN: Final = frozenset({"run", "exec", "shell"})
# A job must tell a file of tasks that is wrong (2) from a machine that can't (3).
_IN_CI: Final = frozenset({"batch", "worker"})

# A module is loaded when its command is called. Order: as the help shows them.
SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Run": ("run", "exec", "shell"),
    "Look": ("ls", "status", "show", "log", "diff", "open"),
    "Keep": ("snapshot", "fork", "restore"),
    "Bring home": ("apply", "merge", "sync", "rm"),
    "Bring all home": ("reconcile", "queue", "approve", "unapprove", "conflicts"),
    "Many at once": ("batch", "worker"),
    "For agents": ("integrate", "hook", "mcp"),
    "Keep house": ("gc", "doctor", "config", "completion"),
}
MODULES: Final[dict[str, str]] = {
    "run": "run",
    "exec": "join",
    "shell": "join",
    "ls": "ls",
    "status": "status",
    "show": "show",
    "log": "log",
    "diff": "diff",
    "snapshot": "snapshot",
    "fork": "fork",
    "restore": "restore",
    "apply": "bring",
    "merge": "reconcile",
    "reconcile": "reconcile",
    "queue": "queue",
    "approve": "queue",
    "unapprove": "queue",
    "conflicts": "conflicts",
    "sync": "sync",
    "batch": "batch",
    "worker": "worker",
    "rm": "rm",
    "hub": "hub",
    "integrate": "integrate",
    "hook": "integrate",
    "mcp": "mcp",
    "open": "open",
    "gc": "gc",
    "doctor": "doctor",
    "config": "config",
    "completion": "completion",
}
_HELP: Final = """Run a command in its own copy-on-write branch of this git repository.

It sees your tree at the same path. What it does there becomes commits on a branch;
your own tree stays as it is.

\b
Examples:
  overlayrun -- opencode                an agent in a new branch
  overlayrun -b fix-login -- make test  a named branch; again, and it goes on as it was left
  overlayrun --rm -- npm install        throwaway: tells what would have changed

Options of a run: overlayrun run --help
"""


class _Commands(click.Group):
    """Loads commands by name; reads `[run options] -- COMMAND` as `run [run options] -- COMMAND`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        module = importlib.import_module(f"overlayrun.cli.{MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        # click's mark of a paragraph that keeps its lines, as the docstrings (raw, by D301) spell it.
        command.help = (command.help or "").replace("\\b\n", "\b\n")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if is_run(args):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in MODULES and not ctx.resilient_parsing:
            ctx.fail(
                f"there is no command {args[0]!a}; to run a program: overlayrun -- {ascii(args[0])[1:-1]}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(section):
                formatter.write_dl(
                    [(name, command.get_short_help_str(100)) for name, command in commands if command]
                )


def is_run(words: Sequence[str]) -> bool:
    """Whether these words are run options with a command, and no command's name stands before."""
    own = {"--help", "-h", "--version"}
    return bool(words) and words[0].startswith("-") and words[0] not in own


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001  # click's signature
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version  # 25 ms

        click.echo(f"overlayrun {version('overlayrun')}")
        ctx.exit()


GROUP: Final = _Commands(
    name="overlayrun",
    help=_HELP,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        )
    ],
)


@GROUP.result_callback()
@click.pass_context
def _show_help_alone(ctx: click.Context, status: Any) -> Any:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return status


def run_cli(words: list[str]) -> NoReturn:
    """Carry out a command line that is no lean run, and exit."""
    # Those that the caller closed: /dev/null stands in their place (launch.py).
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    ours = RUN_FAILED if is_run(words) or (words[:1] and words[0] in _LIKE_A_RUN) else None
    status = _carry_out(words, ours)
    try:
        sys.stdout.flush()
    except OSError:
        # Told of already; the interpreter's own flush at exit would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(status)


def _carry_out(words: list[str], ours: int | None) -> int:
    try:
        status = GROUP.main(words, prog_name="overlayrun", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return 130  # as a shell shows SIGINT
    except click.ClickException as err:
        _show_usage_error(err)
        return ours or USAGE
    except OverlayrunError as err:
        show_error(err)
        return ours or (USAGE if isinstance(err, UsageError) and words[0] in _IN_CI else FAILED)
    except BrokenPipeError:
        return PIPE_CLOSED
    except Exception as err:  # noqa: BLE001  # the one place: what else escapes is a bug of ours
        return _tell_unexpected(err, words, ours)
    return status if isinstance(status, int) else 0


def _tell_unexpected(err: Exception, words: list[str], ours: int | None) -> int:
    if isinstance(err, OSError) and err.errno in _NO_BUGS:
        brief = ": ".join(str(part) for part in (err.strerror, err.filename) if part)
        show_error(OverlayrunError(brief, hint="overlayrun doctor looks at disk and rights"))
        return ours or FAILED
    tell(f"this is a bug in overlayrun; what happened is in {_write_log(words)}")
    return BUG


def _show_usage_error(err: click.ClickException) -> None:
    tell(err.format_message())
    ctx = getattr(err, "ctx", None)
    if ctx is not None:
        tell(f"hint: {ctx.command_path} --help")


def _write_log(words: list[str]) -> str:
    """The traceback in a file; its path."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = f"{state}/overlayrun/log/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = f"overlayrun {words!a}\n{traceback.format_exc()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"these lines:\n{text}"
    return path
