"""Further branches in one live sandbox: opened and closed by the command, snapshotted and ended with the run.

A guest is a workspace like any other, with a record, a lock and a socket of its own. Its tree is mounted in
the sandbox of the run that opened it, and what works there is confined as that run's command is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from overlayrun.bases.gitdir import is_touched
from overlayrun.capture import capture
from overlayrun.durable import sync_in_background
from overlayrun.errors import HostError, OverlayrunError, UsageError, WorkspaceBusy
from overlayrun.files import remove_tree, write_whole
from overlayrun.idle import idle_sandbox
from overlayrun.kernel import namespaces
from overlayrun.live import OURS, LiveSandbox
from overlayrun.model import RunOptions, SnapshotReason
from overlayrun.prepare import Prepared, open_or_make
from overlayrun.recover import recover
from overlayrun.removal import drop
from overlayrun.report import printable
from overlayrun.sandbox.plan import TREES, has_more_mounts, tree_plan
from overlayrun.sandbox.switches import parse_without
from overlayrun.sandbox.trees import hide_tree, show_tree
from overlayrun.snapshot import Snapshot
from overlayrun.store.heads import is_checked_out
from overlayrun.store.location import Repository, find_repository
from overlayrun.store.refs import parse_branch_name, shadowed_by
from overlayrun.view import Choices, view_of
from overlayrun.workspace.catalogue import find_exact, records
from overlayrun.workspace.layout import Layout, WorkspaceLayout
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record, Run, boot_id

_MOST: Final = 32  # at the same time
_MOST_MADE: Final = 256  # in one run
# What the run was asked for and a guest is not.
_RUNS_OWN: Final[dict[str, Any]] = {"rm": False, "keep": False, "apply": False, "message": None}

Handler = Callable[[dict[str, Any]], tuple[dict[str, Any], Sequence[int]]]
Take = Callable[..., Snapshot]


class Answering(Protocol):
    """What answers for one tree, which is mounted at `root`; `answers.Answers` does."""

    root: str

    def outside(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[int]]:
        """Answer the user."""

    def inside(self, request: dict[str, Any]) -> tuple[dict[str, Any], Sequence[int]]:
        """Answer the command."""


class Door(Protocol):
    """Who serves sockets; the supervisor does."""

    def listen(self, place: str, name: str, handle: Handler) -> int:
        """Open the socket `place`/`name`; a number for `unlisten`."""

    def unlisten(self, number: int) -> None:
        """Close it."""


@dataclass(slots=True)
class _Guest:
    """An open one. name: below TREES. live: the sandbox as seen from its tree. mark: by `show_tree`.

    can_hide: whether it can be taken away before the run ends.
    """

    record: Record
    lock: int
    name: str
    place: WorkspaceLayout
    live: LiveSandbox
    resumed: bool
    notes: list[str]
    mark: str = ""
    can_hide: bool = False
    door: int = -1
    answers: Answering | None = None

    @property
    def path(self) -> str:
        return f"{TREES}/{self.name}"


class Guests:
    """The guests of one run, whose only process this is.

    record: of the run's own workspace. door, answering: see `Door`; makes the answers for a guest's tree.
    """

    door: Door
    answering: Callable[[LiveSandbox, Record, Take], Answering]

    def __init__(
        self, repository: Repository, layout: Layout, record: Record, options: RunOptions, live: LiveSandbox
    ) -> None:
        self._repository = repository
        self._layout = layout
        self._record = record
        self._options = options
        self._live = live
        self._without = parse_without(options.without)
        self._open: list[_Guest] = []
        self._made: list[str] = []

    @property
    def operations(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What the command may ask for here, by name."""
        return {"open": self._opened, "close": self._closed}

    def answers_of(self, request: Mapping[str, Any]) -> Answering | None:
        """Who answers a request that names an open guest, by "branch" or by a "path" in it; else None."""
        guest = self._find(request)
        return guest.answers if guest else None

    def _find(self, request: Mapping[str, Any]) -> _Guest | None:
        branch, path = request.get("branch"), request.get("path")
        by_name = (guest for guest in self._open if branch == guest.record.branch)
        by_path = (guest for guest in self._open if f"{path}/".startswith(f"{guest.path}/"))
        return next(by_name, None) or next(by_path, None)

    def _opened(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open a guest, or tell of the one that is open; raises what `open_or_make` does, and HostError."""
        branch = request.get("branch")
        if branch is not None and not isinstance(branch, str):
            raise UsageError("the branch's name is no text", hint="leave it out for a new one")
        guest = self._find({"branch": branch}) or self._bring_in(branch)
        return {
            "branch": guest.record.branch,
            "path": guest.path,
            "id": guest.record.id,
            "base": guest.record.base,
            "resumed": guest.resumed,
            "notes": [printable(note) for note in guest.notes],
        }

    def _bring_in(self, branch: str | None) -> _Guest:
        if self._record.throwaway:
            raise UsageError("a throwaway run opens no further branch", hint="start the run without --rm")
        if len(self._open) >= _MOST:
            raise UsageError(f"{_MOST} further branches are open in this run", hint="close one of them first")
        if len(self._made) >= _MOST_MADE:
            raise UsageError(f"this run has opened {_MOST_MADE} further branches", hint="start another run")
        repository = find_repository(self._repository.root)  # as it is now, like that of a new run
        if branch is not None:
            self._refuse_taken(branch)
        options = RunOptions(**{**vars(self._options), **_RUNS_OWN, "branch": branch})
        assert self._record.last_run is not None
        prepared = open_or_make(
            repository, self._layout, options, self._record.last_run.command, _tell_nobody
        )
        guest = self._guest_of(prepared)
        try:
            self._begin(guest, repository)
        except (OverlayrunError, OSError) as err:
            self._undo(guest)
            if isinstance(err, OSError):
                raise HostError(f"the branch can't be opened: {err.strerror}") from err
            raise
        self._open.append(guest)
        return guest

    def _refuse_taken(self, branch: str) -> None:
        """Raise for a name that is the user's, even where no commit has it yet, and for work of his."""
        name, common_dir = parse_branch_name(branch), self._repository.common_dir
        known = find_exact(self._layout, name)
        if known is not None and (known.by_command or is_locked(self._layout.workspace(known.id).lock)):
            return
        if known is not None:
            raise UsageError(
                f"branch {name} is the user's, not one that a run has opened",
                hint=f"outside: overlayrun -b {name} -- COMMAND",
            )
        is_target = any(record.target == name for record in records(self._layout))
        if is_target or is_checked_out(common_dir, name) or shadowed_by(common_dir, name):
            raise UsageError(f"branch {name} is taken", hint="choose a new name")

    def _guest_of(self, prepared: Prepared) -> _Guest:
        record = prepared.record
        name = record.branch.replace("/", "-")
        if any(name == guest.name for guest in self._open):
            name += f"-{record.id}"
        live = self._live.seen_from(f"{TREES}/{name}", record.branch, record.id)
        place = self._layout.workspace(record.id)
        return _Guest(record, prepared.lock, name, place, live, prepared.resumed, prepared.notes)

    def _begin(self, guest: _Guest, repository: Repository) -> None:
        record = guest.record
        if guest.resumed:
            recover(repository, self._layout, record, guest.notes.append)
        view = view_of(repository, self._layout, record, Choices.of(self._options))
        self._write_down(guest)
        answers = self.answering(guest.live, record, self._taker(guest))
        answers.root = guest.path
        guest.answers = answers
        guest.door = self.door.listen(guest.place.sockets, "outside", answers.outside)
        own = not namespaces.is_root_of_host() or self._options.allow_root_uid
        layers = tree_plan(view, self._without)
        # Not where the command could keep the mounts in a namespace of its own, nor where one of them covers
        # something, and would have to go before the tree does.
        is_shared = self._options.allow_userns or "namespaces" in self._without
        guest.can_hide = not (is_shared or has_more_mounts(layers))
        guest.mark = show_tree(self._live.joined, layers, record.root, guest.name, own=own)

    def _write_down(self, guest: _Guest) -> None:
        """That the workspace is open, and that it is this run's."""
        record, run = guest.record, self._record.last_run
        assert run is not None
        record.by_command = True
        number = record.last_run.number + 1 if record.last_run else 1
        record.last_run = Run(number, run.command, boot_id(), time.time())
        record.save(guest.place.record)
        self._made.append(record.id)
        listed = self._layout.workspace(self._record.id).guests
        write_whole(listed, "\n".join(dict.fromkeys(self._made)).encode(), durable=False)

    def _undo(self, guest: _Guest) -> None:
        """Leave nothing of a guest that could not be shown, but what was there before."""
        if guest.door >= 0:
            self.door.unlisten(guest.door)
        with suppress(OverlayrunError):
            if guest.resumed and guest.door >= 0:
                self._end(guest, OURS)
            elif not guest.resumed:
                drop(self._layout, guest.record, branch=True)
        self._release(guest)

    def _taker(self, guest: _Guest) -> Take:
        def take(reason: SnapshotReason, message: str | None, **more: Any) -> Snapshot:
            return capture(self._layout, guest.record, reason, message, guest.live, **more)

        return take

    def _closed(self, request: dict[str, Any]) -> dict[str, Any]:
        """Close a guest, and give its last snapshot; one that is in use gets a snapshot, and stays open.

        Raises WorkspaceBusy then, UsageError for what is no guest.
        """
        guest = self._find(request)
        if guest is None:
            raise UsageError("no further branch of this run is called that", hint="open answers its path")
        repository = find_repository(self._repository.root)
        if not (guest.can_hide and hide_tree(self._live.joined, guest.name, guest.mark)):
            taken = self._taker(guest)(SnapshotReason.REQUEST, None) if _is_touched(guest) else None
            raise self._stays(guest, taken)
        self._leave(guest)
        try:
            taken = None
            if _is_touched(guest):
                # Not of the tree that was shown: nobody can write to this one any more.
                with idle_sandbox(repository, self._layout, guest.record) as live:
                    reason, prompt = SnapshotReason.EXIT, guest.record.prompt
                    taken = capture(self._layout, guest.record, reason, prompt, live)
            self._end(guest, 0)
        finally:
            self._release(guest)
        number = taken.number if taken else 0
        return {"branch": guest.record.branch, "id": guest.record.id, "closed": True, "number": number}

    def _stays(self, guest: _Guest, taken: Snapshot | None) -> WorkspaceBusy:
        why = "in use" if guest.can_hide else "not to be unmounted"
        kept = f"; its work so far is in snapshot {taken.number}" if taken else ""
        return WorkspaceBusy(
            f"branch {guest.record.branch} is {why}, and stays open until the run ends{kept}",
            hint=f"leave {guest.path} (cd /) and end what works in it, then close it again"
            if guest.can_hide
            else "nothing is to be done: it is closed with the run",
        )

    def _leave(self, guest: _Guest) -> None:
        self._open.remove(guest)
        self.door.unlisten(guest.door)

    def _end(self, guest: _Guest, status: int) -> None:
        run = guest.record.last_run
        if run is None or not os.path.isdir(guest.place.root):  # the user removed the whole workspace
            return
        run.status, run.ended = status, time.time()
        guest.record.save(guest.place.record)
        sync_in_background(self._layout, [guest.record])

    def _release(self, guest: _Guest) -> None:
        remove_tree(guest.place.work)
        os.close(guest.lock)

    def take_all(self, tell: Callable[[str], None]) -> None:
        """A snapshot of each guest, by the timer; one that can't be taken is told of."""
        for guest in filter(_is_touched, self._open):
            try:
                self._taker(guest)(SnapshotReason.INTERVAL, None)
            except OverlayrunError as err:
                tell(f"branch {guest.record.branch}: no snapshot this time: {err.brief}")

    def finish(self, status: int) -> Iterator[str]:
        """End every guest when all processes are dead: the last snapshots, and a line on each.

        status: of the run's command.
        """
        for guest in self._open:
            assert guest.record.last_run is not None
            guest.record.last_run.status = status
            yield f"branch {guest.record.branch}: {self._last_words(guest)}"

    def _last_words(self, guest: _Guest) -> str:
        try:
            if not _is_touched(guest):
                said = "nothing changed"
            else:
                taken = self._taker(guest)(SnapshotReason.EXIT, guest.record.prompt)
                said = f"snapshot {taken.number}" + (f" ({taken.tip[:10]})" if taken.tip else "")
                if guest.record.is_whole and taken.is_empty:
                    said = "nothing changed"
        except OverlayrunError as err:
            return f"the last snapshot failed: {err.brief}; nothing is lost: {guest.place.upper}"
        assert guest.record.last_run is not None
        self._end(guest, guest.record.last_run.status or 0)
        return said

    def release(self) -> None:
        """Give every guest back, when the sandbox is gone with its mounts."""
        for guest in self._open:
            self._release(guest)
        self._open.clear()


def _is_touched(guest: _Guest) -> bool:
    if guest.record.is_whole:  # only a snapshot can tell
        return True
    try:
        return is_touched(guest.place.upper, guest.place.git_upper)
    except FileNotFoundError:  # the user removed the whole workspace
        return False


def _tell_nobody(_: str) -> None:
    """The terminal is the command's while it runs."""
