"""What a job without privileges left in a folder, taken over by one that may publish."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from overlayrun.batch.artifacts import Made, write_artifacts
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.publish import State, publish
from overlayrun.batch.reports.summary import write_summary
from overlayrun.batch.takeover import Received, import_bundles
from overlayrun.batch.task import Outcome
from overlayrun.batch.transcript import Transcript
from overlayrun.errors import UsageError

from .batch_reports import RUN, batch, ended, task

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what a summary and its bundles say


class Handover:
    """A report with bundles of three tasks, the third made from the second's work; and another clone."""

    def __init__(self, repo: UserRepo, place: Path) -> None:
        self.repo = repo
        self.base = repo.git("rev-parse", "HEAD")
        self.into = repo.at(place / "into.git")
        repo.git("clone", "--quiet", "--bare", str(repo.root), str(self.into.root))
        self.directory = place / "report"
        one, two = self.work("one", self.base), self.work("two", self.base)
        self.tips = {"one": one, "two": two, "three": self.work("three", two)}
        bases = {"one": self.base, "two": self.base, "three": two}
        rows = [
            ended(task(name), Outcome.OK, base=bases[name], tip=self.tips[name])
            for name in ("three", "one", "two")
        ]
        failed = ended(task("bad"), Outcome.FAILED, base=self.base, tip=one)
        lost = ended(task("lost"), Outcome.OK, base=self.base, tip=one, winner=False)
        write_summary(batch(*rows, failed, lost), str(self.directory))

    def ref(self, name: str) -> str:
        return f"refs/overlayrun/attempts/{RUN}/{name}/1"

    def work(self, name: str, base: str) -> str:
        tip = self.repo.git("commit-tree", "-p", base, "-m", name, f"{base}^{{tree}}")
        self.repo.git("update-ref", self.ref(name), tip)
        place = AttemptLayout(str(self.directory / "tasks" / name / "1"))
        Path(place.root).mkdir(parents=True)
        made = Made(git_dir=f"{self.repo.root}/.git", base=base, tip=tip, ref=self.ref(name), bundle=True)
        write_artifacts(place, Transcript(), (), made)
        return tip

    def bundle(self, name: str) -> Path:
        return self.directory / "tasks" / name / "1/result.bundle"

    def change(self, index: int = 1, **values: Any) -> None:
        """Change a row of the summary, and its last attempt (`last`)."""
        path = self.directory / "summary.json"
        summary = json.loads(path.read_text())
        summary["tasks"][index]["attempts"][-1] |= values.pop("last", {})
        summary["tasks"][index] |= values
        path.write_text(json.dumps(summary))

    def take(self, target: str = "main", **limits: int) -> dict[str, Received]:
        found = import_bundles(str(self.directory), str(self.into.root), target, **limits)
        return {each.publication.task: each for each in found}

    def problems(self, target: str = "main", **limits: int) -> dict[str, str]:
        return {name: each.problem for name, each in self.take(target, **limits).items() if each.problem}

    def refs(self) -> dict[str, str]:
        return {name: oid for name, oid in self.into.refs().items() if not name.startswith("refs/heads/")}


@pytest.fixture
def handover(repo: UserRepo, tmp_path: Path) -> Handover:
    (tmp_path / "report").mkdir()
    return Handover(repo, tmp_path)


@pytest.mark.by_both
def test_what_succeeded_comes_in_and_can_be_published(handover: Handover, tmp_path: Path) -> None:
    found = handover.take()
    assert sorted(found) == ["one", "three", "two"]
    assert not any(each.problem for each in found.values())
    assert handover.refs() == {handover.ref(name): tip for name, tip in handover.tips.items()}
    handover.into.git("fsck", "--strict", "--no-dangling")

    remote = handover.repo.at(tmp_path / "remote.git")
    handover.repo.git("clone", "--quiet", "--bare", str(handover.repo.root), str(remote.root))
    work = [each.publication for each in found.values()]
    done = publish(str(handover.into.root), str(remote.root), "agents", work, environ={})
    assert {each.state for each in done} == {State.PUBLISHED}
    assert remote.git("rev-parse", "agents/three") == handover.tips["three"]

    again = handover.take()
    assert again == found
    # A ref that holds something else does not move.
    handover.into.git("update-ref", handover.ref("one"), handover.base)
    assert handover.problems() == {
        "one": f"{handover.ref('one')} holds another commit already: {handover.base[:10]}"
    }


