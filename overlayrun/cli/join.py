"""`exec` and `shell`: one more command in a branch, running or not."""

from __future__ import annotations

import os
import signal
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun import keeper, launch
from overlayrun.cli.here import Here, find_here
from overlayrun.cli.telling import tell
from overlayrun.cli.words import branch_argument
from overlayrun.control import ask
from overlayrun.errors import UsageError, WorkspaceError
from overlayrun.kernel.cgroups import enter_group_of
from overlayrun.kernel.waits import exit_code
from overlayrun.live import OURS, run_joined
from overlayrun.sandbox.confinement import Confinement
from overlayrun.terminal import Terminal, is_in_foreground
from overlayrun.workspace.catalogue import find
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record

# The run's environment is the sandbox's; these belong to the terminal that the new command is shown on.
_OF_TERMINAL: Final = ("TERM", "COLORTERM", "LINES", "COLUMNS", "NO_COLOR")
_SHELLS: Final = ("/bin/bash", "/bin/sh")


@click.command(
    "exec",
    short_help="Run one more command in a branch.",
    context_settings={"allow_interspersed_args": False},
)
@branch_argument()
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def exec_command(*, text: str, command: tuple[str, ...]) -> int:
    """Run one more command in a branch: beside the one that runs there, or in the workspace as it was left.

    Exit code: the command's; 125 for a failure of overlayrun, 126 not executable, 127 not found.
    """
    argv = list(command[1:] if command[:1] == ("--",) else command)
    if not argv:
        raise UsageError("no command was given", hint=f"overlayrun exec {ascii(text)[1:-1]} -- COMMAND")
    return _run_in(text, argv)


@click.command("shell", short_help="Open a shell in a branch.")
@branch_argument()
def shell_command(*, text: str) -> int:
    """Open your shell in a branch: beside the command that runs there, or in the workspace as it was left."""
    own = os.environ.get("SHELL", "")
    return _run_in(
        text, [next(path for path in (own, *_SHELLS) if os.access(path, os.X_OK) or path == _SHELLS[-1])]
    )


def _run_in(text: str, argv: list[str]) -> int:
    here = find_here()
    record = find(here.layout, text)
    if is_locked(here.layout.workspace(record.id).lock):
        return _join(here, record, argv)
    return launch.run({"branch": record.branch}, argv)


def _join(here: Here, record: Record, argv: list[str]) -> int:
    """Run `argv` in the sandbox that lives, on our own terminal; its exit status."""
    answer, joined = ask(here.layout.workspace(record.id).sockets, "outside", {"op": "join"})
    if "environment" not in answer or not joined:
        raise WorkspaceError(
            f"the run of branch {record.branch} can't be joined", hint="see: overlayrun status"
        )
    command = keeper.Command(argv, _directory(here, record, answer["root"]), _environment(answer))
    command.confinement = Confinement.from_json(answer["confinement"])
    command.confinement.shares_group = is_in_foreground()
    terminal = Terminal()
    pid = os.fork()
    if pid == 0:
        _enter_group(answer["group"])
        run_joined(joined, command, tell=tell)
    for number in (signal.SIGINT, signal.SIGQUIT):  # they are the command's: it shares our terminal
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(pid, 0)
    code = exit_code(status)
    terminal.take_back(abnormal=code > 128)
    return code


def _enter_group(group: dict[str, Any]) -> None:
    """In a forked child: be limited with the rest of the run."""
    try:
        enter_group_of(group, os.getpid())
    except OSError as err:
        tell(f"the run's control group can't be entered: {err.strerror}")
        os._exit(OURS)


def _directory(here: Here, record: Record, root: str) -> str:
    """The caller's own directory in the tree, which is mounted at `root`."""
    inside = here.repository.root == record.root
    return os.path.join(root, here.repository.prefix if inside else "").rstrip("/")


def _environment(answer: dict[str, Any]) -> dict[str, str]:
    environment: dict[str, str] = {**answer["environment"]}
    own = {name: os.environ[name] for name in _OF_TERMINAL if name in os.environ}
    return {**environment, **own}
