"""All reports of a run at once, and copies of them for CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from overlayrun.batch.reports.github import write_markdown
from overlayrun.batch.reports.html import write_html
from overlayrun.batch.reports.junit import write_junit
from overlayrun.batch.reports.summary import write_summary
from overlayrun.batch.result import BatchReport
from overlayrun.errors import HostError


def write_reports(report: BatchReport, directory: str, secrets: Sequence[str]) -> None:
    """Write every report into `directory`, which holds `tasks/` already. secrets: values that none may show."""
    write_summary(report, directory)
    write_junit(report, directory)
    write_markdown(report, directory)
    write_html(report, directory, secrets)


def copy_reports(directory: str, target: str | None, junit: str | None) -> None:
    """Copy the reports into the directory `target`, and the JUnit file to the path `junit`; None for neither.

    What else is in the directory stays. Raises HostError.
    """
    try:
        if target:
            shutil.copytree(directory, target, dirs_exist_ok=True)
        if junit:
            os.makedirs(os.path.dirname(os.path.abspath(junit)), exist_ok=True)
            shutil.copyfile(f"{directory}/junit.xml", junit)
    except OSError as err:
        raise HostError(f"the reports can't be copied: {err}", hint=f"they are in {directory}") from err
