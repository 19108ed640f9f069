"""A resolver command runs in a workspace of the automatic merge; only an honest result is taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import UserRepo

from overlayrun.model import BranchName, CommitId, TreeId
from overlayrun.reconcile.conflict import Case, write_conflict
from overlayrun.reconcile.replay import extent, replay, resume
from overlayrun.reconcile.resolutions import RESOLUTIONS, remember, remembered
from overlayrun.reconcile.resolvers import Resolution, resolve
from overlayrun.store.location import find_repository
from overlayrun.store.merger import MergeEngine, merge_once
from overlayrun.store.repo import Repo
from overlayrun.workspace.catalogue import find_exact
from overlayrun.workspace.layout import open_state

from .conflict_world import Scratch

pytestmark = pytest.mark.shared  # which resolutions are taken, and what is remembered of them

START = "".join(f"line {number}\n" for number in range(12))
LIMIT = 300.0
"""Seconds that a resolver may take which is not meant to hang."""


class Desk:
    """A user's repository in which branch `b` conflicts with main in `f`, and who hands that on."""

    def __init__(self, repo: UserRepo, patch: pytest.MonkeyPatch) -> None:
        self.user = repo
        for name, value in repo.env.items():
            patch.setenv(name, value)
        repo.commit("start", f=START, idle="1\n")
        repo.inside("sed -i 's/line 6/their six/; s/line 11/their end/' f")
        repo.commit("Our six must stay", f=START.replace("line 6", "our six").replace("line 0", "our top"))
        self.layout = open_state(f"{repo.root}/.git")

    @property
    def repo(self) -> Repo:
        return Repo(f"{self.user.root}/.git")

    def case(self, log: str | None = None, branch: str = "b") -> Case:
        tip, source = (CommitId(self.user.git("rev-parse", name)) for name in ("main", branch))
        base = CommitId(self.user.git("merge-base", tip, source))
        merged = merge_once(self.repo.git_dir, tip, source)
        record = find_exact(self.layout, branch)
        assert record
        return Case(record, BranchName("main"), tip, source, base, merged, log)

    def resolve(self, script: str, *, timeout: float = LIMIT, log: str | None = None) -> Resolution:
        self.said: list[str] = []
        return resolve(
            find_repository(str(self.user.root)),
            self.layout,
            self.case(log),
            script,
            timeout=timeout,
            show=self.said.append,
        )

    def show(self, tree: str | None, path: str) -> str:
        assert tree
        return self.user.raw_git("show", f"{tree}:{path}").decode()

    def branches(self) -> set[str]:
        return {name for name in self.user.refs() if name.startswith("refs/heads/overlay/")}


