"""Attempts of which no result came: what they left is kept, and made safe to show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from overlayrun.batch.artifacts import Made, mask, secret_values, write_artifacts
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.leavings import keep_left
from overlayrun.batch.result import Result
from overlayrun.batch.run_options import let_in
from overlayrun.batch.task import Attempt, Outcome
from overlayrun.batch.transcript import read_transcript
from overlayrun.errors import OverlayrunError, WorkspaceBusy
from overlayrun.files import read_bytes
from overlayrun.model import BranchName, CommitId
from overlayrun.store.location import Repository
from overlayrun.store.refs import branch_ref
from overlayrun.workspace.layout import Layout

_PATIENCE: Final = 10.0  # seconds in which a killed sandbox is gone
_STEP: Final = 0.05
_COARSE: Final = 0.1  # seconds by which a file's time may lag behind the clock, and more
Tell = Callable[[str], None]


def read_result(place: BatchLayout, attempt: Attempt) -> Result | None:
    """The result that an attempt wrote itself; None where it never came so far."""
    try:
        return Result.from_json(json.loads(read_bytes(place.attempt(attempt.key).result)))
    except FileNotFoundError:
        return None


class Salvor:
    """Keeps what attempts left, its logs masked. variables: that `--env` lets in, as RunOptions.env."""

    def __init__(
        self, repository: Repository, layout: Layout, place: BatchLayout, variables: Sequence[str], tell: Tell
    ) -> None:
        self._repository = repository
        self._layout = layout
        self._place = place
        self._variables = variables
        self._tell = tell

    def salvage(self, attempt: Attempt, since: float) -> tuple[CommitId | None, str | None]:
        """Snapshot what an attempt left in its workspace, keep it by its ref, mask its logs.

        since: when it was submitted. Nothing of it runs any more. Gives the commit, None where it made
        nothing, and what went wrong, None for nothing: then the workspace is left as it is, for the next
        attempt of the task or `overlayrun doctor`.
        """
        tip, fault = None, None
        try:
            self._clear_locks(attempt, since)
            tip = self._keep(attempt)
        except OverlayrunError as err:
            fault = err.brief
            self._tell(f"what attempt {attempt.number} of {attempt.task.id} left is not kept: {err.brief}")
        try:
            self._show(attempt, tip)
        except OSError as err:  # on a full disk the others still have to be kept
            self._tell(f"logs of attempt {attempt.number} of {attempt.task.id} are not shown: {err.strerror}")
        return tip, fault

    def lost(
        self, attempt: Attempt, host: str, times: tuple[float, float], tip: str | None, why: str
    ) -> Result:
        """The result of an attempt that wrote none. times: when it started, and when it was found lost."""
        return Result(
            run=attempt.run,
            task=attempt.task.id,
            attempt=attempt.number,
            outcome=Outcome.LOST,
            started=times[0],
            ended=times[1],
            host=host,
            branch=attempt.task.branch,
            base=attempt.base,
            ref=attempt.ref,
            detail=mask(why, self._secrets(attempt)),
            tip=tip,
        )

    def _clear_locks(self, attempt: Attempt, since: float) -> None:
        """Remove the locks on refs that it was killed with; git never does. An older one is the user's."""
        for ref in (attempt.ref, branch_ref(BranchName(attempt.task.branch))):
            path = f"{self._repository.common_dir}/{ref}.lock"
            with suppress(FileNotFoundError):
                if os.lstat(path).st_mtime > since - _COARSE:
                    os.unlink(path)

    def _keep(self, attempt: Attempt) -> CommitId | None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return keep_left(self._repository, self._layout, attempt, self._tell)
            except WorkspaceBusy:
                if time.monotonic() > end:
                    raise
                time.sleep(_STEP)

    def _show(self, attempt: Attempt, tip: CommitId | None) -> None:
        """Write what people read of it, without secrets, in the place of the raw files."""
        files = self._place.attempt(attempt.key)
        if not os.path.isdir(files.root):
            return
        made = None
        if tip is not None:
            made = Made(git_dir=self._repository.common_dir, base=attempt.base, tip=tip, ref=attempt.ref)
        with suppress(FileNotFoundError):
            os.unlink(f"{files.judge}.raw")
        said = read_transcript(attempt.task.agent, files.output, files.errors, None)
        write_artifacts(files, said, self._secrets(attempt), made)

    def _secrets(self, attempt: Attempt) -> tuple[str, ...]:
        return secret_values(os.environ, {**let_in(self._variables), **attempt.task.env})
