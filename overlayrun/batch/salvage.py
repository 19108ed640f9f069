"""Attempts of which no result came: what they left is kept, and made safe to show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from overlayrun.batch.artifacts import Made, mask, secret_values, write_artifacts
from overlayrun.batch.attempt import keep_left
from overlayrun.batch.layout import BatchLayout
from overlayrun.batch.result import Result
from overlayrun.batch.task import Attempt, Outcome
from overlayrun.batch.transcript import read_transcript
from overlayrun.errors import OverlayrunError, WorkspaceBusy
from overlayrun.files import read_bytes
from overlayrun.model import CommitId
from overlayrun.store.location import Repository
from overlayrun.workspace.layout import Layout

_PATIENCE: Final = 10.0  # seconds in which a killed sandbox is gone
_STEP: Final = 0.05
Tell = Callable[[str], None]


def read_result(place: BatchLayout, attempt: Attempt) -> Result | None:
    """The result that an attempt wrote itself; None where it never came so far."""
    try:
        return Result.from_json(json.loads(read_bytes(place.attempt(attempt.key).result)))
    except FileNotFoundError:
        return None


def salvage(
    repository: Repository, layout: Layout, place: BatchLayout, attempt: Attempt, tell: Tell
) -> tuple[CommitId | None, str | None]:
    """Snapshot what an attempt left in its workspace, keep it by its ref, mask its logs.

    Gives the commit, None where it made nothing, and what went wrong, None for nothing: then the workspace is
    left as it is, for the next attempt of the task or `overlayrun doctor`.
    """
    tip, fault = None, None
    try:
        tip = _keep(repository, layout, attempt, tell)
    except OverlayrunError as err:
        fault = err.brief
        tell(f"what attempt {attempt.number} of {attempt.task.id} left could not be kept: {err.brief}")
    made = None
    if tip is not None:
        made = Made(git_dir=repository.common_dir, base=attempt.base, tip=tip, ref=attempt.ref)
    files = place.attempt(attempt.key)
    if os.path.isdir(files.root):
        with suppress(FileNotFoundError):
            os.unlink(f"{files.judge}.raw")
        said = read_transcript(attempt.task.agent, files.output, files.errors, None)
        write_artifacts(files, said, secret_values(os.environ, attempt.task.env), made)
    return tip, fault


def _keep(repository: Repository, layout: Layout, attempt: Attempt, tell: Tell) -> CommitId | None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return keep_left(repository, layout, attempt, tell)
        except WorkspaceBusy:
            if time.monotonic() > end:
                raise
            time.sleep(_STEP)


def lost_result(attempt: Attempt, host: str, times: tuple[float, float], tip: str | None, why: str) -> Result:
    """The result of an attempt that wrote none itself. times: when it started, and when it was found lost."""
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
        detail=mask(why, secret_values(os.environ, attempt.task.env)),
        tip=tip,
    )
