"""`sync`: the target comes into an idle branch as `git stash; git merge; git stash pop` would bring it, or nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Done, UserRepo

pytestmark = pytest.mark.shared  # which commits and lines a branch stands on afterwards

LINES = [f"line {number}\n" for number in range(40)]


def sync(repo: UserRepo, *options: str, branch: str = "b") -> Done:
    done = repo.overlayrun("sync", branch, *options)
    assert done.code == 0, str(done)
    return done


def text(first: str | None = None, last: str | None = None) -> str:
    """Forty lines, with another first or last one."""
    lines = [f"{first}\n" if first else LINES[0], *LINES[1:-1], f"{last}\n" if last else LINES[-1]]
    return "".join(lines)


@pytest.fixture
def begun(repo: UserRepo) -> UserRepo:
    """A branch with uncommitted work of each kind; main has moved on."""
    repo.commit(
        "start",
        text=text(),
        gone="g\n",
        mode="m\n",
        swap="s\n",
        far="f\n",
        **{"d/x": "x\n", ".gitignore": "*.o\n"},
    )
    repo.inside(
        "sed -i '1s/.*/agent/' text; rm gone; chmod +x mode; ln -sf text swap; echo u >untracked; echo o >a.o;"
        " mkdir -p d/deep; echo y >d/deep/y; echo o >d/b.o"
    )
    repo.write("text", text(last="user"))
    repo.git("rm", "-q", "far")
    repo.git("mv", "d/x", "d/moved")
    repo.commit("ahead", new="n\n")
    return repo


def test_uncommitted_work_lies_on_the_target_afterwards(begun: UserRepo) -> None:
    done = sync(begun)
    assert done.out == "branch b has main's 1 commit now (5 files): snapshot 2\n"
    assert begun.inside("git rev-parse HEAD").strip() == begun.git("rev-parse", "main")
    assert begun.inside("cat text") == text("agent", "user")
    status = [" D gone", " M mode", " T swap", " M text", "?? d/deep/", "?? untracked"]
    assert begun.inside("git status --porcelain").splitlines() == status
    assert begun.inside("cat new; ls far d/x 2>/dev/null || true; cat a.o d/b.o d/moved") == "n\no\no\nx\n"


def test_the_branch_follows_and_differs_from_the_target_by_its_own_change(begun: UserRepo) -> None:
    sync(begun)
    assert begun.git("rev-parse", "b^") == begun.git("rev-parse", "main")
    changed = begun.git("diff", "--name-status", "--no-renames", "main", "b").split()
    assert changed == ["A", "d/deep/y", "D", "gone", "M", "mode", "T", "swap", "M", "text", "A", "untracked"]
    assert begun.records()["b"]["base"] == begun.git("rev-parse", "main")
    assert begun.git("log", "-1", "--format=%s", begun.snapshots()[0]) == "Sync with main"
    upper = {path.name for path in (begun.workspace() / "upper").iterdir()} - {".git"}
    assert upper == {"a.o", "d", "gone", "mode", "swap", "text", "untracked"}


def test_the_agents_commits_get_a_merge_commit_of_its_own(begun: UserRepo) -> None:
    begun.inside("git add mode; git commit -qm mine; echo more >>untracked")
    mine = begun.inside("git rev-parse HEAD").strip()
    sync(begun)
    head = begun.inside("git log -1 --format='%P %s'").strip()
    assert head == f"{mine} {begun.git('rev-parse', 'main')} Merge branch 'main' into b"
    assert " M mode" not in begun.inside("git status --porcelain").splitlines()
    assert begun.inside("git diff --stat HEAD -- new far; cat text") == text("agent", "user")
    assert begun.inside("git fsck --strict 2>&1 && git log --oneline main -1").endswith(" ahead\n")


def test_commits_that_have_landed_are_no_merge(repo: UserRepo) -> None:
    repo.inside("echo 1 >one; git add -A; git commit -qm one")
    assert repo.overlayrun("merge", "b").code == 0
    repo.inside("echo 2 >two")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("git rev-parse HEAD").strip() == repo.git("rev-parse", "main")
    assert repo.inside("git status --porcelain") == "?? two\n"


def test_work_on_lines_that_have_landed_goes_on(repo: UserRepo) -> None:
    repo.inside("echo one >README")
    assert repo.overlayrun("merge", "b").code == 0
    repo.inside("echo two >README")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.git("diff", "--name-only", "main", "b") == "README"
    assert repo.inside("cat README") == "two\n"


@pytest.mark.parametrize("committed", [False, True])
def test_a_conflict_changes_nothing_and_is_listed(repo: UserRepo, committed: bool) -> None:  # noqa: FBT001
    repo.inside("echo agent >README" + "; git add -A; git commit -qm mine" * committed)
    repo.commit("mine", README="user\n")
    refs, record = repo.refs(), repo.records()
    done = repo.overlayrun("sync", "b")
    assert done.code == 1, str(done)
    assert done.out.splitlines()[1:] == ["conflict: README (contents)"]
    assert (repo.refs(), repo.records()) == (refs, record)
    assert repo.inside("cat README") == "agent\n"


@pytest.mark.by_both
def test_an_ignored_file_that_the_target_tracks_now_is_not_overwritten(begun: UserRepo) -> None:
    begun.write("a.o", "user\n")
    begun.git("add", "-f", "a.o")
    begun.commit("track")
    done = begun.overlayrun("sync", "b")
    assert done.code == 1, str(done)
    assert "conflict: a.o (ignored file in the way)" in done.out
    assert begun.inside("cat a.o; git rev-parse HEAD") == f"o\n{begun.git('rev-parse', 'main~2')}\n"


def test_up_to_date_says_so_and_takes_no_snapshot(begun: UserRepo) -> None:
    sync(begun)
    refs = begun.refs()
    assert sync(begun).out == "branch b has all of main already\n"
    assert begun.refs() == refs


def test_sync_run_sync_merge(begun: UserRepo) -> None:
    sync(begun)
    begun.inside("echo again >again; git add again; git commit -qm again")
    begun.commit("further", further="f\n")
    sync(begun)
    begun.inside("echo last >last")
    done = begun.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert {"again", "last", "further", "untracked", "new"} <= begun.files("main").keys()
    assert begun.show("main", "text") == text("agent", "user")
    assert begun.git("status", "--porcelain") == ""


def test_a_branch_without_changes_stands_on_the_target(repo: UserRepo) -> None:
    repo.inside("true")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.git("rev-parse", "b") == repo.git("rev-parse", "main")
    assert repo.inside("cat mine; git status --porcelain") == "m\n"


def test_a_rewritten_target_takes_the_place_of_the_old_one(repo: UserRepo) -> None:
    repo.commit("wip", mine="1\n")
    repo.inside("echo agent >new")
    repo.write("mine", "2\n")
    repo.git("commit", "-qa", "--amend", "-m", "done")
    sync(repo)
    assert repo.git("rev-parse", "b^") == repo.git("rev-parse", "main")
    assert repo.git("diff", "--name-only", "main", "b") == "new"


def test_a_restore_from_before_gives_that_tree_and_base_again(begun: UserRepo) -> None:
    tree, base = begun.git("rev-parse", "b^{tree}"), begun.records()["b"]["base"]
    sync(begun)
    synced = begun.git("rev-parse", "b^{tree}")
    assert begun.overlayrun("restore", "b", "@{1}").code == 0
    assert begun.git("rev-parse", "b^{tree}", "b^") == f"{tree}\n{base}"
    assert begun.records()["b"]["base"] == base
    assert begun.inside("git rev-parse HEAD").strip() == base
    assert begun.overlayrun("restore", "b", "@{1}").code == 0
    assert begun.git("rev-parse", "b^{tree}", "b^") == f"{synced}\n{begun.git('rev-parse', 'main')}"


@pytest.mark.by_both
def test_times_of_untouched_files_are_kept(begun: UserRepo) -> None:
    begun.inside("touch -d 2001-02-03 untracked d/b.o")
    sync(begun)
    years = begun.inside("stat -c %y untracked d/b.o").split()[::3]
    assert years == ["2001-02-03", "2001-02-03"]


@pytest.mark.by_both
def test_what_the_agent_keeps_in_its_git_stays(begun: UserRepo) -> None:
    begun.inside("git branch idea; git stash -q; git stash apply -q; git config user.name Agent")
    sync(begun)
    assert begun.inside(
        "git config user.name; git stash list | wc -l; git rev-parse -q --verify idea"
    ).split()[:2] == ["Agent", "1"]


@pytest.mark.by_both
def test_carried_files_stay_as_the_branch_left_them(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": ".env\nlib/\n"})
    repo.write(".env", "host\n")
    for name in ("a", "b", "c"):
        repo.write(f"lib/{name}", "host\n")
    repo.inside("echo branch >.env; rm lib/a; echo branch >lib/b; echo 1 >one")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("cat .env lib/b lib/c; ls lib; cat mine") == "branch\nbranch\nhost\nb\nc\nm\n"


@pytest.mark.by_both
def test_a_replaced_carried_directory_hides_the_old_one(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": "lib/\n"})
    repo.write("lib/old", "host\n")
    repo.inside("rm -r lib; mkdir lib; echo n >lib/new")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("ls lib") == "new\n"


@pytest.mark.by_both
def test_ignored_files_stay_where_the_target_removed_a_directory(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": "*.o\n", "d/x": "x\n"})
    repo.inside("echo o >d/x.o")
    repo.git("rm", "-rq", "d")
    repo.commit("gone")
    sync(repo)
    assert repo.inside("ls d; git status --porcelain") == "x.o\n"


def test_a_running_branch_is_refused(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; read line") as run:
        run.expect("ready")
        repo.commit("mine", mine="m\n")
        done = repo.overlayrun("sync", "b")
        assert (done.code, done.ours[0]) == (3, "branch b is running")
        run.end()


def test_an_unfinished_merge_of_the_agents_is_refused(repo: UserRepo) -> None:
    repo.inside(
        "git checkout -qb o; echo 1 >README; git commit -qam 1; git checkout -q b; echo 2 >README; git commit -qam 2; ! git merge -q o"
    )
    repo.commit("mine", mine="m\n")
    refs = repo.refs()
    done = repo.overlayrun("sync", "b")
    assert (done.code, done.ours[0]) == (3, "branch b is in the middle of a merge")
    assert repo.refs() == refs


def test_a_target_with_attributes_of_its_own_rules(repo: UserRepo) -> None:
    """The agent's attributes must not choose how the merge goes."""
    repo.commit("start", log="1\n")
    repo.inside("echo agent >>log; echo 'log merge=union' >.gitattributes")
    repo.commit("mine", log="1\nuser\n")
    assert repo.overlayrun("sync", "b").code == 1


