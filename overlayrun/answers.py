"""What a run answers at its control sockets: to the user's commands outside, and to the agent inside.

Whatever comes from inside is data of the agent's: it chooses nothing but among what stands here.
"""

from __future__ import annotations

import json
import time

from overlayrun.capture import answer_of
from overlayrun.errors import OverlayrunError, SnapshotError, UsageError
from overlayrun.fork import Wanted, fork_answer
from overlayrun.hearing import hear, words_of
from overlayrun.keeper import Command
from overlayrun.live import LiveSandbox
from overlayrun.model import SnapshotReason
from overlayrun.transplant import transplant
from overlayrun.whereami import whereami

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

    from overlayrun.fork import Forks
    from overlayrun.guests import Guests
    from overlayrun.snapshot import Snapshot
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record

    Reply = tuple[dict[str, Any], Sequence[int]]

_BEGAN: Final = time.monotonic()
_MOST: Final = 1000  # snapshots that the command asks for in a run
_MORE: Final = 1  # for each second that it goes on
_WORDS: Final = 8000  # characters of a message from inside
_ROOM: Final = 32_000  # bytes of an answer for what a snapshot left out


class Answers:
    """The answers of one run.

    take: takes a snapshot (reason, message, whether without limits), None where the run keeps none.
    forks: makes the branches that are forked from this one. guests: the further branches that are open in
    the run, for the answers of its own branch. root: where the tree is mounted. asked: how many snapshots
    came of the command's requests, whatever workspace of the run they are of; a process has one run.
    """

    asked = 0

    def __init__(
        self,
        live: LiveSandbox,
        layout: Layout,
        record: Record,
        take: Callable[..., Snapshot] | None,
        forks: Forks,
    ) -> None:
        self._live = live
        self._layout = layout
        self._record = record
        self._take = take
        self._forks = forks
        self.guests: Guests | None = None
        self.root = record.root
        self._inside: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "snapshot": self._snapshot_by_command,
            "session": self._session,
            "status": lambda _: whereami(self._record),
            "fork": self._fork,
        }

    def outside(self, request: dict[str, Any]) -> Reply:
        """Answer a command of the user's; descriptors of the namespaces for `join`."""
        if request["op"] == "join":
            command = self._live.command
            told = {
                "cwd": command.cwd,
                "root": self.root,
                "environment": command.environment,
                "confinement": command.confinement.to_json(),
                "group": self._live.group.to_json(),
            }
            return told, self._live.joined
        if request["op"] == "running":
            assert self._record.last_run is not None
            return {"keeper": self._live.pid, "running": time.time() - self._record.last_run.started}, ()
        if request["op"] == "snapshot":
            return self._guarded(
                lambda: self._snapshot(request, force_large=request.get("force_large") is True)
            )
        if request["op"] == "change":
            return self._guarded(lambda: self._change(request))
        return self.inside(request)

    def inside(self, request: dict[str, Any]) -> Reply:
        """Answer the agent, or let those of a guest's tree do it that the request names."""
        answer = self._inside.get(str(request["op"]))
        if self.guests is not None:
            answer = answer or self.guests.operations.get(str(request["op"]))
            other = self.guests.answers_of(request)
            if other is not None and str(request["op"]) in self._inside:
                return other.inside(request)
        if answer is None:
            return {"error": f"unknown request {request['op']!a}"}, ()
        return self._guarded(lambda: answer(request))

    def _guarded(self, answer: Callable[[], dict[str, Any]]) -> Reply:
        try:
            return answer(), ()
        except OverlayrunError as err:
            return {"error": err.brief, "hint": err.hint}, ()

    def _snapshot_by_command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Within a budget: every snapshot takes room in the user's repository, for ever."""
        if Answers.asked >= _MOST + (time.monotonic() - _BEGAN) * _MORE:
            raise SnapshotError(
                f"this run has asked for {Answers.asked} snapshots", hint="wait; those by time go on"
            )
        message = request.get("message")
        told = self._snapshot({**request, "message": message[:_WORDS] if isinstance(message, str) else None})
        Answers.asked += not told.get("unchanged", True)
        return told

    def _snapshot(self, request: dict[str, Any], *, force_large: bool = False) -> dict[str, Any]:
        if self._take is None:
            return {"error": "a throwaway run takes no snapshots"}
        words = words_of(self._layout, self._record, request)
        taken = self._take(SnapshotReason.REQUEST, words, force_large=force_large)
        return _fitting({"branch": self._record.branch, **answer_of(taken)})

    def _change(self, request: dict[str, Any]) -> dict[str, Any]:
        """Bring the files from one tree to another: a kill of the command that merges does not cut it off."""
        if self._take is None:
            return {"error": "a throwaway run takes no snapshots"}
        take, words = self._take, request["message"]
        inside = Command([], self.root, self._live.command.environment)
        inside.confinement = self._live.command.confinement
        done, taken = transplant(
            LiveSandbox.of_another(self._live.joined, inside),
            self._record.common_dir,
            self._layout.workspace(self._record.id).absorbing,
            (request["number"], request["old"]),
            request["new"],
            lambda is_done: answer_of(take(SnapshotReason.REQUEST, words if is_done else None)),
        )
        return _fitting({"branch": self._record.branch, **taken, "done": done})

    def _session(self, request: dict[str, Any]) -> dict[str, Any]:
        told = hear(self._layout, self._record, request.get("account"), leads=True)
        if told is None:
            return {"error": "a session is told by an account"}
        return {"branch": self._record.branch, "session": told.session}

    def _fork(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._take is None:
            return {"error": "a throwaway run can't be forked"}
        name, count = request.get("branch"), request.get("count", 1)
        if name is not None and not isinstance(name, str):
            raise UsageError("the branch's name is no text", hint="leave it out for a new one")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UsageError("the number of forks is no number", hint="leave it out for one")
        wanted = Wanted(name, count)
        self._forks.check(wanted)
        taken = answer_of(self._take(SnapshotReason.REQUEST, None))
        return _fitting(fork_answer(self._forks.make(wanted), taken))


def _fitting(told: dict[str, Any]) -> dict[str, Any]:
    """An answer that a socket takes: of paths that were left out, as many as there is room for."""
    listed, room = told["left_out"], _ROOM
    for shown, item in enumerate(listed):
        room -= len(json.dumps(item))
        if room < 0:
            note = f"left out: {len(listed) - shown} more"
            return {**told, "left_out": listed[:shown], "notes": [*told["notes"], note]}
    return told
