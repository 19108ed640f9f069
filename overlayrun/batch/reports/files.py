"""All reports of a run at once, and copies of them for CI."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

from overlayrun.batch.reports.github import write_markdown
from overlayrun.batch.reports.html import write_html
from overlayrun.batch.reports.junit import write_junit
from overlayrun.batch.reports.summary import write_summary
from overlayrun.batch.result import BatchReport
from overlayrun.errors import HostError, UsageError


def write_reports(report: BatchReport, directory: str, secrets: Sequence[str]) -> None:
    """Write every report into `directory`, which holds `tasks/` already. secrets: values that none may show.

    Raises HostError where the disk does not take them.
    """
    try:
        write_summary(report, directory)
        write_junit(report, directory)
        write_markdown(report, directory)
        write_html(report, directory, secrets)
    except OSError as err:
        raise HostError(f"the reports can't be written: {_said(err)}") from err


def expect_place(path: str, state: str) -> None:
    """Raise UsageError where a report can't be copied to `path`, before anything has run.

    path: absolute, without symbolic links. state: overlayrun's own directory, which takes none.
    """
    if f"{path}/".startswith(f"{os.path.realpath(state)}/"):
        raise UsageError(f"reports can't be copied to where overlayrun keeps its own: {path}")
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    is_usable = os.path.isdir(above) or (above == path and os.path.isfile(path))
    if not is_usable or not os.access(above, os.W_OK):
        raise UsageError(f"reports can't be written there: {path}", hint=f"not writable: {above}")


def copy_reports(directory: str, target: str | None, junit: str | None) -> None:
    """Copy the reports into the directory `target`, and the JUnit file to the path `junit`; None for neither.

    What else is in the directory stays. Both are absolute and were without symbolic links when the batch
    began: one that is there now came with what an agent made, and is not followed. Raises HostError.
    """
    try:
        if target:
            _expect_unchanged(target)
            _copy_directory(directory, target)
        if junit:
            _expect_unchanged(junit)
            os.makedirs(os.path.dirname(junit), exist_ok=True)
            _copy_file(f"{directory}/junit.xml", junit)
    except OSError as err:
        raise HostError(
            f"the reports can't be copied: {_said(err)}", hint=f"they are in {directory}"
        ) from err


def _said(err: OSError) -> str:
    return f"{err.filename}: {err.strerror}" if err.filename else str(err.strerror)


def _expect_unchanged(path: str) -> None:
    if os.path.realpath(path) != path:
        raise OSError(errno.ELOOP, "a symbolic link has come into its way", path)


def _copy_directory(source: str, target: str) -> None:
    if os.path.lexists(f"{source}/output.raw"):  # its logs could not be written without secrets
        return
    os.makedirs(target, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            goal = f"{target}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                _expect_unchanged(goal)
                _copy_directory(entry.path, goal)
            else:
                _copy_file(entry.path, goal)


def _copy_file(source: str, goal: str) -> None:
    if os.path.islink(goal):
        os.unlink(goal)
    opened = os.open(goal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(source, "rb") as reader, open(opened, "wb") as writer:
        shutil.copyfileobj(reader, writer)
