"""The program's way in: the lean path for `overlayrun [options] -- COMMAND`, click for everything else.

Starting costs what it must: no module is loaded here that the command's start does not need (click, pygit2,
psutil and subprocess together cost 100 ms).
"""

from __future__ import annotations

import os
import sys

from overlayrun import interrupted  # noqa: F401  # first: what follows takes 50 ms
from overlayrun.cli.configured import configured
from overlayrun.cli.here import inside_of
from overlayrun.cli.options import parse_run, run_options
from overlayrun.cli.telling import show_error, tell
from overlayrun.errors import HostError, OverlayrunError, UsageError
from overlayrun.live import OURS
from overlayrun.owner import become_owner
from overlayrun.run import run_command
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    _fill_streams()
    words = sys.argv[1:]
    try:
        parsed = parse_run(words)
    except OverlayrunError as err:
        show_error(err)
        os._exit(OURS)
    if parsed is None:
        _try_lean(words)
        from overlayrun.cli.main import run_cli  # click costs 30 ms

        run_cli(words)
    given, command = parsed
    try:
        status = run(given, command)
    except KeyboardInterrupt:
        tell("interrupted before the command was started")
        status = 130
    # Not sys.exit: tearing the interpreter down costs 3 ms, and nothing of ours waits for it.
    os._exit(status)


def _fill_streams() -> None:
    """Standard streams that the caller closed become /dev/null, or files of ours would take their place."""
    for standard in range(3):
        try:
            os.fstat(standard)
        except OSError:
            null = os.open("/dev/null", os.O_RDWR)  # the lowest free descriptor, but closed at an exec
            os.dup2(null, 9)
            os.dup2(9, standard)
            os.close(9)


def _try_lean(words: list[str]) -> None:
    """What agents call at every step needs no click: `snapshot`, `hook`, inside `status` and `fork`."""
    if words[:1] == ["snapshot"]:
        from overlayrun.cli.snapshot_client import snapshot_lean

        status = snapshot_lean(words[1:])
    elif words[:1] in (["status"], ["fork"]):
        from overlayrun.cli.inside_client import inside_lean

        status = inside_lean(words)
    elif words[:1] == ["hook"]:
        from overlayrun.cli.hook import hook_lean

        status = hook_lean(words[1:])
    else:
        return
    if status is not None:
        os._exit(status)


def run(given: Mapping[str, Any], command: list[str]) -> int:
    """Run a command in a workspace of the repository around the current directory; the exit status.

    given: values of run options by name; git configuration and defaults stand for the others.
    """
    try:
        _refuse_nesting()
        if not command:
            raise UsageError("no command after --", hint="overlayrun -- opencode")
        if not given.get("allow_root_uid"):
            become_owner(os.getcwd(), tell)
        repository = find_repository(os.getcwd())
        options = run_options({**configured(repository.root, repository.common_dir), **given})
        options.asked = list(given)
        return run_command(repository, open_state(repository.common_dir), options, command, tell)
    except OverlayrunError as err:
        show_error(err)
    except OSError as err:
        where = f": {err.filename!a}" if err.filename else ""
        show_error(
            HostError(f"the workspace could not be made: {err.strerror}{where}", hint="overlayrun doctor")
        )
    return OURS


def _refuse_nesting() -> None:
    branch = inside_of()
    if branch:
        raise UsageError(
            f"this is a workspace already (branch {branch}), and overlays don't nest deeper than two",
            hint="start it from a terminal outside; here there is: overlayrun snapshot | status | fork",
        )
