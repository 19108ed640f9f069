"""junit.xml: a batch for the viewers of test reports.

There is no one format. This keeps to what Jenkins' xUnit plugin demands (junit-10.xsd; it throws away a file
that breaks it) and Maven's Surefire writes; GitLab, dorny/test-reporter and junitparser read that too. So a
testcase has no <properties>: what they would hold is in the suite's, as `<task>/<name>`. Attempts before the
last one are Surefire's <flakyFailure>, <rerunFailure> and the like; who does not know them passes over them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from overlayrun.batch.reports.summary import (
    MODE,
    Verdict,
    cost_of,
    decisive,
    has_failed_to_land,
    is_error,
    reason_of,
    verdict_of,
    why_of,
    word_of,
)
from overlayrun.batch.reports.text import attempt_place, evidence, on_a_line, plain, tail
from overlayrun.batch.result import BatchReport, Result, TaskReport
from overlayrun.files import write_whole

# Neither the run nor a time is in a name: viewers follow a test through many runs by suite, class and name.
_SUITE: Final = "overlayrun batch"
_CLASS: Final = "batch"
_TOTAL: Final = 8 << 20  # bytes of logs in a file, about
_LOG: Final = (512, 16 << 10)  # bytes of each, at least and at most
_EARLIER: Final = 2 << 10  # bytes of each log of an attempt that did not decide
_LOGS: Final = 5  # of a task, about
_ELEMENT: Final = {Verdict.FAILED: "failure", Verdict.ERROR: "error", Verdict.SKIPPED: "skipped"}


def write_junit(report: BatchReport, directory: str) -> None:
    """Write junit.xml, whole, into the directory that also holds `tasks/`."""
    write_whole(f"{directory}/junit.xml", junit_xml(report, directory), durable=True, mode=MODE)


def junit_xml(report: BatchReport, directory: str) -> bytes:
    """The file's content: one suite, a testcase for each task in the order of the file.

    directory: where logs lie, below `tasks/`; a log that is missing is left out.
    """
    verdicts = Counter(map(verdict_of, report.tasks))
    counts = {
        "tests": str(len(report.tasks)),
        "failures": str(verdicts[Verdict.FAILED]),
        "errors": str(verdicts[Verdict.ERROR]),
        "time": _seconds(report.ended - report.started),
    }
    root = ET.Element("testsuites", {"name": _SUITE, **counts})
    about = {
        "skipped": str(verdicts[Verdict.SKIPPED]),
        # No zone: schemas allow none. It is UTC.
        "timestamp": datetime.fromtimestamp(report.started, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": "localhost",
        "id": "0",
        "package": _CLASS,
    }
    suite = ET.SubElement(root, "testsuite", {"name": _SUITE, **counts, **about})
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report):
        ET.SubElement(properties, "property", {"name": name, "value": on_a_line(value)})
    limit = min(_LOG[1], max(_LOG[0], _TOTAL // (_LOGS * max(1, len(report.tasks)))))
    for task in report.tasks:
        suite.append(_testcase(task, directory, limit))
    _add(suite, "system-out", f"exit code {report.status}")
    _add(suite, "system-err", report.why or "")
    ET.indent(root, " ")
    content: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return content + b"\n"


def _properties(report: BatchReport) -> Iterator[tuple[str, str]]:
    for name in ("run", "version", "base", "target", "engine", "jobs"):
        yield name, str(getattr(report, name) or "")
    yield "cost", _money(report.cost)
    yield "unpriced", str(report.unpriced)
    for task in report.tasks:
        yield from ((f"{task.task.id}/{name}", value) for name, value in _facts(task))


def _facts(task: TaskReport) -> Iterator[tuple[str, str]]:
    """What there is to know of a task besides its verdict."""
    last = decisive(task)
    yield "outcome", task.outcome.value
    yield "attempts", str(len(task.results))
    if task.landing:
        yield "landing", task.landing
    if last:
        yield "branch", last.branch
        yield "tip", last.tip or "none"
        yield "host", last.host
        cost = cost_of(task)
        yield "cost", "unknown" if cost is None else _money(cost)


def _testcase(task: TaskReport, directory: str, limit: int) -> ET.Element:
    """Children in the order of Surefire's schema: the verdict, attempts before, output."""
    last = decisive(task)
    group = task.task.group
    case = ET.Element(
        "testcase",
        {
            "name": task.task.id,
            "classname": _CLASS if group == task.task.id else f"{_CLASS}.{group}",
            "time": _seconds(last.seconds if last else 0.0),
        },
    )
    verdict = verdict_of(task)
    if verdict in _ELEMENT:
        has_logs = verdict is not Verdict.SKIPPED and not has_failed_to_land(task)
        logs = _logs(directory, last, limit) if last and has_logs else reason_of(task)
        _add(case, _ELEMENT[verdict], logs, type=word_of(task), message=reason_of(task))
    for result in task.results[:-1]:
        name = f"{'flaky' if task.succeeded else 'rerun'}{'Error' if is_error(result.outcome) else 'Failure'}"
        earlier = _add(case, name, None, type=result.outcome.value, message=why_of(result))
        _add(earlier, "stackTrace", _logs(directory, result, _EARLIER))
    _add(case, "system-out", _output(task, directory, limit))
    if last:
        _add(case, "system-err", tail(attempt_place(directory, last).stderr, limit))
    return case


def _output(task: TaskReport, directory: str, limit: int) -> str:
    """Facts, for viewers that show no properties, and the end of what it printed."""
    last = decisive(task)
    lines = [f"{name}: {on_a_line(value)}" for name, value in _facts(task)]
    if last and last.tip:
        lines.append(f"next: overlayrun diff {last.branch}")
    if last:
        lines += ["", tail(attempt_place(directory, last).stdout, limit)]
    return "\n".join(lines)


def _logs(directory: str, result: Result, limit: int) -> str:
    found = [f"{name}:\n{text}" for name, text in evidence(directory, result, limit)]
    return "\n\n".join([why_of(result), *found])


def _add(parent: ET.Element, name: str, text: str | None, **attributes: str) -> ET.Element:
    """A child whose text any reader of XML takes."""
    safe = {key: on_a_line(value) for key, value in attributes.items()}
    child = ET.SubElement(parent, name, safe)
    child.text = None if text is None else plain(text)
    return child


def _seconds(span: float) -> str:
    return f"{max(0.0, span):.3f}"


def _money(dollars: float) -> str:
    return f"{dollars:.4f} USD"