def test_one_fault_keeps_no_other_task(handover: Handover) -> None:
    bundle = handover.bundle("two")
    bundle.write_bytes(bundle.read_bytes()[:-5])
    problems = handover.problems()
    assert "what the bundle holds is not sound" in problems["two"]
    assert problems["three"] == f"its base {handover.tips['two'][:10]} is not in the history of main"
    assert list(handover.refs()) == [handover.ref("one")]


def test_work_on_what_the_target_does_not_have_is_refused(handover: Handover) -> None:
    """The base is there, in the repository, but on another branch."""
    elsewhere = handover.into.git("commit-tree", "-m", "elsewhere", f"{handover.base}^{{tree}}")
    handover.into.git("update-ref", "refs/heads/other", elsewhere)
    tree = handover.into.git("rev-parse", "main^{tree}")
    for base in (elsewhere, tree, "f" * 40):
        handover.change(1, last={"base": base})
        assert "is not in the history of main" in handover.problems()["one"]
    first = handover.into.git("rev-parse", "main~1")
    assert set(handover.problems(first)) == {"one", "two", "three"}


def test_what_the_summary_says_can_name_no_other_file_or_ref(handover: Handover, tmp_path: Path) -> None:
    real = handover.bundle("one")
    for name in ("../one", "one/../one", "-one", "one.lock", "", "a b", "one\n", "x" * 300, 5, None, ["one"]):
        handover.change(1, id=name)
        assert sorted(handover.take()) == ["three", "two"]
    handover.change(1, id="one", last={"attempt": "1/../1"})
    assert sorted(handover.take()) == ["three", "two"]
    for number in (0, -1, True, 1.0, 10**9):
        handover.change(1, last={"attempt": number})
        assert sorted(handover.take()) == ["three", "two"]
    for tip in ("HEAD", "--all", handover.tips["one"][:20], None, 5):
        handover.change(1, last={"attempt": 1, "tip": tip})
        assert sorted(handover.take()) == ["three", "two"]
    handover.change(1, last={"tip": handover.tips["one"]})
    # A link to a bundle, or a directory on the way that is one.
    outside = tmp_path / "outside"
    real.parent.rename(outside)
    real.parent.symlink_to(outside)
    assert handover.problems() == {"one": "its bundle is a link, or lies below one"}
    real.parent.unlink()
    real.parent.mkdir()
    os.mkfifo(real)
    assert "no file" in handover.problems()["one"]
    real.unlink()
    assert "can't be read" in handover.problems()["one"]
    assert sorted(handover.refs()) == [handover.ref("three"), handover.ref("two")]


def test_sizes_are_bounded(handover: Handover) -> None:
    size = handover.bundle("one").stat().st_size
    assert "at most" in handover.problems(largest=size - 1)["one"]
    assert handover.problems(total=size) != {}
    assert handover.problems() == {}


def test_a_folder_without_a_summary_of_ours_is_refused(repo: UserRepo, tmp_path: Path) -> None:
    tasks: list[Any] = []
    others = [{}, {"schema": 2, "run": "r", "tasks": tasks}, {"schema": 1, "tasks": tasks}]
    others += [{"schema": 1, "run": "../r", "tasks": tasks}, {"schema": 1, "run": "r", "tasks": {}}]
    with pytest.raises(UsageError):
        import_bundles(str(tmp_path), f"{repo.root}/.git", "main")
    for text in ("", "[]", "[" * 100_000, *map(json.dumps, others)):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(UsageError):
            import_bundles(str(tmp_path), f"{repo.root}/.git", "main")


def test_rows_that_are_none_are_passed_over(handover: Handover) -> None:
    path = handover.directory / "summary.json"
    summary = json.loads(path.read_text())
    good = summary["tasks"][1]
    odd = [None, 5, [], {}, good | {"attempts": []}, good | {"attempts": [None]}, good | {"succeeded": 1}]
    path.write_text(json.dumps(summary | {"tasks": [*odd, good, good]}))
    assert list(handover.take()) == ["one"]
