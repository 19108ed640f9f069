from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from conftest import UserRepo

from overlayrun.batch.landing import is_chosen, land
from overlayrun.batch.result import Result, TaskReport
from overlayrun.batch.task import Outcome, Task
from overlayrun.reconcile.events import Event, EventKind
from overlayrun.reconcile.settings import ExecPolicy, Settings
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

pytestmark = pytest.mark.shared  # what lands, and the words about it

CHECK: Final = "test ! -e bad"


def task(name: str, *needs: str, judge: str | None = None, group: str | None = None) -> Task:
    return Task(id=name, command=("true",), branch=name, group=group or name, needs=needs, judge=judge)


def report_of(
    repo: UserRepo,
    one: Task,
    outcome: Outcome = Outcome.OK,
    *,
    tip: str | None = None,
    winner: bool | None = None,
) -> TaskReport:
    result = Result(
        run="r",
        task=one.id,
        attempt=1,
        outcome=outcome,
        started=0.0,
        ended=1.0,
        host="local",
        branch=one.branch,
        base=repo.git("rev-parse", "main"),
        ref=f"refs/overlayrun/attempts/r/{one.id}/1",
        tip=tip,
    )
    return TaskReport(task=one, outcome=outcome, results=(result,), winner=winner)


def made(repo: UserRepo, one: Task, script: str, *options: str, winner: bool | None = None) -> TaskReport:
    """A task whose attempt ran `script` in its branch."""
    repo.inside(script, "--dirty", "ignore", *options, branch=one.branch)
    return report_of(repo, one, tip=repo.git("rev-parse", one.branch), winner=winner)


def landed(
    repo: UserRepo, reports: list[TaskReport], settings: Settings
) -> tuple[dict[str, TaskReport], list[Event]]:
    """What each task came to, and what was told."""
    place = find_repository(str(repo.root))
    events: list[Event] = []
    after = land(place, open_state(place.common_dir), reports, settings, events.append)
    assert [each.task for each in after] == [each.task for each in reports]
    return {each.task.id: each for each in after}, events


@pytest.fixture
def _at_home(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's environment, which the reconciler's own runs take from this process."""
    for name, value in repo.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_at_home")
def test_what_succeeded_lands_and_every_other_end_is_told(repo: UserRepo) -> None:
    first = made(repo, task("first"), "echo first >shared")
    reports = [
        made(repo, task("on-first", "first"), "echo more >>shared", "--base", "first"),
        first,
        made(repo, task("second"), "echo second >shared"),
        made(repo, task("after-second", "second"), "echo x >own"),
        made(repo, task("after-tries", "loser"), "echo x >after"),
        made(repo, task("sick"), "echo x >bad"),
        made(repo, task("carrier"), "mkdir -p .vscode; echo '{}' >.vscode/tasks.json"),
        made(repo, task("moved"), "echo x >moved-file"),
        report_of(repo, task("idle"), Outcome.NO_CHANGE),
        report_of(repo, task("failed"), Outcome.FAILED),
        report_of(repo, task("lost"), tip=repo.git("rev-parse", "main")),
        made(repo, task("loser", judge="j", group="tries"), "echo 1 >tried", winner=False),
        made(repo, task("winner", judge="j", group="tries"), "echo 2 >tried", winner=True),
    ]
    repo.git("branch", "--force", "moved", "main")

    after, events = landed(repo, reports, Settings(check=CHECK))

    assert {name: each.landing for name, each in after.items()} == {
        "on-first": "landed",
        "first": "landed",
        "second": "conflict",
        "after-second": "withheld",
        "after-tries": "landed",
        "sick": "check failed",
        "carrier": "withheld",
        "moved": "withheld",
        "idle": "nothing to land",
        "failed": None,
        "lost": "withheld",
        "loser": None,
        "winner": "landed",
    }
    assert repo.show("main", "shared") == "first\nmore\n"
    assert repo.show("main", "tried") == "2\n"
    assert not {"bad", "own", "moved-file", ".vscode/tasks.json"} & repo.files("main").keys()
    assert (repo.root / "tried").read_text() == "2\n"
    told = {name: str(each.landing_detail) for name, each in after.items()}
    assert told["second"] == "in shared: overlayrun conflicts second"
    assert told["after-second"] == "it needs second, which did not land"
    assert told["sick"] == "the check failed with status 1, twice: overlayrun log --checks sick"
    assert ".vscode/tasks.json" in told["carrier"]
    assert "overlayrun approve carrier" in told["carrier"]
    assert "was moved" in told["moved"]
    assert "refs/overlayrun/attempts/r/lost/1" in told["lost"]
    assert [after[name].succeeded for name in ("first", "idle", "second", "failed")] == [
        True,
        True,
        False,
        False,
    ]
    order = [event.branch for event in events if event.kind is EventKind.LANDED]
    assert order.index("first") < order.index("on-first")
    assert order.index("winner") < order.index("after-tries")

    # Again, with files that run code agreed to: nothing lands twice, the rest is tried again.
    main = repo.git("rev-parse", "main")
    again, _ = landed(repo, list(after.values()), Settings(exec=ExecPolicy.ALLOW))
    assert again["first"].landing == again["winner"].landing == "landed"
    assert again["second"].landing == "conflict"
    assert again["sick"].landing == "landed"  # no check this time
    assert again["carrier"].landing == "landed"
    assert repo.git("rev-list", "--count", "--first-parent", f"{main}..main") == "2"


@pytest.mark.usefixtures("_at_home")
def test_what_can_not_be_landed_on_withholds_and_raises_nothing(repo: UserRepo) -> None:
    repo.git("branch", "gone")
    reports = [made(repo, task("nowhere"), "echo x >new", "--into", "gone")]
    repo.git("branch", "--delete", "--quiet", "gone")
    repo.git("checkout", "--quiet", "--detach")
    reports.append(made(repo, task("detached"), "echo x >other"))

    after, _ = landed(repo, reports, Settings())

    assert [each.landing for each in after.values()] == ["withheld", "withheld"]
    assert "'gone'" in str(after["nowhere"].landing_detail)
    assert "overlayrun merge detached --into BRANCH" in str(after["detached"].landing_detail)


def test_with_a_judge_the_winner_alone_is_to_land(repo: UserRepo) -> None:
    plain, tried, alone = task("a"), task("a-1", judge="j", group="a"), task("a", judge="j")
    chosen = [
        report_of(repo, plain),
        report_of(repo, plain, Outcome.NO_CHANGE),
        report_of(repo, replace(plain, group="matrix")),
        report_of(repo, tried, winner=True),
        report_of(repo, alone),
    ]
    left = [
        report_of(repo, plain, Outcome.FAILED),
        report_of(repo, tried, winner=False),
        report_of(repo, tried),  # the judge took none
        report_of(repo, tried, Outcome.CHECK_FAILED, winner=True),
        report_of(repo, alone, winner=False),
    ]
    assert [is_chosen(each) for each in chosen] == [True] * len(chosen)
    assert [is_chosen(each) for each in left] == [False] * len(left)
