"""`open`: branches, commits and snapshots as folders."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.configured import configured
from overlayrun.cli.here import Here, find_here
from overlayrun.cli.options import run_options
from overlayrun.cli.render import say, say_json
from overlayrun.cli.telling import tell
from overlayrun.cli.words import json_option
from overlayrun.errors import HostError, OverlayrunError, UsageError
from overlayrun.folders.daemon import Daemon, claim_folders
from overlayrun.folders.place import (
    choose_place,
    ignore_place,
    is_open,
    make_place,
    mountpoint_of,
    open_already,
    status_of,
    stop_daemon,
)
from overlayrun.folders.shown import Scene
from overlayrun.model import DirtyPolicy
from overlayrun.report import printable
from overlayrun.values import seconds
from overlayrun.workspace.layout import Layout, open_state

_READY: Final = b"+"
_LARGEST_LOG: Final = 1 << 20


@click.command("open", short_help="Show branches, commits and snapshots as folders.")
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--stop", "is_end", is_flag=True, help="Take the last snapshots, and show nothing any more.")
@click.option("--foreground", is_flag=True, help="Stay in the terminal, for a supervisor; its end ends it.")
@click.option("--every", metavar="SPAN", help="Snapshot at least this often while you write (default: 30s).")
@click.option(
    "--dirty",
    type=click.Choice(["include", "ignore"]),
    default="ignore",
    show_default=True,
    help="Your uncommitted changes in a branch that mkdir makes.",
)
@json_option
def open_command(
    *, directory: str | None, is_end: bool, foreground: bool, every: str | None, dirty: str, as_json: bool
) -> None:
    r"""Show branches, commits and snapshots as folders in DIR (default: .overlay in your repository).

    \b
    mkdir DIR/branches/fix          a new branch fix from HEAD; what you write there is committed
    mkdir DIR/branches/fix@v2.1     from another revision
    rmdir DIR/branches/fix          removes it once it has landed, or holds nothing
    ls DIR/commits/v2.1             what a commit holds, read-only
    ls DIR/snapshots/fix/3          what a snapshot holds, read-only

    A / of a branch's name is a ~ there. A branch that a command runs in is shown live.
    """
    here = find_here()
    if is_end:
        _end(here, as_json=as_json)
        return
    layout = open_state(here.repository.common_dir)
    if is_open(layout):
        raise open_already(layout)
    place = choose_place(here.repository, layout, directory)
    given = {**configured(here.repository.root, here.repository.common_dir), "dirty": DirtyPolicy(dirty)}
    if every is not None:
        given["every"] = _span(every)
    options = run_options(given)

    def serve(log: Callable[[str], None], ready: Callable[[], object]) -> None:
        claim_folders(here.repository, layout, log)
        mountpoint = mountpoint_of(layout)
        make_place(place, mountpoint)
        Daemon(Scene(here.repository.root, layout, log), options, place, mountpoint).serve(ready)

    ignored = ignore_place(here.repository, place)
    if ignored:
        tell(f"git ignores {place} from now on: {ignored} says so")
    if foreground:
        serve(tell, lambda: _say_open(layout, place, as_json=as_json))
        return
    _start(layout, serve)
    _say_open(layout, place, as_json=as_json)


def _span(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as err:
        raise UsageError(f"--every takes a span, not {text!a}", hint="such as 30s or 2m") from err


def _end(here: Here, *, as_json: bool) -> None:
    told = stop_daemon(here.layout)
    end = time.monotonic() + 10.0
    while is_open(here.layout) and time.monotonic() < end:
        time.sleep(0.02)
    if as_json:
        say_json({"place": told["place"], "open": False, "users": told["users"]})
        return
    say(f"{printable(told['place'])} is closed; everything is in snapshots")
    if told["users"]:
        say(f"still in use there, and cut off: {printable(', '.join(told['users']))}")


def _say_open(layout: Layout, place: str, *, as_json: bool) -> None:
    if as_json:
        say_json({"place": place, "open": True, "pid": (status_of(layout) or {}).get("pid")})
    else:
        say(f"branches are folders in {printable(place)}/branches; the end: overlayrun open --stop")
        new = f"mkdir {printable(shlex.quote(place))}/branches/NAME"
        say(f"a new one: {new}; what is written there is committed")


def _start(layout: Layout, serve: Callable[[Callable[[str], None], Callable[[], object]], None]) -> None:
    """Run `serve` in a process of its own that outlives the terminal; returns when it is ready."""
    os.makedirs(layout.folders, mode=0o700, exist_ok=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _become_daemon(layout, write, serve)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    if said != _READY:
        brief, _, hint = said.decode("utf-8", "surrogateescape").partition("\0")
        raise HostError(brief or "the folders can't be shown", hint=hint or f"see: {layout.folders}/log")


def _become_daemon(
    layout: Layout, write: int, serve: Callable[[Callable[[str], None], Callable[[], object]], None]
) -> NoReturn:
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir("/")
        _redirect(f"{layout.folders}/log")

        def ready() -> None:
            os.write(write, _READY)
            os.close(write)

        serve(_log, ready)
        status = 0
    except (OverlayrunError, OSError) as err:
        words = (err.brief, err.hint or "") if isinstance(err, OverlayrunError) else (str(err), "")
        _log(" ".join(words))
        os.write(write, "\0".join(words).encode("utf-8", "surrogateescape"))
    finally:
        if status and sys.exc_info()[0]:
            traceback.print_exc()
        os._exit(status)


def _redirect(path: str) -> None:
    if os.path.exists(path) and os.stat(path).st_size > _LARGEST_LOG:
        os.unlink(path)
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, fd in enumerate((null, log, log)):
        os.dup2(fd, number)


def _log(line: str) -> None:
    tell(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
