from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import junitparser
import pytest
from junitparser import xunit2

from overlayrun.batch.reports.junit import junit_xml, write_junit
from overlayrun.batch.task import Outcome

from .batch_reports import RUN, batch, ended, every_end, task, write_logs

pytestmark = pytest.mark.shared

# junit-10.xsd of Jenkins' xUnit plugin in words: children and attributes of each element.
_RERUN: Final = ({"stackTrace", "system-out", "system-err"}, {"message", "type"})
_RERUNS: Final = {"rerunFailure", "rerunError", "flakyFailure", "flakyError"}
_VERDICTS: Final = {"skipped", "error", "failure"}
_COUNTS: Final = {"name", "tests", "failures", "errors", "time"}
ALLOWED: Final[dict[str, tuple[set[str], set[str]]]] = {
    "testsuites": ({"testsuite"}, _COUNTS),
    "testsuite": (
        {"properties", "testcase", "system-out", "system-err"},
        _COUNTS | {"group", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
    ),
    "properties": ({"property"}, set()),
    "property": (set(), {"name", "value"}),
    "testcase": (
        _VERDICTS | _RERUNS | {"system-out", "system-err"},
        {"name", "time", "classname", "group"},
    ),
    **{name: (set(), {"message", "type"}) for name in _VERDICTS},
    **dict.fromkeys(_RERUNS, _RERUN),
    **{name: (set(), set()) for name in ("stackTrace", "system-out", "system-err")},
}
REQUIRED: Final = {
    "testsuite": {"name", "tests", "failures", "errors"},
    "testcase": {"name"},
    "property": {"name", "value"},
    # Ant's schema (windyroad/JUnit-Schema) asks for these, too.
    **{name: {"type"} for name in (*_RERUNS, "error", "failure")},
}
# Order: windyroad's for a suite, Surefire's for a case.
ORDER: Final = {
    "testsuite": ["properties", "testcase", "system-out", "system-err"],
    "testcase": ["failure", "error", "skipped", *sorted(_RERUNS), "system-out", "system-err"],
}


def faults(element: ET.Element) -> Iterator[str]:
    """What Jenkins' schema has against an element and those below it."""
    children, attributes = ALLOWED[element.tag]
    found = [child.tag for child in element]
    yield from (f"<{tag}> in <{element.tag}>" for tag in found if tag not in children)
    yield from (f"{name}= at <{element.tag}>" for name in element.attrib.keys() - attributes)
    yield from (
        f"no {name}= at <{element.tag}>" for name in REQUIRED.get(element.tag, set()) - element.attrib.keys()
    )
    ranks = [ORDER[element.tag].index(tag) for tag in found] if element.tag in ORDER else []
    if ranks != sorted(ranks):
        yield f"order in <{element.tag}>: {found}"
    if not re.fullmatch(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?", element.get("time", "")):
        yield f"time {element.get('time')}"
    for child in element:
        yield from faults(child)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a batch that ended in every way."""
    directory = tmp_path_factory.mktemp("report")
    report = every_end()
    write_logs(report, directory)
    write_junit(report, str(directory))
    return directory


@pytest.fixture(scope="module")
def root(place: Path) -> ET.Element:
    return ET.parse(place / "junit.xml").getroot()


def case(root: ET.Element, name: str) -> ET.Element:
    found = root.find(f"testsuite/testcase[@name='{name}']")
    assert found is not None
    return found


def test_it_keeps_to_the_schema_that_jenkins_demands(root: ET.Element) -> None:
    assert list(faults(root)) == []
    suite = root[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))
    assert all(len(_VERDICTS & {child.tag for child in each}) <= 1 for each in suite.iter("testcase"))


def test_each_outcome_has_its_verdict(root: ET.Element) -> None:
    said = {}
    for each in root.iter("testcase"):
        found = next(((child.tag, child.get("type")) for child in each if child.tag in _VERDICTS), None)
        said[each.get("name")] = found
    assert said == {
        "ok": None,
        "flaky": None,
        "idle": ("skipped", "no-change"),
        "idle-is-bad": ("failure", "no-change"),
        "empty": ("failure", "empty"),
        "rejected": ("failure", "rejected"),
        "failed": ("failure", "failed"),
        "tested": ("failure", "check-failed"),
        "slow": ("error", "timeout"),
        "limited": ("error", "rate-limited"),
        "lost": ("error", "lost"),
        "infra": ("error", "infra"),
        "stopped": ("skipped", "cancelled"),
        "never": ("skipped", "skipped"),
        "clashing": ("failure", "conflict"),
        "fine-empty": None,
    }
    tested = case(root, "tested")
    assert tested.get("classname") == "batch.tries"
    assert tested.get("time") == "1.500"
    assert "tested check.log" in str(tested[0].text)
    assert case(root, "slow")[0].get("message") == "no output for 60 s"
    assert case(root, "never").get("time") == "0.000"
    assert case(root, "clashing")[0].get("message") == "conflict: in a, b"


def test_attempts_before_the_last_are_told_as_surefire_tells_them(root: ET.Element) -> None:
    flaky = [(child.tag, child.get("type")) for child in case(root, "flaky") if child.tag in _RERUNS]
    assert flaky == [("flakyError", "timeout"), ("flakyFailure", "failed")]
    again = [child.tag for child in case(root, "failed") if child.tag in _RERUNS]
    assert again == ["rerunFailure"]


def test_facts_stand_in_the_suite_and_in_the_output(root: ET.Element) -> None:
    properties = {each.get("name"): each.get("value") for each in root.iter("property")}
    assert properties["run"] == RUN
    assert properties["flaky/branch"] == f"batch/{RUN}/flaky"
    assert (properties["flaky/attempts"], properties["flaky/tip"]) == ("3", "c" * 40)
    assert (properties["idle/cost"], properties["lost/host"]) == ("unknown", "worker-2")
    assert (properties["infra/cost"], properties["flaky/cost"]) == ("unknown", "0.7500 USD")
    output = str(case(root, "flaky").findtext("system-out"))
    assert f"next: overlayrun diff batch/{RUN}/flaky" in output
    assert "flaky stdout.log" in output
    assert "flaky stderr.log" in str(case(root, "flaky").findtext("system-err"))


def test_hostile_text_is_text(place: Path, root: ET.Element) -> None:
    raw = (place / "junit.xml").read_text()
    assert not re.search("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", raw)
    assert not list(root.iter("script"))
    message = case(root, "failed")[0]
    assert "<script>alert(1)</script>" in str(message.text)
    assert "[31m" not in str(message.text)
    assert len(message.get("message", "")) <= 300


def test_readers_count_the_same(place: Path) -> None:
    for kind in (junitparser.JUnitXml, xunit2.JUnitXml):
        read = kind.fromfile(str(place / "junit.xml"))
        assert (read.tests, read.failures, read.errors) == (16, 6, 4)
        suite: Any = next(iter(read))
        assert suite.skipped == 3
        written = (suite.tests, suite.failures, suite.errors)
        suite.update_statistics()
        assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (*written, 3)
    cases: dict[str, Any] = {
        each.name: each for each in next(iter(xunit2.JUnitXml.fromfile(str(place / "junit.xml"))))
    }
    assert cases["ok"].is_passed
    assert cases["flaky"].is_flaky
    assert cases["idle"].is_skipped
    assert [each.type for each in cases["slow"].result] == ["timeout"]
    assert [type(each).__name__ for each in cases["failed"].rerun_failures()] == ["RerunFailure"]


def test_a_large_batch_stays_small_enough_for_viewers(tmp_path: Path) -> None:
    report = batch(*(ended(task(f"t{number}"), Outcome.FAILED) for number in range(400)))
    write_logs(report, tmp_path, "x" * 40_000)
    assert len(junit_xml(report, str(tmp_path))) < 10 << 20  # GitLab takes 30 MB, others less


def test_an_empty_batch_and_one_without_logs_are_written(tmp_path: Path) -> None:
    for report in (batch(why="the budget is spent"), every_end()):
        root = ET.fromstring(junit_xml(report, str(tmp_path)))
        assert list(faults(root)) == []
        assert root.get("tests") == str(len(report.tasks))
