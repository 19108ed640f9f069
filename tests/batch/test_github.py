from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from overlayrun.batch.reports.github import (
    LIMIT,
    outputs,
    summary_markdown,
    tell_github,
    workflow_commands,
    write_markdown,
)
from overlayrun.batch.task import Outcome
from overlayrun.errors import HostError

from .batch_reports import HOSTILE, RUN, batch, ended, every_end, task, write_logs

pytestmark = pytest.mark.shared


def tokens(text: str) -> list[Token]:
    """Every token that a renderer makes of it, those within lines too."""
    found = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [inner for token in found for inner in (token, *(token.children or ()))]


def rows(text: str) -> list[list[str]]:
    """Cells of the table, as rendered."""
    cells = [token.content for token in tokens(text) if token.type == "inline" and token.level == 4]
    return [cells[start : start + 9] for start in range(0, len(cells), 9)]


def read_outputs(text: str) -> dict[str, str]:
    """As the runner reads the file: `name<<DELIMITER`, lines, DELIMITER."""
    found = {}
    while text:
        name, _, rest = text.partition("<<")
        end, _, rest = rest.partition("\n")
        value, _, text = rest.partition(f"\n{end}\n")
        found[name] = value
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write_logs(every_end(), directory)
    return directory


def test_the_summary_has_a_row_a_task_and_logs_of_what_failed(place: Path) -> None:
    report = every_end()
    write_markdown(report, str(place))
    text = (place / "summary.md").read_text()
    assert text == summary_markdown(report, str(place))
    assert "4 of 16 tasks succeeded, 1 min 40 s, cost USD 1.50, unknown for 2, exit code 1." in text
    _, *listed = rows(text)
    ids = [row[1].strip("`") for row in listed]
    assert sorted(ids) == sorted(each.task.id for each in report.tasks)
    assert ids[0] == "idle-is-bad"
    assert set(ids[-3:]) == {"ok", "flaky", "fine-empty"}
    by_id = dict(zip(ids, listed, strict=True))
    assert by_id["ok"][2] == "ok, landed, winner"
    assert by_id["clashing"][2:4] == ["ok, conflict", "`conflict: in a, b`"]
    assert by_id["infra"][8] == by_id["idle"][8] == ""
    assert by_id["flaky"][4:] == [f"`batch/{RUN}/flaky`", "0 files +0 -0", "3", "1.5 s", "0.75"]
    headings = [each.content for each in tokens(text) if each.type == "inline" and each.level == 1]
    assert {"`tested`: check-failed", "`clashing`: conflict"} <= set(headings)
    assert "clashing stderr.log" not in text  # it tells of success
    assert not any("`ok`" in heading for heading in headings[1:])
    fences = [each.content for each in tokens(text) if each.type == "fence"]
    assert any("tested check.log" in fence for fence in fences)


def test_hostile_text_does_not_leave_its_code(place: Path) -> None:
    text = summary_markdown(every_end(), str(place))
    found = tokens(text)
    html = [each.content.strip() for each in found if each.type.startswith("html")]
    assert all(re.fullmatch(r"<details><summary>[a-z]+\.log</summary>|</details>", each) for each in html)
    assert html.count("</details>") == len(html) / 2
    assert not [each.type for each in found if each.type in ("link_open", "image", "code_block")]
    outside = "".join(each.content for each in found if each.type == "text")
    assert not re.search("octocat|evil|script|pipe|injected", outside)
    assert all(len(row) == 9 for row in rows(text))
    spans = [each.content for each in found if each.type == "code_inline"]
    assert any("@octocat" in span for span in spans)
    assert sum(HOSTILE.count("@octocat") for each in found if each.type == "fence") > 10


@pytest.mark.parametrize("limit", [0, 1500, 4000, 20_000, 100_000])
def test_a_limit_leaves_out_whole_tasks_and_says_how_many(tmp_path: Path, limit: int) -> None:
    report = batch(*(ended(task(f"t{number}"), Outcome.FAILED) for number in range(120)))
    write_logs(report, tmp_path, "é" * 1000)
    text = summary_markdown(report, str(tmp_path), limit)
    assert len(text.encode()) <= limit
    if not text:
        assert limit == 0
        return
    shown = len(rows(text)) - 1
    logs = text.count("### `t")
    left = {key: int(count) for count, key in re.findall(r"(\d+) tasks? left out (of the table|here)", text)}
    assert (left.get("of the table", 0), left.get("here", 0)) == (120 - shown, 120 - logs)
    assert text.count("<details>") == text.count("</details>")
    assert logs < 120


def test_commands_are_ten_of_a_kind_and_can_not_be_forged() -> None:
    failed = [ended(task(f"f{number}"), Outcome.FAILED, detail=HOSTILE) for number in range(14)]
    late = ended(task("late"), Outcome.TIMEOUT, detail="100%, or: nothing")
    report = batch(
        late, *failed, ended(task("idle"), Outcome.NO_CHANGE), ended(task("never"), Outcome.SKIPPED)
    )
    lines = workflow_commands(report)
    assert all("\n" not in line and "\r" not in line and "\x1b" not in line for line in lines)
    kinds = [line.partition(" ")[0] for line in lines]
    assert kinds == ["::error"] * 10 + ["::warning", "::notice"]
    assert lines[0].startswith("::error title=f0%3A failed::red ")
    assert lines[0].endswith(f"(branch batch/{RUN}/f0)")
    assert lines[9] == "::error title=6 tasks more::f9, f10, f11, f12, f13, late"
    assert workflow_commands(batch(ended(task("t-1", group="t", judge="j"), Outcome.OK, winner=False))) == []
    alone = workflow_commands(batch(late))
    assert alone == [f"::error title=late%3A timeout::100%25, or: nothing (branch batch/{RUN}/late)"]


def test_outputs_are_read_back_whatever_is_in_them() -> None:
    report = every_end()
    values = read_outputs(outputs(report, "/tmp/x\nstatus<<EOF\n0\nEOF"))
    assert values["report"] == "/tmp/x\nstatus<<EOF\n0\nEOF"
    assert (values["run"], values["status"], values["total"], values["succeeded"]) == (RUN, "1", "16", "4")
    assert json.loads(values["branches"]) == [f"batch/{RUN}/{name}" for name in ("ok", "flaky", "fine-empty")]
    assert "slow" in json.loads(values["failed"])
    assert outputs(report, "x") != outputs(report, "x")


def test_only_what_the_environment_names_is_told(place: Path, tmp_path: Path) -> None:
    report = every_end()
    assert tell_github(report, str(place), {}) == []
    summary, output = tmp_path / "summary", tmp_path / "output"
    summary.write_text("before")
    output.write_text("a=b\n")
    variables = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)}
    assert tell_github(report, str(place), variables) == []
    assert summary.read_text() == "before" + summary_markdown(report, str(place), LIMIT - 6)
    assert output.read_text().startswith("a=b\nrun<<")
    lines = tell_github(report, str(place), {"GITHUB_ACTIONS": "true"})
    assert lines == workflow_commands(report)
    summary.write_bytes(b"x" * LIMIT)
    tell_github(report, str(place), variables)
    assert summary.stat().st_size == LIMIT  # no room: what another command wrote stays whole
    with pytest.raises(HostError, match="can't be written"):
        tell_github(report, str(place), {"GITHUB_OUTPUT": str(tmp_path)})
