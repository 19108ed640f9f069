"""A batch that ended in every way, and the logs it left, some of them hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from overlayrun.batch.result import BatchReport, CheckResult, Result, TaskReport
from overlayrun.batch.task import Outcome, Task

RUN: Final = "1123-swift-river"
HOSTILE: Final = (
    "\x1b[31mred\x1b[0m \x1b]8;;https://evil.invalid\x07link\x1b]8;;\x07 ]]> &amp; <script>alert(1)</script>"
    " </details></pre> ` <b>out</b> ```\n````\n~~~ | pipe \\| @octocat https://evil.invalid [x](https://evil.invalid)\n"
    "::error::injected\n##[error]old\n%0A::set-output name=x::y\n"
    "nul\0 bell\x07 c1\x9b surrogate\udc80 nonchar\uffff turned\u202eback 50%\r100%\n"
)
"""What an agent could print; a lone surrogate and a non-character included."""


def task(name: str, **given: Any) -> Task:
    return Task(**{"id": name, "command": ("true",), "branch": f"batch/{RUN}/{name}", "group": name, **given})


def result(one: Task, outcome: Outcome, attempt: int = 1, **given: Any) -> Result:
    usual = {
        "run": RUN,
        "task": one.id,
        "attempt": attempt,
        "outcome": outcome,
        "started": 1_700_000_000.0 + 10 * attempt,
        "ended": 1_700_000_001.5 + 10 * attempt,
        "host": "local",
        "branch": one.branch,
        "base": "b" * 40,
        "ref": f"refs/overlayrun/attempts/{RUN}/{one.id}/{attempt}",
        "status": 0,
        "cost": 0.25,
    }
    return Result(**{**usual, **given})


def ended(one: Task, outcome: Outcome, *earlier: Outcome, **given: Any) -> TaskReport:
    """A task with its attempts. given: of the report, or of its last result."""
    own = {
        name: given.pop(name) for name in ("landing", "landing_detail", "winner", "detail") if name in given
    }
    results = [result(one, before, number) for number, before in enumerate(earlier, 1)]
    if outcome is not Outcome.SKIPPED:
        results.append(
            result(one, outcome, len(results) + 1, **{"detail": own.get("detail"), "tip": "c" * 40, **given})
        )
    return TaskReport(task=one, outcome=outcome, results=tuple(results), **own)


def batch(*tasks: TaskReport, **given: Any) -> BatchReport:
    usual = {
        "run": RUN,
        "version": "0.1.0",
        "repository": "/home/u/repo",
        "base": "b" * 40,
        "target": "main",
        "engine": "local",
        "jobs": 4,
        "started": 1_700_000_000.0,
        "ended": 1_700_000_100.0,
        "tasks": tasks,
        "status": 1,
        "cost": 1.5,
        "unpriced": 2,
    }
    return BatchReport(**{**usual, **given})


def every_end() -> BatchReport:
    """Each outcome once and what makes a difference to it."""
    check = CheckResult(command="pytest -q", status=1, seconds=0.5)
    return batch(
        ended(
            task("ok"), Outcome.OK, winner=True, score=3.5, landing="landed", landing_detail="main is at c"
        ),
        ended(task("flaky"), Outcome.OK, Outcome.TIMEOUT, Outcome.FAILED),
        ended(task("idle"), Outcome.NO_CHANGE, tip=None, cost=None),
        ended(task("idle-is-bad", accept=(Outcome.OK,)), Outcome.NO_CHANGE, tip=None),
        ended(task("empty"), Outcome.EMPTY, tip=None),
        ended(task("rejected"), Outcome.REJECTED, detail="external_directory /etc"),
        ended(task("failed"), Outcome.FAILED, Outcome.FAILED, status=3, detail=HOSTILE),
        ended(task("tested", group="tries"), Outcome.CHECK_FAILED, check=check),
        ended(task("slow"), Outcome.TIMEOUT, detail="no output for 60 s"),
        ended(task("limited"), Outcome.RATE_LIMITED),
        ended(task("lost"), Outcome.LOST, host="worker-2"),
        ended(task("infra"), Outcome.INFRA, status=None, tip=None, cost=float("nan")),
        ended(task("stopped"), Outcome.CANCELLED),
        ended(task("never"), Outcome.SKIPPED, detail="it needs failed, which failed"),
        ended(task("clashing"), Outcome.OK, landing="conflict", landing_detail="in a, b"),
        ended(task("fine-empty", accept=(Outcome.OK, Outcome.EMPTY)), Outcome.EMPTY),
    )


def write_logs(report: BatchReport, directory: Path, text: str = HOSTILE) -> None:
    """Logs of all attempts below `directory`/tasks, as an attempt leaves them."""
    for one in (result for each in report.tasks for result in each.results):
        place = directory / "tasks" / one.task / str(one.attempt)
        place.mkdir(parents=True)
        for name in ("stdout.log", "stderr.log", "check.log", "overlayrun.log"):
            (place / name).write_bytes(f"{one.task} {name}\n{text}".encode("utf-8", "surrogatepass"))
        (place / "result.json").write_text("{}")