@pytest.fixture
def desk(repo: UserRepo, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(repo, monkeypatch)


EDIT = 'python3 -c \'import re; t = open("f").read(); '
GOOD = EDIT + r"""open("f", "w").write(re.sub("<<<<<<<.*?>>>>>>>[^\n]*", "both six", t, flags=re.S))'"""


@pytest.mark.by_both
def test_an_honest_resolution_is_a_tree_and_leaves_nothing_behind(desk: Desk) -> None:
    before, refs = desk.user.picture(), desk.user.refs()
    done = desk.resolve(GOOD)
    assert (done.refused, done.workspace, done.notes) == (None, None, ())
    wanted = START.replace("line 0", "our top").replace("line 6", "both six").replace("line 11", "their end")
    assert desk.show(done.tree, "f") == wanted
    assert desk.user.files(done.tree or "").keys() == desk.user.files("main").keys()
    assert (desk.user.picture(), desk.user.refs()) == (before, refs)
    assert desk.user.records().keys() == {"b"}
    assert len(desk.said) == 1


def test_the_command_is_told_by_a_file_and_a_prompt(desk: Desk) -> None:
    done = desk.resolve(
        'test "$PWD/$OVERLAYRUN_CONFLICT" -ef .overlayrun/CONFLICT.json && echo "$OVERLAYRUN_PROMPT" && '
        'cat "$OVERLAYRUN_CONFLICT" .overlayrun/check.log && ' + GOOD,
        log="1 test failed: x",
    )
    assert done.refused is None
    printed = Path(done.log).read_text()
    for words in (".overlayrun/CONFLICT.json", "Our six must stay", "1 test failed: x", "earlier try"):
        assert words in printed


def test_a_resolver_may_commit(desk: Desk) -> None:
    done = desk.resolve(GOOD + " && git add --all && git commit --quiet --message Resolved")
    assert done.refused is None
    assert "both six" in desk.show(done.tree, "f")


def test_a_declared_file_may_change_too_and_is_named(desk: Desk) -> None:
    done = desk.resolve(
        f"{GOOD}; echo 2 >idle; echo new >extra; printf 'idle\\nextra\\n' >.overlayrun/DECLARED"
    )
    assert (done.refused, done.declared) == (None, (b"extra", b"idle"))
    assert done.notes == ("the resolver also changed, and declared: extra, idle",)
    assert desk.show(done.tree, "extra") == "new\n"


def test_declaring_works_where_such_names_are_ignored(desk: Desk) -> None:
    desk.user.commit("ignore", **{".gitignore": ".*\n!.gitignore\n"})
    done = desk.resolve(f"{GOOD}; echo 2 >idle; echo idle >.overlayrun/DECLARED")
    assert (done.refused, done.declared) == (None, (b"idle",))


MISBEHAVIOUR = {
    "lies": ("echo All conflicts are resolved.", "it changed nothing"),
    "only says so": ("echo done >.overlayrun/DECLARED", "it changed nothing"),
    "leaves markers": ("sed -i s/their.six/better/ f", "conflict markers are left in f"),
    "edits elsewhere": (
        f"{GOOD}; echo 2 >idle",
        "it changed idle, which is neither in conflict nor declared",
    ),
    "plants a file": (f"{GOOD}; echo x >.gitattributes", "it changed .gitattributes, which is neither"),
    "drops our side": ("cp .overlayrun/blobs/0/theirs f", "it changed f outside the conflict"),
    "drops their side": ("cp .overlayrun/blobs/0/ours f", "it changed f outside the conflict"),
    "deletes the file": ("rm f", "it deleted f, which both sides have"),
    "makes it a link": ("ln -sf /etc/passwd f", "it changed what kind of file f is"),
    "floods": ("truncate -s 65M f", "f is too large to be judged"),
    "fails with our number": (f"{GOOD}; exit 125", "it ended with status 125"),
    "fails": (f"{GOOD}; exit 3", "it ended with status 3"),
    "is killed": (f"{GOOD}; kill -9 $$", "it ended with status 137"),
    "is not there": ("no-such-resolver --now", "it ended with status 127"),
}


@pytest.mark.parametrize(("script", "why"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
def test_each_misbehaviour_is_refused_and_changes_nothing(desk: Desk, script: str, why: str) -> None:
    before, refs = desk.user.picture(), desk.user.refs()
    done = desk.resolve(script)
    assert (done.refused or "").startswith(why), done
    assert done.tree is None
    kept = {f"refs/heads/{done.workspace}"} if done.workspace else set()
    assert desk.branches() == kept
    assert (refs.items() <= desk.user.refs().items(), desk.user.picture()) == (True, before)


def test_one_that_hangs_is_ended(desk: Desk, until: Callable[..., None]) -> None:
    done = desk.resolve(f"{GOOD}; {desk.user.sleeper()}", timeout=2)
    assert done.refused == "it ran into its time limit of 2 s"
    until(lambda: not desk.user.marked(), "the end of what hangs")


@pytest.mark.by_both
def test_what_was_refused_is_kept_to_be_looked_at(desk: Desk) -> None:
    done = desk.resolve(f"{GOOD}; echo 2 >idle; echo seen")
    assert done.workspace
    assert desk.show(done.workspace, "idle") == "2\n"
    assert Path(done.log).read_text() == "seen\n"
    assert desk.user.overlayrun("show", done.workspace).code == 0


def test_a_refused_proposal_is_no_branch_that_waits_for_the_target(desk: Desk) -> None:
    done = desk.resolve(f"{GOOD}; exit 1")
    assert done.workspace
    assert desk.user.records()[done.workspace]["target"] == "b"


def test_one_that_cannot_start_says_why(desk: Desk) -> None:
    desk.user.git("branch", "overlay")  # git can't have overlay/resolve-… beside it
    done = desk.resolve(GOOD)
    assert (done.refused or "").startswith("it could not be started: ")
    assert "overlay" in (done.refused or "")
    assert done.workspace is None


@pytest.mark.by_both
def test_a_resolver_dies_with_who_started_it(desk: Desk, until: Callable[..., None]) -> None:
    code = (
        "from overlayrun.reconcile.background import Background; import sys\n"
        "Background(['-q', '-b', 'x', '--dirty', 'ignore'], sys.argv[1], cwd='.', log=sys.argv[2]).wait()"
    )
    log = str(desk.user.home / "log")
    process = subprocess.Popen(
        [sys.executable, "-c", code, desk.user.sleeper(), log], cwd=desk.user.root, env=desk.user.env
    )
    until(lambda: len(desk.user.marked()) > 1, "its start")
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not desk.user.marked(), "its end")


def test_what_was_accepted_answers_the_same_conflict_again(desk: Desk) -> None:
    case = desk.case()
    assert remembered(desk.repo, case.merged) is None
    done = desk.resolve(GOOD)
    assert done.tree
    assert remember(desk.repo, case.merged, done.tree)
    resolved = desk.show(done.tree, "f")
    desk.user.git("gc", "--quiet", "--prune=now")
    desk.user.commit("more", other="1\n")
    again = desk.case().merged
    known = remembered(desk.repo, again)
    assert known
    assert desk.show(known, "f") == resolved
    assert desk.show(known, "other") == "1\n"
    desk.user.git("fsck", "--strict", "--no-dangling")


def test_another_version_of_a_conflict_is_not_known(tmp_path: Path) -> None:
    scratch = Scratch.make(tmp_path)
    clash = scratch.clash({"a": "1\n", "b": "1\n"}, {"a": "2\n", "b": "2\n"}, {"a": "3\n", "b": None})
    remember(clash.repo, clash.merged, scratch.tree({"a": "23\n", "b": None}, clash.merged.tree))
    known = remembered(clash.repo, clash.merged)
    assert scratch.git("ls-tree", "--name-only", known or "") == "a"
    other = scratch.clash({"a": "1\n", "b": "1\n"}, {"a": "2\n", "b": "4\n"}, {"a": "3\n", "b": None})
    assert remembered(other.repo, other.merged) is None


def test_a_later_resolution_replaces_the_earlier(tmp_path: Path) -> None:
    scratch = Scratch.make(tmp_path)
    clash = scratch.clash({"a": "1\n"}, {"a": "2\n"}, {"a": None})
    for version in ("2\n", None, "5\n"):
        tree = scratch.tree({"a": version}, clash.merged.tree)
        assert remember(clash.repo, clash.merged, tree)
        assert remembered(clash.repo, clash.merged) == tree


def test_a_remembered_resolution_is_judged_once_more(tmp_path: Path) -> None:
    scratch = Scratch.make(tmp_path)
    clash = scratch.clash({"a": "1\n"}, {"a": "0\n2\n"}, {"a": "0\n3\n"})
    assert remember(clash.repo, clash.merged, scratch.tree({"a": "<<<<<<< x\n"}, clash.merged.tree))
    assert remembered(clash.repo, clash.merged) is None


def test_a_resolution_that_changed_other_files_is_not_kept(tmp_path: Path) -> None:
    scratch = Scratch.make(tmp_path)
    clash = scratch.clash({"a": "1\n"}, {"a": "2\n"}, {"a": "3\n"})
    assert not remember(clash.repo, clash.merged, scratch.tree({"a": "4\n", "x": "1\n"}, clash.merged.tree))
    assert clash.repo.ref(RESOLUTIONS) is None


def test_two_who_remember_at_once_lose_nothing(tmp_path: Path) -> None:
    scratch = Scratch.make(tmp_path)
    clashes = [scratch.clash({name: "1\n"}, {name: "2\n"}, {name: "3\n"}) for name in "abcd"]
    children = []
    for clash in clashes:
        tree = scratch.tree({clash.merged.conflicts[0].path.decode(): "4\n"}, clash.merged.tree)
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(not remember(clash.repo, clash.merged, tree))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    known = [remembered(clash.repo, clash.merged) for clash in clashes]
    assert [tree is not None for tree in known] == [code == 0 for code in codes]
    assert any(known)


def test_a_replay_of_one_snapshot_leaves_no_less(desk: Desk) -> None:
    with MergeEngine(desk.repo.git_dir, None) as engine:
        assert replay(engine, desk.repo, desk.case()) is None


def test_a_conflict_that_no_step_has_is_resolved_by_replay(desk: Desk) -> None:
    ours = START.replace("line 6", "our six").replace("line 0", "our top")
    desk.user.inside(f"cat >f <<'E'\n{ours}E", "--base", "main~1", branch="c")
    desk.user.inside("sed -i 's/our six/later six/' f; echo 2 >idle", branch="c")
    case = desk.case(branch="c")
    assert not case.merged.is_clean
    with MergeEngine(desk.repo.git_dir, None) as engine:
        done = replay(engine, desk.repo, case)
    assert done
    assert done.step is None
    assert desk.show(done.tree, "f") == ours.replace("our six", "later six")
    assert desk.show(done.tree, "idle") == "2\n"


def test_a_smaller_conflict_is_one_step_and_the_rest_follows(desk: Desk) -> None:
    desk.user.commit("two", g=START)
    desk.user.inside("sed -i 's/line 6/mine/' g", branch="c")
    desk.user.inside("sed -i 's/our six/other six/' f; echo 3 >idle", branch="c")
    desk.user.inside("echo 4 >idle", branch="c")
    desk.user.commit("three", g=START.replace("line 6", "ours"), f=START.replace("line 0", "x"), idle="1\n")
    desk.user.commit("four", f=START.replace("line 0", "x").replace("line 6", "y"))
    case = desk.case(branch="c")
    with MergeEngine(desk.repo.git_dir, None) as engine:
        first = replay(engine, desk.repo, case)
        assert first
        assert first.step
        assert [conflict.path for conflict in first.step.merged.conflicts] == [b"g"]
        assert extent(desk.repo, first.step.merged) < extent(desk.repo, case.merged)
        assert first.step.whole is case
        second = resume(engine, desk.repo, case, first, edit(desk, first.step, g="line 6 both"), ())
        assert second
        assert second.step
        assert [conflict.path for conflict in second.step.merged.conflicts] == [b"f"]
        last = resume(engine, desk.repo, case, second, edit(desk, second.step, f="both"), ())
    assert last
    assert "line 6 both" in desk.show(last.tree, "g")
    assert desk.show(last.tree, "idle") == "4\n"


def edit(desk: Desk, step: Case, **lines: str) -> TreeId:
    """The automatic merge of a step with one line in place of each file's block."""
    scratch = Scratch(desk.user.root)
    files = {}
    for name, line in lines.items():
        before, _, rest = desk.show(step.merged.tree, name).partition("<<<<<<<")
        files[name] = before + line + "\n" + rest.partition(">>>>>>>")[2].partition("\n")[2]
    return scratch.tree(files, step.merged.tree)


def test_a_step_is_described_by_the_whole_branchs_history(desk: Desk) -> None:
    whole = desk.case()
    stand_in = CommitId(desk.user.git("commit-tree", "-m", "for one merge", f"{whole.tip}^{{tree}}"))
    step = replace(whole, tip=stand_in, whole=whole)
    data = json.loads(desk.show(write_conflict(desk.repo, step), ".overlayrun/CONFLICT.json"))
    told = data["conflicts"][0]["ours_commits"]["commits"]
    assert [one["message"][0] for one in told] == ["Our six must stay"]
    assert data["target"]["commit"] == whole.tip


def test_a_merge_with_a_resolver_lands_with_both_parents(desk: Desk) -> None:
    parents = [desk.user.git("rev-parse", name) for name in ("main", "b")]
    done = desk.user.overlayrun("merge", "b", "--resolve", GOOD)
    assert done.code == 0, str(done)
    assert desk.user.git("rev-list", "--parents", "-1", "main").split()[1:] == parents
    assert "both six" in (desk.user.root / "f").read_text()
    assert desk.user.git("status", "--porcelain") == ""
    assert desk.branches() == set()


def test_a_merge_with_one_that_misbehaves_changes_nothing_and_says_why(desk: Desk) -> None:
    before, main = desk.user.picture(), desk.user.git("rev-parse", "main")
    done = desk.user.overlayrun("merge", "b", "--resolve", f"{GOOD}; echo 2 >idle")
    assert done.code == 1, str(done)
    assert "it changed idle, which is neither in conflict nor declared" in done.out + done.err
    assert (desk.user.picture(), desk.user.git("rev-parse", "main")) == (before, main)


def test_a_merge_remembers_what_was_resolved(desk: Desk) -> None:
    main = desk.user.git("rev-parse", "main")
    assert desk.user.overlayrun("merge", "b", "--resolve", GOOD).code == 0
    desk.user.git("reset", "--quiet", "--hard", main)
    done = desk.user.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert "both six" in desk.user.show("main", "f")


def test_a_branch_that_began_with_uncommitted_changes_is_resolved_as_its_own_change(repo: UserRepo) -> None:
    repo.commit("start", f=START, idle="1\n")
    repo.write("idle", "unsaved\n")
    repo.inside("sed -i 's/line 6/their six/' f")
    repo.git("checkout", "--quiet", "idle")
    main = repo.commit("ours", f=START.replace("line 6", "our six"))
    done = repo.overlayrun("merge", "b", "--resolve", GOOD)
    assert done.code == 0, str(done)
    assert repo.git("rev-list", "--parents", "-1", "main").split()[1:] == [main]
    assert (repo.show("main", "f"), repo.show("main", "idle")) == (START.replace("line 6", "both six"), "1\n")
