from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from overlayrun.batch.reports.summary import Verdict, reason_of, verdict_of, write_summary
from overlayrun.batch.reports.text import on_a_line, plain, tail
from overlayrun.batch.result import Result
from overlayrun.batch.task import Outcome

from .batch_reports import HOSTILE, batch, ended, every_end, result, task, write_logs

pytestmark = pytest.mark.shared


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((files("overlayrun.batch.reports") / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every schema of an object within a schema."""
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    found = [each for part in inside for each in objects(part)]
    return [schema, *found] if isinstance(schema, dict) and "properties" in schema else found


def test_both_files_keep_their_schemas_and_say_what_happened(tmp_path: Path) -> None:
    report = every_end()
    write_logs(report, tmp_path)
    write_summary(report, str(tmp_path))

    summary = json.loads((tmp_path / "summary.json").read_text())
    validator("summary").validate(summary)
    assert (summary["schema"], summary["status"], summary["cost"], summary["unpriced"]) == (1, 1, 1.5, 2)
    assert summary["counts"]["ok"] == 3
    assert sum(summary["counts"].values()) == summary["total"] == len(report.tasks)
    assert summary["verdicts"] == {"passed": 3, "failed": 6, "error": 4, "skipped": 3}
    assert summary["succeeded"] == 4
    rows = {row["id"]: row for row in summary["tasks"]}
    assert list(rows) == [each.task.id for each in report.tasks]
    flaky = rows["flaky"]
    assert [each["outcome"] for each in flaky["attempts"]] == ["timeout", "failed", "ok"]
    assert (flaky["cost"], flaky["unpriced"], flaky["tip"]) == (0.75, 0, "c" * 40)
    assert (rows["infra"]["cost"], rows["infra"]["unpriced"]) == (None, 1)  # it was no number
    assert (rows["idle"]["cost"], rows["idle"]["unpriced"]) == (None, 1)
    assert rows["clashing"]["landing"] == "conflict"
    assert not rows["clashing"]["succeeded"]
    artifacts = flaky["attempts"][1]["artifacts"]
    assert artifacts["check"] == "tasks/flaky/2/check.log"
    assert set(artifacts) == {"stdout", "stderr", "check", "overlayrun", "result"}
    assert all((tmp_path / path).is_file() for path in artifacts.values())

    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    for line in lines:
        validator("result").validate(json.loads(line))
    written = [Result.from_json(json.loads(line)) for line in lines]
    made = [each for one in report.tasks for each in one.results]
    assert [(each.task, each.attempt, each.check) for each in written] == [
        (each.task, each.attempt, each.check) for each in made
    ]
    assert next(each for each in written if each.task == "infra").cost is None
    assert next(each for each in written if each.task == "ok") == next(
        each for each in made if each.task == "ok"
    )


def test_a_batch_without_tasks_has_a_summary(tmp_path: Path) -> None:
    write_summary(batch(target=None, why="nothing to do"), str(tmp_path))
    validator("summary").validate(json.loads((tmp_path / "summary.json").read_text()))
    assert (tmp_path / "results.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["summary", "result"])
def test_a_schema_allows_nothing_it_does_not_name(name: str) -> None:
    found = objects(validator(name).schema)
    assert found
    assert all(each["additionalProperties"] is False for each in found)


def test_a_row_with_a_word_too_much_or_a_wrong_outcome_is_refused() -> None:
    row = result(task("a"), Outcome.OK).to_json()
    good = validator("result")
    assert good.is_valid(row)
    assert not good.is_valid({**row, "more": 1})
    assert not good.is_valid({**row, "outcome": "fine"})
    assert not good.is_valid({name: value for name, value in row.items() if name != "tip"})


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_verdict_says_success_exactly_where_the_task_does(outcome: Outcome) -> None:
    usual = ended(task("a"), outcome)
    accepting = replace(usual, task=task("a", accept=(outcome,)))
    for one in (usual, accepting):
        if outcome not in (Outcome.NO_CHANGE, Outcome.CANCELLED, Outcome.SKIPPED):
            assert (verdict_of(one) is Verdict.PASSED) is one.succeeded
    landed_not = replace(accepting, landing="withheld")
    if outcome not in (Outcome.CANCELLED, Outcome.SKIPPED):
        assert verdict_of(landed_not) is Verdict.FAILED


def test_of_several_tries_before_a_judge_the_winner_alone_counts() -> None:
    tried = task("a-1", group="a", judge="score")
    for outcome in (Outcome.OK, Outcome.FAILED, Outcome.TIMEOUT):
        assert verdict_of(ended(tried, outcome, winner=False)) is Verdict.SKIPPED
    assert verdict_of(ended(tried, Outcome.OK, winner=True)) is Verdict.PASSED
    assert verdict_of(ended(tried, Outcome.OK)) is Verdict.FAILED
    assert reason_of(ended(tried, Outcome.OK)) == "the judge took none of its tries"
    assert reason_of(ended(tried, Outcome.OK, winner=False)) == "another try won"
    assert verdict_of(ended(task("a", judge="score"), Outcome.OK)) is Verdict.PASSED  # the only try


def test_text_is_what_a_terminal_leaves() -> None:
    assert plain("\x1b[1;31mred\x1b[0m\x1b(B\n10%\r\x1b[K100%\r\nnext\x1b]0;title\x07!") == "red\n100%\nnext!"
    assert plain("a\x1b]unfinished") == "a"
    assert on_a_line("a\n\n b\tc" + "x" * 400, 20) == "a b cxxxxxxxxxxxxxx…"
    assert "\u202e" not in plain(HOSTILE)


@settings(database=None, deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters() | st.sampled_from("\x1b[];:\r\n\x07\x9b\ud800"), max_size=200))
def test_any_text_is_left_without_control_characters_and_stays_so(text: str) -> None:
    made = plain(text)
    assert all(letter in "\t\n" or (letter >= " " and not "\x7f" <= letter < "\xa0") for letter in made)
    assert plain(made) == made
    made.encode()
    assert len(on_a_line(text, 50)) <= 50
    assert "\n" not in on_a_line(text)


def test_a_tail_holds_whole_lines_and_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert tail(str(path), 20).splitlines() == [
        f"[{path.stat().st_size - 18} bytes before this]",
        "line 998",
        "line 999",
    ]
    assert tail(str(path), 1 << 20).count("\n") == 999
    path.write_text("x" * 100)
    assert tail(str(path), 10).endswith("\n" + "x" * 10)
    (tmp_path / "link").symlink_to(path)
    assert (
        tail(str(tmp_path / "link"), 10) == tail(str(tmp_path / "none"), 10) == tail(str(tmp_path), 10) == ""
    )
