"""`snapshot` of a running workspace, without click and pygit2: one git process, one socket."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from overlayrun.cli.here import find_here, inside_of
from overlayrun.cli.telling import show_error
from overlayrun.control import ask
from overlayrun.errors import OverlayrunError, SnapshotError, UsageError
from overlayrun.report import printable
from overlayrun.workspace.catalogue import find, records
from overlayrun.workspace.lock import is_locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record

_FAILED: Final = 3
_MESSAGE: Final = ("-m", "--message")
_SHOWN: Final = 5


class Wanted:
    """What `snapshot` was asked for. branch: "" for the one that is meant; force_large: without limits."""

    __slots__ = ("as_json", "branch", "force_large", "message")

    def __init__(self) -> None:
        self.branch = ""
        self.message: str | None = None
        self.as_json = False
        self.force_large = False


def snapshot_lean(words: Sequence[str]) -> int | None:
    """Carry out `snapshot *words` and give the exit status; None for help, usage errors, idle workspaces."""
    wanted = _parse(words)
    if wanted is None:
        return None
    try:
        branch, answer = _ask(wanted)
    except OverlayrunError as err:
        show_error(err)
        return _FAILED
    except OSError:  # click's way meets it again, and says it
        return None
    if answer is None:
        return None
    show(branch, answer, as_json=wanted.as_json)
    return 0


def _parse(words: Sequence[str]) -> Wanted | None:
    wanted = Wanted()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if word in _MESSAGE and rest:
            wanted.message = rest.pop(0)
        elif flag == "--message" and equals:
            wanted.message = value
        elif word == "--json":
            wanted.as_json = True
        elif word == "--force-large":
            wanted.force_large = True
        elif word.startswith("-") or wanted.branch:
            return None
        else:
            wanted.branch = word
    return wanted


def _ask(wanted: Wanted) -> tuple[str, dict[str, Any] | None]:
    """The branch and what its run answered; None where no run lives."""
    inside = inside_of()
    if inside is not None:
        answer = _ask_from_inside(wanted, inside)
        return printable(str(answer["branch"])), answer
    here = find_here()
    known = [record for record in records(here.layout) if not record.throwaway]
    if wanted.branch:
        record = find(here.layout, wanted.branch)
    else:
        running = [each for each in known if is_locked(here.layout.workspace(each.id).lock)]
        if len(running) != 1:
            return "", None
        record = running[0]
    if not is_locked(here.layout.workspace(record.id).lock):
        return record.branch, None
    return record.branch, ask_running(here.layout, record, wanted.message, force_large=wanted.force_large)


def _ask_from_inside(wanted: Wanted, inside: str) -> dict[str, Any]:
    if wanted.branch not in ("", inside):
        raise UsageError(
            f"from here only branch {inside} can be snapshotted", hint="overlayrun snapshot -m TEXT"
        )
    if wanted.force_large:
        raise UsageError(
            "the limits of a snapshot can be lifted from outside only",
            hint=f"overlayrun snapshot {inside} --force-large",
        )
    path = os.environ.get("OVERLAYRUN_SOCKET", "/run/overlayrun/control")
    # The directory, because it may lie in the tree of a further branch that the run has opened.
    request = _request(wanted.message)
    with suppress(FileNotFoundError):  # it was removed
        request |= {} if wanted.branch else {"path": os.getcwd()}
    return _checked(ask(os.path.dirname(path), os.path.basename(path), request)[0])


def ask_running(
    layout: Layout, record: Record, message: str | None, *, force_large: bool = False, wait: float = 2.0
) -> dict[str, Any]:
    """Let a running workspace take a snapshot, and give its answer. Raises SnapshotError, WorkspaceError.

    wait: seconds in which a run that is only starting may open its socket.
    """
    request = _request(message) | ({"force_large": True} if force_large else {})
    return _checked(ask(layout.workspace(record.id).sockets, "outside", request, wait=wait)[0])


def _request(message: str | None) -> dict[str, Any]:
    return {"op": "snapshot", "message": message}


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        hint = printable(str(answer.get("hint") or "see: overlayrun status"))
        raise SnapshotError(f"no snapshot was taken: {printable(str(answer['error']))}", hint=hint)
    return answer


def show(branch: str, answer: dict[str, Any], *, as_json: bool) -> None:
    """Tell what came of it, on standard output."""
    if as_json:
        left_out = [{"path": path, "reason": reason} for path, reason in answer["left_out"]]
        data = {"schema": 1, "branch": branch, **answer, "left_out": left_out}
        _write(json.dumps(data, indent=2))
        return
    if answer["unchanged"]:
        last = f"snapshot {answer['number']} holds it" if answer["number"] else "there is none yet"
        _write(f"branch {branch}: nothing changed since the last snapshot; {last}")
    else:
        tip = f" ({answer['tip'][:10]})" if answer["tip"] else ""
        _write(f"branch {branch}: snapshot {answer['number']}{tip}")
    for path, reason in answer["left_out"][:_SHOWN]:
        _write(f"left out: {printable(path)}: {printable(reason)}")
    if len(answer["left_out"]) > _SHOWN:
        _write(f"left out: {len(answer['left_out']) - _SHOWN} more")
    for note in answer["notes"]:
        _write(printable(note))


def _write(line: str) -> None:
    data = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(1, data) :]
