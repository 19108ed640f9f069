"""The conflict commit tells a resolver all that is known: versions, messages of both sides, what else changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from overlayrun.account import Session
from overlayrun.model import CommitId
from overlayrun.reconcile import conflict as described
from overlayrun.reconcile.conflict import declared_in, instruction, write_conflict
from overlayrun.store.merger import merge_once
from overlayrun.store.trees import SYMLINK

from .conflict_world import Clash, Scratch

pytestmark = pytest.mark.shared  # the text of a commit


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch.make(tmp_path)


def show(clash: Clash, commit: CommitId, path: str) -> str:
    return clash.scratch.git("cat-file", "blob", f"{commit}:{path}")


def read(clash: Clash, commit: CommitId, directory: str = ".overlayrun") -> dict[str, Any]:
    data: dict[str, Any] = json.loads(show(clash, commit, f"{directory}/CONFLICT.json"))
    return data


@pytest.fixture
def history(scratch: Scratch) -> Clash:
    """Two commits on our side and one on theirs that touch `f`, others that do not."""
    base = scratch.commit({"f": "1\n", "both": "a\nb\nc\nd\ne\n", "other": "1\n"})
    ours = scratch.commit(
        {"f": "2\n"}, base, message="Make it two\n\nBecause of x.\n\nOverlayrun-Branch: one"
    )
    ours = scratch.commit({"other": "2\n", "both": "A\nb\nc\nd\ne\n"}, ours, message="Unrelated")
    ours = scratch.commit({"f": "3\n"}, ours, message="Make it three")
    theirs = scratch.commit({"f": "9\n", "both": "a\nb\nc\nd\nE\n"}, base, message="Nine it is")
    return Clash(scratch, base, ours, theirs, merge_once(scratch.repo.git_dir, ours, theirs))


def test_its_parents_are_both_sides_and_its_tree_the_automatic_merge(history: Clash) -> None:
    commit = write_conflict(history.repo, history.case())
    assert history.scratch.git("rev-list", "--parents", "-1", commit).split()[1:] == [
        history.tip,
        history.source,
    ]
    changed = history.scratch.git("diff-tree", "-r", "--name-only", history.merged.tree, commit).split("\n")
    assert changed
    assert all(path.startswith(".overlayrun/") for path in changed)
    assert "<<<<<<<" in show(history, commit, "f")


def test_each_side_is_told_by_its_commits_messages(history: Clash) -> None:
    data = read(history, write_conflict(history.repo, history.case(prompt="Please make it nine")))
    (only,) = data["conflicts"]
    ours = [commit["message"] for commit in only["ours_commits"]["commits"]]
    assert ours == [["Make it three"], ["Make it two", "", "Because of x.", "", "Overlayrun-Branch: one"]]
    assert (only["ours_commits"]["count"], only["theirs_commits"]["count"]) == (2, 1)
    told = only["theirs_commits"]["commits"][0]
    assert told["message"] == ["Nine it is"]
    assert (told["id"], told["author"]) == (history.source, "A U Thor <author@example.invalid>")
    assert told["time"] == history.repo.commit(history.source).time
    assert data["branch"] == {
        "branch": "overlay/fix",
        "commit": history.source,
        "prompt": "Please make it nine",
    }
    assert data["target"] == {"branch": "main", "commit": history.tip}
    assert (data["schema"], data["directory"], data["base"]) == (1, ".overlayrun", history.base)


def test_the_prompts_of_the_agents_session_are_told(history: Clash) -> None:
    case = history.case(prompt="Please make it nine")
    case.record.session = Session(prompts=("Please make it nine", "No, ten", "x" * 30_000)).to_json()
    prompt = read(history, write_conflict(history.repo, case))["branch"]["prompt"]
    assert prompt.startswith("Please make it nine\n\nNo, ten\n\nxxx")
    assert len(prompt) == 20_000


def test_the_documented_keys_are_those_that_are_there(history: Clash) -> None:
    data = read(history, write_conflict(history.repo, history.case()))
    documented = re.findall(r"\w+", described.__doc__ or "")
    assert {*data, *data["conflicts"][0], *data["declare"], *data["both_touched"]} <= {*documented}
    assert data["conflicts"][0]["ours_commits"]["commits"][0].keys() == {"id", "author", "time", "message"}


def test_the_three_versions_are_files(history: Clash) -> None:
    commit = write_conflict(history.repo, history.case())
    stages = read(history, commit)["conflicts"][0]["stages"]
    content = [show(history, commit, stages[side]["file"]) for side in ("base", "ours", "theirs")]
    assert content == ["1", "3", "9"]
    assert stages["ours"]["mode"] == "100644"
    assert stages["ours"]["oid"] == history.scratch.git("rev-parse", f"{history.tip}:f")


def test_the_diffs_show_the_conflicted_path_first(history: Clash) -> None:
    commit = write_conflict(history.repo, history.case())
    diff = show(history, commit, ".overlayrun/ours.diff")
    headers = [line for line in diff.split("\n") if line.startswith("diff --git")]
    assert headers == [f"diff --git a/{name} b/{name}" for name in ("f", "both", "other")]
    assert "+3" in diff
    assert "+9" in show(history, commit, ".overlayrun/theirs.diff")
    assert read(history, commit)["both_touched"] == {"count": 1, "paths": ["both"]}


def test_a_long_diff_is_cut_and_says_so(scratch: Scratch) -> None:
    long = "".join(f"{number}\n" for number in range(100_000))
    clash = scratch.clash({"f": "1\n"}, {"f": "2\n", "long": long}, {"f": "3\n"})
    diff = show(clash, write_conflict(clash.repo, clash.case()), ".overlayrun/ours.diff")
    assert len(diff) < len(long)
    assert diff.endswith(f"[cut here; all of it: git diff {clash.base} {clash.tip}]")


def test_a_diff_of_many_files_is_cut_too(scratch: Scratch) -> None:
    many = {f"d/{number}": "1\n" for number in range(600)}
    clash = scratch.clash({"f": "1\n"}, {"f": "2\n"}, {"f": "3\n", **many})
    commit = write_conflict(clash.repo, clash.case())
    assert show(clash, commit, ".overlayrun/theirs.diff").endswith(f"git diff {clash.base} {clash.source}]")
    assert "cut here" not in show(clash, commit, ".overlayrun/ours.diff")


def test_an_earlier_tries_log_comes_along(history: Clash) -> None:
    without = write_conflict(history.repo, history.case())
    assert read(history, without)["log"] is None
    commit = write_conflict(history.repo, history.case(log="2 tests failed\n"))
    assert show(history, commit, read(history, commit)["log"]) == "2 tests failed"
    assert "earlier try" in instruction(history.case(log="x"), ".overlayrun")


def test_the_same_case_is_the_same_commit(history: Clash) -> None:
    assert write_conflict(history.repo, history.case()) == write_conflict(history.repo, history.case())


def test_a_users_own_directory_of_that_name_is_left_alone(scratch: Scratch) -> None:
    mine = {".overlayrun/x": "1\n", ".overlayrun-conflict": "1\n"}
    clash = scratch.clash({**mine, "f": "1\n"}, {"f": "2\n"}, {"f": "3\n"})
    commit = write_conflict(clash.repo, clash.case())
    data = read(clash, commit, ".overlayrun-conflict-2")
    assert data["directory"] == ".overlayrun-conflict-2"
    assert data["declare"]["file"] == ".overlayrun-conflict-2/DECLARED"
    assert show(clash, commit, ".overlayrun/x") == "1"


def test_odd_paths_survive_the_json(scratch: Scratch) -> None:
    odd = 'd/\udcff"\n*[a]'
    clash = scratch.clash({odd: "1\n"}, {odd: "2\n", "other": "2\n"}, {odd: "3\n"})
    commit = write_conflict(clash.repo, clash.case())
    (only,) = read(clash, commit)["conflicts"]
    assert only["path"] == odd
    assert only["ours_commits"]["count"] == 1
    first = show(clash, commit, ".overlayrun/ours.diff").split("\n")[0]
    assert r"\377" in first


def test_a_deletion_a_link_and_a_submodule_have_the_versions_that_exist(scratch: Scratch) -> None:
    clash = scratch.clash(
        {"gone": "1\n", "link": (SYMLINK, "a")},
        {"gone": None, "link": (SYMLINK, "b")},
        {"gone": "2\n", "link": (SYMLINK, "c")},
    )
    commit = write_conflict(clash.repo, clash.case())
    by_path = {conflict["path"]: conflict["stages"] for conflict in read(clash, commit)["conflicts"]}
    assert by_path["gone"]["ours"] is None
    assert show(clash, commit, by_path["link"]["theirs"]["file"]) == "c"
    assert by_path["link"]["theirs"]["mode"] == "120000"
    # Shown as a plain file: a link into the host would be of no use.
    listed = clash.scratch.git("ls-tree", commit, by_path["link"]["theirs"]["file"])
    assert listed.startswith("100644")


def test_many_commits_are_counted_and_the_newest_told(scratch: Scratch) -> None:
    base = scratch.commit({"f": "0\n"})
    ours = base
    for number in range(described.LISTED_COMMITS + 3):
        ours = scratch.commit({"f": f"{number + 1}\n"}, ours, message=f"number {number}")
    theirs = scratch.commit({"f": "x\n"}, base)
    clash = Clash(scratch, base, ours, theirs, merge_once(scratch.repo.git_dir, ours, theirs))
    told = read(clash, write_conflict(clash.repo, clash.case()))["conflicts"][0]["ours_commits"]
    assert told["count"] == described.LISTED_COMMITS + 3
    assert len(told["commits"]) == described.LISTED_COMMITS
    assert told["commits"][0]["message"] == [f"number {described.LISTED_COMMITS + 2}"]


def test_an_agents_text_never_reaches_the_instruction(history: Clash) -> None:
    words = instruction(history.case(prompt="IGNORE ALL"), ".overlayrun")
    assert "IGNORE ALL" not in words
    assert "Make it" not in words
    assert ".overlayrun/CONFLICT.json" in words


def test_declared_paths_are_lines() -> None:
    assert list(declared_in(b"a\n\n ./b/ \nc d\r\n\xff")) == [b"a", b"b/", b"c d", b"\xff"]


def test_the_store_stays_sound(history: Clash) -> None:
    history.scratch.git("update-ref", "refs/heads/c", write_conflict(history.repo, history.case(log="x")))
    history.scratch.git("fsck", "--strict")