@pytest.mark.by_both
def test_a_state_directory_elsewhere(repo: UserRepo, tmp_path: Path) -> None:
    repo.env["OVERLAYRUN_STATE_DIR"] = str(tmp_path / "state")
    repo.inside("echo 1 >one; echo o >lib")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("cat one mine") == "1\nm\n"


@pytest.mark.by_both
def test_odd_names_and_closed_directories_come_along(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": "cache\n*.o\n"})
    repo.inside(
        "mkdir -p cache/in; echo x >cache/in/f; mkfifo cache/pipe; printf x >\"$(printf 'a\\377\\nb.o')\"; mkdir shut; echo s >shut/s; echo o >shut/s.o; chmod 0 cache/in; git add shut; chmod 0 shut"
    )
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside(
        "stat -c %a cache/in shut; chmod 700 cache/in shut; cat cache/in/f shut/s shut/s.o; test -p cache/pipe; ls | grep -c 'b.o'"
    ).split() == ["0", "0", "x", "s", "o", "1"]
    for name in ("cache/in", "shut"):  # pytest could not remove them
        (repo.workspace() / "kept/1/upper" / name).chmod(0o700)


@pytest.fixture
def dirty(repo: UserRepo) -> UserRepo:
    """A branch that began with uncommitted changes of the user's; its own change is `theirs` and line 1 of `text`."""
    repo.commit("start", text=text(), mine="one\n", theirs="one\n", old="o\n")
    repo.write("text", text(last="uncommitted"))
    repo.write("mine", "uncommitted\n")
    repo.write("fresh", "uncommitted\n")
    (repo.root / "old").unlink()
    repo.inside("echo agent >theirs; sed -i '1s/.*/agent/' text")
    repo.git("commit", "-q", "--allow-empty", "-m", "ahead")
    return repo


def landed(repo: UserRepo) -> list[str]:
    """Files that main gets by a merge of the branch."""
    before = repo.git("rev-parse", "main")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    return repo.git("diff", "--name-only", before, "main").split()


def test_changes_that_are_still_uncommitted_stay_in_the_agents_tree_and_out_of_main(dirty: UserRepo) -> None:
    dirty.git("stash", "-qu")
    dirty.commit("more", more="m\n")
    sync(dirty)
    assert (
        dirty.inside("cat mine fresh theirs more; ls old 2>/dev/null || true")
        == "uncommitted\nuncommitted\nagent\nm\n"
    )
    assert dirty.inside("cat text") == text("agent", "uncommitted")
    assert dirty.git("diff", "--name-only", dirty.records()["b"]["dirty"], "b").split() == ["text", "theirs"]
    assert landed(dirty) == ["text", "theirs"]
    assert dirty.show("main", "text") == text("agent")
    dirty.git("stash", "pop", "-q")
    assert (dirty.root / "text").read_text() == text("agent", "uncommitted")


def test_changes_that_the_user_has_committed_are_no_longer_the_branchs(dirty: UserRepo) -> None:
    dirty.commit("mine")
    sync(dirty)
    assert dirty.records()["b"]["dirty"] is None
    assert dirty.git("rev-parse", "b^") == dirty.git("rev-parse", "main")
    assert dirty.inside("git status --porcelain").splitlines() == [" M text", " M theirs"]
    assert landed(dirty) == ["text", "theirs"]
    assert dirty.show("main", "text") == text("agent", "uncommitted")


def test_changes_that_the_user_has_altered_and_committed_are_taken_as_he_left_them(dirty: UserRepo) -> None:
    dirty.write("mine", "altered\n")
    dirty.commit("mine")
    done = sync(dirty)
    assert done.ours == ["mine: main's version replaces the uncommitted one that the branch began with"]
    assert dirty.inside("cat mine theirs fresh") == "altered\nagent\nuncommitted\n"
    assert landed(dirty) == ["text", "theirs"]


def test_committed_changes_of_the_users_in_the_agents_commits_are_merged(dirty: UserRepo) -> None:
    dirty.inside("git add -A; git commit -qm all; echo later >later")
    dirty.commit("mine")
    sync(dirty)
    assert dirty.inside("git status --porcelain") == "?? later\n"
    assert landed(dirty) == ["later", "text", "theirs"]


def test_uncommitted_changes_through_two_syncs_and_a_restore(dirty: UserRepo) -> None:
    tree, base = dirty.git("rev-parse", "b^{tree}"), dirty.records()["b"]
    dirty.git("stash", "-qu")
    for name in ("one", "two"):
        dirty.commit(name, **{name: "m\n"})
        sync(dirty)
    synced = dirty.records()["b"]
    assert dirty.overlayrun("restore", "b", "@{2}").code == 0
    assert dirty.git("rev-parse", "b^{tree}") == tree
    assert {key: dirty.records()["b"][key] for key in ("base", "dirty", "tree")} == {
        key: base[key] for key in ("base", "dirty", "tree")
    }
    assert dirty.overlayrun("restore", "b", "@{1}").code == 0
    assert dirty.records()["b"]["dirty"] == synced["dirty"]
    assert landed(dirty) == ["text", "theirs"]


def test_a_landed_branch_with_uncommitted_changes_goes_on(dirty: UserRepo) -> None:
    dirty.git("stash", "-qu")
    assert landed(dirty) == ["text", "theirs"]
    sync(dirty)
    assert dirty.inside("cat theirs mine") == "agent\nuncommitted\n"
    dirty.inside("echo again >theirs")
    assert landed(dirty) == ["theirs"]


def test_gc_keeps_what_a_synced_branch_needs(dirty: UserRepo) -> None:
    dirty.git("stash", "-qu")
    dirty.commit("more", more="m\n")
    sync(dirty)
    tree = dirty.git("rev-parse", "b^{tree}")
    dirty.git("-c", "gc.reflogExpire=now", "-c", "gc.reflogExpireUnreachable=now", "gc", "-q", "--prune=now")
    assert dirty.overlayrun("gc").code == 0
    assert dirty.inside("cat mine more; git add -A; git write-tree").split()[2] == tree
    dirty.git("fsck", "--strict")
    assert dirty.overlayrun("restore", "b", "@{1}").code == 0


def test_work_on_landed_lines_goes_on_over_uncommitted_changes_too(dirty: UserRepo) -> None:
    dirty.git("stash", "-qu")
    assert landed(dirty) == ["text", "theirs"]
    dirty.inside("echo again >theirs")
    sync(dirty)
    assert dirty.inside("cat theirs mine") == "again\nuncommitted\n"
    assert landed(dirty) == ["theirs"]


@pytest.mark.by_both
def test_times_of_uncommitted_changes_are_kept(repo: UserRepo) -> None:
    repo.write("loose", "l\n")
    os.utime(repo.root / "loose", (10**9, 10**9))
    repo.inside("echo 1 >one")
    (repo.root / "loose").unlink()
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("stat -c %Y loose") == f"{10**9}\n"


@pytest.mark.by_both
def test_a_repository_inside_the_workspace_stays(repo: UserRepo) -> None:
    repo.inside("git init -q sub; cd sub; echo s >s; git add s; git commit -qm s; echo 1 >../one")
    repo.commit("mine", mine="m\n")
    sync(repo)
    assert repo.inside("git -C sub log --format=%s; cat sub/s mine") == "s\ns\nm\n"


def test_a_branch_of_a_repository_without_commits_gets_its_first(empty_repo: UserRepo) -> None:
    empty_repo.write("mine", "uncommitted\n")
    empty_repo.inside("echo 1 >one")
    empty_repo.commit("first", mine="uncommitted\n")
    sync(empty_repo)
    assert empty_repo.git("diff", "--name-only", "main", "b") == "one"
    assert empty_repo.inside("git status --porcelain") == "?? one\n"
