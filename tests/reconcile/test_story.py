"""What a user sees of `merge`, `reconcile`, `approve` and `queue`: one promise a test, by the real command line."""

from __future__ import annotations

import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, UserRepo, wait_until

from reconcile.world import (
    agent,
    agents,
    asked,
    assert_delivered,
    assert_sound,
    checks,
    first_parents,
    is_in,
    landed,
    landings,
    notes,
    queue,
    reconcile,
    undelivered,
)

pytestmark = pytest.mark.shared  # which commits land, and the words about it

# Merge


def test_merge_lands_the_named_branches_in_that_order(repo: UserRepo) -> None:
    agents(repo, "a", "b", "c")
    done = repo.overlayrun("merge", "c", "a")
    assert (done.code, landed(done)) == (0, ["c", "a"]), str(done)
    assert queue(repo) == {"a": "landed", "b": "waiting", "c": "landed"}
    assert_delivered(repo)


def test_merge_goes_into_another_branch_and_leaves_the_target(repo: UserRepo) -> None:
    agents(repo, "a")
    main = repo.git("rev-parse", "main")
    repo.git("branch", "release")
    done = repo.overlayrun("merge", "a", "--into", "release")
    assert done.code == 0, str(done)
    assert repo.show("release", "a") == "a\n"
    assert repo.git("rev-parse", "main") == main
    assert queue(repo) == {"a": "waiting"}


def test_merge_with_a_check_that_fails_lands_nothing(repo: UserRepo) -> None:
    agents(repo, "a")
    main = repo.git("rev-parse", "main")
    done = repo.overlayrun("merge", "a", "--check", "echo why; exit 3")
    assert done.code == 1, str(done)
    assert repo.git("rev-parse", "main") == main
    assert "status 3" in done.out


def test_merge_lands_what_failed_before_once_it_is_asked_to(repo: UserRepo) -> None:
    agents(repo, "a")
    assert reconcile(repo, "--check", "test ! -e a").code == 1
    assert queue(repo) == {"a": "failed"}
    done = repo.overlayrun("merge", "a")
    assert (done.code, landed(done)) == (0, ["a"]), str(done)


def test_squash_makes_one_commit_on_the_target(repo: UserRepo) -> None:
    repo.inside(
        "echo 1 >one; git add .; git commit -qm 'first part'; echo 2 >two; git add .; git commit -qm 'second part'"
    )
    main = repo.git("rev-parse", "main")
    done = repo.overlayrun("merge", "b", "--squash")
    assert done.code == 0, str(done)
    assert repo.git("rev-list", "--parents", "-1", "main").split()[1:] == [main]
    assert {"one", "two"} <= repo.files("main").keys()
    message = repo.git("log", "-1", "--format=%B", "main")
    assert "first part" in message
    assert "second part" in message
    assert queue(repo) == {"b": "landed"}


def test_rebase_lands_each_commit_of_the_branch_on_the_target(repo: UserRepo) -> None:
    repo.inside(
        "echo 1 >one; git add .; git commit -qm 'first part'; echo 2 >two; git add .; git commit -qm 'second part'"
    )
    repo.commit("mine", mine="user\n")
    done = repo.overlayrun("merge", "b", "--rebase")
    assert done.code == 0, str(done)
    assert first_parents(repo)[:3] == ["second part", "first part", "mine"]
    assert repo.git("rev-list", "--merges", "main") == ""
    assert queue(repo) == {"b": "landed"}


def test_a_dry_run_tells_and_changes_nothing(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "good", new="x")
    agent(repo, "bad", text="agent\n")
    repo.commit("mine", text="user\n")
    before, refs = repo.picture(), repo.refs()
    done = repo.overlayrun("merge", "good", "bad", "--dry-run")
    assert done.code == 1, str(done)
    assert "good would land on main" in done.out
    assert "conflict: text" in done.out
    assert (repo.picture(), repo.refs()) == (before, refs)


def test_merge_answers_a_program(repo: UserRepo) -> None:
    agents(repo, "a")
    answer = asked(repo, "merge", "a")["targets"]
    assert [one["branch"] for one in answer[0]["landed"]] == ["a"]
    assert answer[0]["commit"] == repo.git("rev-parse", "main")
    assert (answer[0]["conflicts"], answer[0]["failed"], answer[0]["waiting"]) == ([], [], 0)


# Reconcile


def test_reconcile_lands_everything_oldest_first(repo: UserRepo) -> None:
    agents(repo, "c", "a", "b")
    done = reconcile(repo)
    assert (done.code, landed(done)) == (0, ["c", "a", "b"]), str(done)
    assert [landings(repo, name) for name in "abc"] == [1, 1, 1]
    assert_delivered(repo)
    assert_sound(repo)


def test_a_second_reconcile_finds_nothing_to_do(repo: UserRepo) -> None:
    agents(repo, "a")
    reconcile(repo)
    before, refs = repo.picture(), repo.refs()
    done = reconcile(repo)
    assert (done.code, done.out) == (0, ""), str(done)
    assert (repo.picture(), repo.refs()) == (before, refs)


def test_the_bad_one_goes_back_with_its_log_and_the_others_land(repo: UserRepo) -> None:
    agents(repo, "a", "bad", "b", "c")
    done = reconcile(repo, "--check", "if [ -e bad ]; then echo the reason; exit 7; fi")
    assert done.code == 1, str(done)
    assert sorted(landed(done)) == ["a", "b", "c"]
    assert queue(repo) == {"a": "landed", "bad": "failed", "b": "landed", "c": "landed"}
    assert "bad" not in repo.files("main")
    shown = repo.overlayrun("log", "--checks", "bad").out
    assert "the reason" in shown
    assert "status 7" in shown


def test_what_failed_is_not_tried_again_until_the_branch_goes_on(repo: UserRepo) -> None:
    agents(repo, "a")
    reconcile(repo, "--check", "! test -e a || test -e cure")
    asked_before = len(checks(repo, "a"))
    assert reconcile(repo, "--check", "! test -e a || test -e cure").code == 0
    assert len(checks(repo, "a")) == asked_before
    repo.inside("touch cure", branch="a")
    assert landed(reconcile(repo, "--check", "! test -e a || test -e cure")) == ["a"]


def test_a_conflict_leaves_the_queue_and_delays_nobody(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "bad", text="agent\n")
    agents(repo, "a", "b")
    repo.commit("mine", text="user\n")
    done = reconcile(repo)
    assert (done.code, landed(done)) == (1, ["a", "b"]), str(done)
    assert "conflict: text (" in done.out
    assert queue(repo)["bad"] == "conflict"
    assert repo.show("main", "text") == "user\n"
    assert_delivered(repo)


def test_of_two_that_conflict_the_older_lands(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "first", text="first\n")
    agent(repo, "second", text="second\n")
    done = reconcile(repo)
    assert (done.code, landed(done)) == (1, ["first"]), str(done)
    assert repo.show("main", "text") == "first\n"
    assert queue(repo) == {"first": "landed", "second": "conflict"}


def test_a_conflict_that_the_user_ends_lands_by_itself(repo: UserRepo) -> None:
    start = repo.commit("start", text="one\n")
    agent(repo, "a", text="agent\n")
    repo.commit("mine", text="user\n")
    assert reconcile(repo).code == 1
    repo.git("reset", "--hard", "-q", start)
    assert landed(reconcile(repo)) == ["a"]


def test_two_branches_with_the_same_change_both_count_as_landed(repo: UserRepo) -> None:
    agent(repo, "a", same="x\n")
    agent(repo, "b", same="x\n")
    done = reconcile(repo, "--squash")
    assert done.code == 0, str(done)
    assert queue(repo) == {"a": "landed", "b": "landed"}
    assert repo.show("main", "same") == "x\n"


def test_what_only_a_branch_that_failed_brought_has_not_landed(repo: UserRepo) -> None:
    agent(repo, "a", same="x\n")
    agent(repo, "b", same="x\n")
    reconcile(repo, "--squash", "--check", "! test -e same")
    assert set(queue(repo).values()) == {"failed"}
    assert "same" not in repo.files("main")


def test_only_names_the_branches_that_land(repo: UserRepo) -> None:
    agent(repo, "fix/a", one="1")
    agent(repo, "other", two="2")
    assert landed(reconcile(repo, "--only", "fix/*")) == ["fix/a"]
    assert queue(repo) == {"fix/a": "landed", "other": "waiting"}


def test_a_running_branch_is_not_taken(repo: UserRepo) -> None:
    agents(repo, "a")
    with repo.started("-b", "busy", "--", "sh", "-c", "echo x >busy; echo begun; read line") as running:
        running.expect("begun")
        assert repo.overlayrun("snapshot", "busy").code == 0
        assert landed(reconcile(repo)) == ["a"]
        assert queue(repo)["busy"] == "running"
        running.type("go")
        assert running.end() == 0
    assert landed(reconcile(repo)) == ["busy"]


@pytest.mark.by_both
def test_an_interrupted_branch_is_recovered_first(repo: UserRepo) -> None:
    with repo.started("-b", "cut", "--", "sh", "-c", "echo x >cut; echo begun; read line") as running:
        running.expect("begun")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        wait_until(lambda: queue(repo).get("cut") != "running", "the death of the keeper")
    assert landed(reconcile(repo)) == ["cut"]
    assert repo.show("main", "cut") == "x\n"


def test_a_branch_that_changed_nothing_is_no_work(repo: UserRepo) -> None:
    repo.inside("true")
    done = reconcile(repo)
    assert (done.code, done.out) == (0, ""), str(done)
    assert queue(repo) == {"b": "no change"}


def test_a_conflict_that_somebody_resolves_lands_in_the_same_reconcile(repo: UserRepo) -> None:
    _clash(repo)
    done = reconcile(repo, "--resolve", "echo both >text")
    assert (done.code, landed(done)) == (0, ["good", "a"]), str(done)
    assert repo.show("main", "text") == "both\n"
    assert repo.git("rev-list", "--parents", "-1", "main").split()[2] == repo.git("rev-parse", "a")


def _clash(repo: UserRepo) -> None:
    """A branch `a` that conflicts in `text`, and a good one."""
    repo.commit("start", text="one\n")
    agent(repo, "a", text="agent\n")
    agents(repo, "good")
    repo.commit("mine", text="user\n")


def test_a_conflict_that_was_left_is_resolved_by_a_later_reconcile(repo: UserRepo) -> None:
    _clash(repo)
    assert reconcile(repo).code == 1
    assert landed(reconcile(repo, "--resolve", "echo both >text")) == ["a"]
    assert repo.show("main", "text") == "both\n"


def test_a_resolver_that_leaves_the_markers_parks_the_branch_alone(repo: UserRepo) -> None:
    _clash(repo)
    done = reconcile(repo, "--resolve", "true")
    assert (done.code, landed(done)) == (1, ["good"]), str(done)
    assert queue(repo) == {"a": "parked", "good": "landed"}
    assert repo.show("main", "text") == "user\n"
    assert reconcile(repo, "--resolve", "echo both >text").out == ""
    assert landed(repo.overlayrun("merge", "a", "--resolve", "echo both >text")) == ["a"]


def test_a_resolution_must_pass_the_check_and_gets_its_log_on_a_second_try(repo: UserRepo) -> None:
    _clash(repo)
    script = "cat ${OVERLAYRUN_CONFLICT%/*}/check.log >text 2>/dev/null || echo no >text"
    check = "! grep -q no text || { echo write this; exit 1; }"
    done = reconcile(repo, "--resolve", script, "--check", check)
    assert landed(done) == ["good", "a"], str(done)
    assert repo.show("main", "text") == "write this\n"


# Approval and settings


def test_only_approved_branches_land_where_git_config_says_so(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    repo.git("config", "overlayrun.reconcile.require-approval", "true")
    assert reconcile(repo).out == ""
    assert set(queue(repo).values()) == {"not approved"}
    assert repo.overlayrun("approve", "a").code == 0
    assert queue(repo) == {"a": "waiting", "b": "not approved"}
    assert landed(reconcile(repo)) == ["a"]


def test_an_approval_ends_when_it_is_taken_back_or_the_branch_goes_on(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    repo.git("config", "overlayrun.reconcile.require-approval", "true")
    repo.overlayrun("approve", "a")
    repo.overlayrun("approve", "b")
    repo.overlayrun("unapprove", "a")
    repo.inside("echo more >more", branch="b")
    assert set(queue(repo).values()) == {"not approved"}
    assert landed(reconcile(repo)) == []


def test_the_file_sets_the_check_and_the_approval(repo: UserRepo) -> None:
    repo.commit("rules", overlayrun_toml="")
    repo.git("mv", "overlayrun_toml", "overlayrun.toml")
    repo.write(
        "overlayrun.toml", "[reconcile]\ncheck = 'test ! -e bad'\nslots = 1\nrequire-approval = true\n"
    )
    repo.commit("rules")
    agents(repo, "bad", "good", "shy")
    repo.overlayrun("approve", "bad")
    repo.overlayrun("approve", "good")
    done = reconcile(repo)
    assert (done.code, landed(done)) == (1, ["good"]), str(done)
    assert queue(repo) == {"bad": "failed", "good": "landed", "shy": "not approved"}


def test_a_flag_wins_over_git_config_and_that_over_the_file(repo: UserRepo) -> None:
    _rules(repo, "check = 'exit 11'")
    agents(repo, "a", "b")
    assert "status 11" in reconcile(repo, "--only", "a").out
    repo.git("config", "overlayrun.reconcile.check", "exit 12")
    repo.inside("echo more >more", branch="a")
    assert "status 12" in reconcile(repo, "--only", "a").out
    assert landed(reconcile(repo, "--check", "true")) == ["a", "b"]


def _rules(repo: UserRepo, text: str) -> str:
    repo.write("overlayrun.toml", f"[reconcile]\n{text}\n")
    return repo.commit("rules")


def test_what_the_file_may_not_say_is_refused_with_its_name(repo: UserRepo) -> None:
    _rules(repo, "chekc = 'true'")
    done = reconcile(repo)
    assert done.code == 3, str(done)
    assert "chekc" in done.err


def test_a_branch_that_changes_the_rules_needs_approval(repo: UserRepo) -> None:
    _rules(repo, "check = 'exit 1'")
    repo.inside("printf '[reconcile]\\n' >overlayrun.toml", branch="sly")
    assert reconcile(repo, "--check", "true").out == ""
    assert queue(repo) == {"sly": "not approved"}
    repo.overlayrun("approve", "sly")
    assert landed(reconcile(repo, "--check", "true")) == ["sly"]


def test_a_branch_that_adds_or_removes_the_rules_needs_approval(repo: UserRepo) -> None:
    repo.inside("printf '[reconcile]\\n' >overlayrun.toml", branch="adds")
    _rules(repo, "check = 'true'")
    repo.inside("rm overlayrun.toml", branch="removes")
    assert queue(repo) == {"adds": "not approved", "removes": "not approved"}
    assert reconcile(repo).out == ""


def test_rules_put_back_to_where_the_branch_began_need_approval_again(repo: UserRepo) -> None:
    """What counts is what a landing changes on the target, not where the branch began."""
    _rules(repo, "slots = 1")
    repo.inside("printf '[reconcile]\\nslots = 2\\n' >overlayrun.toml; git commit -qam two", branch="sly")
    repo.overlayrun("approve", "sly")
    assert landed(reconcile(repo)) == ["sly"]
    repo.inside("printf '[reconcile]\\nslots = 1\\n' >overlayrun.toml; git commit -qam one", branch="sly")
    assert queue(repo) == {"sly": "not approved"}
    assert reconcile(repo).out == ""
    assert "slots = 2" in repo.show("main", "overlayrun.toml")


def test_a_branch_cannot_take_back_rules_that_it_took_in(repo: UserRepo) -> None:
    _rules(repo, "slots = 1")
    agent(repo, "sly", new="x")
    repo.write("overlayrun.toml", "[reconcile]\ncheck = 'false'\n")
    repo.commit("stricter")
    assert repo.overlayrun("sync", "sly").code == 0
    repo.inside("printf '[reconcile]\\nslots = 1\\n' >overlayrun.toml", branch="sly")
    assert queue(repo) == {"sly": "not approved"}


def test_a_branch_that_only_took_in_the_users_rules_needs_no_approval(repo: UserRepo) -> None:
    _rules(repo, "slots = 1")
    agent(repo, "a", new="x")
    _rules(repo, "slots = 2")
    assert repo.overlayrun("sync", "a").code == 0
    assert queue(repo) == {"a": "waiting"}


def test_a_branch_that_stands_on_older_rules_needs_no_approval(repo: UserRepo) -> None:
    _rules(repo, "slots = 1")
    agents(repo, "a")
    _rules(repo, "slots = 2")
    assert landed(reconcile(repo)) == ["a"]
    assert "slots = 2" in repo.show("main", "overlayrun.toml")


# Checks


@pytest.mark.by_both
def test_a_check_writes_nowhere_but_in_its_own_workspace(repo: UserRepo) -> None:
    home, user = repo.home / "stolen", repo.root / "stolen"
    _rules(
        repo,
        f"check = 'echo x >{home}; echo x >stolen; echo x >{user}; echo x >.git/stolen; rm -rf src; true'",
    )
    agents(repo, "a")
    done = reconcile(repo)
    assert landed(done) == ["a"], str(done)
    assert not home.exists()
    assert not user.exists()
    assert not (repo.root / ".git/stolen").exists()
    assert repo.git("status", "--porcelain") == ""
    assert repo.files("main").keys() == {"README", "src/app.py", "tool.sh", "link", "overlayrun.toml", "a"}


@pytest.mark.by_both
def test_a_check_sees_the_very_tree_that_lands(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    repo.write("README", "not committed\n")
    repo.write("untracked", "x\n")
    done = reconcile(
        repo, "--check", "git status --porcelain; git rev-parse 'HEAD^{tree}'; ls; test ! -e untracked"
    )
    assert sorted(landed(done)) == ["a", "b"], str(done)
    answer = checks(repo, "b")[0]
    log = Path(answer["log"]).read_text().split()
    assert answer["tree"] == repo.git("rev-parse", "main^{tree}")
    assert answer["tree"] in log
    assert "??" not in log


@pytest.mark.by_both
def test_a_check_that_hangs_is_ended_and_named(repo: UserRepo) -> None:
    agents(repo, "slow", "good")
    hang = f"if [ -e slow ]; then {repo.sleeper()}; fi"
    done = reconcile(repo, "--check", hang, "--timeout", "1s")
    assert (done.code, landed(done)) == (1, ["good"]), str(done)
    assert "timed out" in done.out
    assert queue(repo)["slow"] == "failed"
    wait_until(lambda: not repo.marked(), "all dead")


@pytest.mark.parametrize("status", [1, 2, 124, 125, 126, 127, 137, 255])
def test_whatever_status_a_check_ends_with_only_its_branch_goes_back(repo: UserRepo, status: int) -> None:
    agents(repo, "bad", "good")
    done = reconcile(repo, "--check", f"test ! -e bad || exit {status}")
    assert (done.code, landed(done)) == (1, ["good"]), str(done)
    assert queue(repo)["bad"] == "failed"


def test_a_check_that_kills_itself_fails_its_own_branch_alone(repo: UserRepo) -> None:
    agents(repo, "bad", "good")
    done = reconcile(repo, "--check", "test ! -e bad || kill -9 -1 || kill -9 $$")
    assert (done.code, landed(done)) == (1, ["good"]), str(done)


def test_check_each_checks_the_tree_of_every_branch(repo: UserRepo) -> None:
    agents(repo, "a", "b", "c", "d")
    assert reconcile(repo, "--check", "true", "--check-each").code == 0
    trees = repo.git("log", "--first-parent", "--format=%T", "-4", "main").split()
    checked = {answer["tree"] for name in "abcd" for answer in checks(repo, name)}
    assert checked == set(trees)


def test_check_each_refuses_what_a_later_branch_would_mend(repo: UserRepo) -> None:
    agents(repo, "breaks", "mends")
    rule = "test ! -e breaks || test -e mends"
    done = reconcile(repo, "--check", rule, "--check-each", "--slots", "2")
    assert (done.code, landed(done)) == (1, ["mends"]), str(done)
    assert queue(repo)["breaks"] == "failed"


def test_without_it_runs_of_branches_are_checked_together(repo: UserRepo) -> None:
    agents(repo, "a", "b", "c", "d")
    assert reconcile(repo, "--check", "true", "--slots", "1").code == 0
    assert len(checks(repo, "d")) == 1
    assert checks(repo, "d")[0]["branches"] == ["a", "b", "c", "d"]


def test_the_same_tree_is_not_checked_twice(repo: UserRepo) -> None:
    agents(repo, "a")
    start = repo.git("rev-parse", "main")
    reconcile(repo, "--check", "true")
    repo.git("reset", "-q", "--hard", start)
    assert landed(repo.overlayrun("merge", "a", "--check", "true")) == ["a"]
    assert len(checks(repo, "a")) == 1
    repo.git("reset", "-q", "--hard", start)
    repo.overlayrun("merge", "a", "--check", "true ")
    assert len(checks(repo, "a")) == 2


@pytest.mark.by_both
def test_another_environment_is_another_question(repo: UserRepo) -> None:
    agents(repo, "a")
    start = repo.git("rev-parse", "main")
    reconcile(repo, "--check", "true")
    repo.git("reset", "-q", "--hard", start)
    repo.overlayrun("merge", "a", "--check", "true", env={"MODE": "release"})
    assert len(checks(repo, "a")) == 2


@pytest.fixture
def answers() -> Iterator[Answers]:
    """A server that checks can reach: their sandbox keeps nothing from one try to the next."""
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Answers(socketserver.TCPServer):
    """Sends the exit status that a check is to end with: 1 the first time, then 0."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.StreamRequestHandler)
        self.asked = 0

    def finish_request(self, request: Any, client_address: object) -> None:
        self.asked += 1
        request.sendall(b"1" if self.asked == 1 else b"0")

    @property
    def check(self) -> str:
        ask = f"import socket; print(socket.create_connection({self.server_address!r}).recv(1).decode())"
        return f'exit $({sys.executable} -c "{ask}")'


@pytest.mark.parametrize("slots", ["1", "2"])
def test_a_check_that_fails_once_by_chance_stops_no_branch(
    repo: UserRepo, answers: Answers, slots: str
) -> None:
    agents(repo, "a")
    done = reconcile(repo, "--check", answers.check, "--slots", slots)
    assert (done.code, landed(done)) == (0, ["a"]), str(done)
    assert [one["status"] for one in checks(repo, "a")] == [0, 1]


# The user's own work


def test_the_users_own_commits_are_never_gated(repo: UserRepo) -> None:
    agents(repo, "a")
    mine = repo.commit("broken by me", broken="x")
    done = reconcile(repo, "--check", "test ! -e broken")
    assert done.code == 1, str(done)
    assert repo.git("rev-parse", "main") == mine
    assert queue(repo) == {"a": "waiting"}


def test_a_commit_made_while_a_check_runs_stays_and_comes_first(repo: UserRepo) -> None:
    agents(repo, "a")
    wait = "i=0; while [ $i -lt 20 ]; do sleep .1; i=$((i+1)); done"
    with repo.started("reconcile", "--check", f"test -e mine || {{ {wait}; }}") as running:
        running.expect("checking a")
        mine = repo.commit("mine", mine="user\n")
        assert running.end() == 0, running.text()
    assert first_parents(repo)[:2] == ["Merge branch 'a' into main", "mine"]
    assert is_in(repo, mine, "main")
    assert checks(repo, "a")[0]["tree"] == repo.git("rev-parse", "main^{tree}")
    assert_delivered(repo)


def test_a_target_that_the_user_took_back_is_not_landed_on_again(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    start = repo.git("rev-parse", "main")
    reconcile(repo)
    repo.git("reset", "-q", "--hard", start)
    assert queue(repo) == {"a": "taken out", "b": "taken out"}
    assert reconcile(repo).out == ""
    assert repo.git("rev-parse", "main") == start
    assert landed(repo.overlayrun("merge", "b")) == ["b"]
    assert queue(repo) == {"a": "taken out", "b": "landed"}


def test_what_was_taken_out_lands_again_once_the_branch_goes_on(repo: UserRepo) -> None:
    agents(repo, "a")
    start = repo.git("rev-parse", "main")
    reconcile(repo)
    repo.git("reset", "-q", "--hard", start)
    repo.inside("echo more >more", branch="a")
    assert landed(reconcile(repo)) == ["a"]
    assert {"a", "more"} <= repo.files("main").keys()


@pytest.mark.parametrize("mode", [[], ["--squash"], ["--rebase"]], ids=["merge", "squash", "rebase"])
def test_a_branch_that_goes_on_lands_its_new_work_only(repo: UserRepo, mode: list[str]) -> None:
    repo.commit("start", text="".join(f"{number}\n" for number in range(20)))
    repo.inside("sed -i 's/^3$/agent/' text")
    assert landed(reconcile(repo, *mode)) == ["b"]
    repo.git("checkout", "-q", "main")
    text = (repo.root / "text").read_text()
    repo.commit("mine", text=text.replace("agent\n", "user\n"))
    repo.inside("sed -i 's/^15$/more/' text")
    done = reconcile(repo, *mode)
    assert landed(done) == ["b"], str(done)
    lines = repo.show("main", "text").splitlines()
    assert (lines[3], lines[15]) == ("user", "more")


def test_work_given_back_from_a_held_delivery_still_knows_what_landed_before(repo: UserRepo) -> None:
    """Squashed: version 1 is delivered, 2 is held, the user moves on: 1 does not come again."""
    repo.commit("start", text="".join(f"{number}\n" for number in range(20)), other="x\n")
    repo.inside("sed -i 's/^3$/agent/' text", branch="b")
    assert landed(reconcile(repo, "--squash")) == ["b"]
    repo.commit("mine", text=(repo.root / "text").read_text().replace("agent\n", "user\n"))
    repo.inside("echo agent >other", "--dirty", "ignore", branch="b")
    repo.write("other", "not committed\n")
    assert reconcile(repo, "--squash").code == 1
    repo.git("checkout", "-q", "other")
    repo.commit("moved on", more="x")
    done = reconcile(repo, "--squash")
    assert landed(done) == ["b"], str(done)
    assert repo.show("main", "text").splitlines()[3] == "user"
    assert repo.show("main", "other") == "agent\n"


def test_new_work_lands_without_what_the_user_took_back_of_the_old(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "a", text="agent\n")
    assert landed(reconcile(repo)) == ["a"]
    repo.commit("not that", text="one\n")
    repo.inside("echo more >more", branch="a")
    assert landed(reconcile(repo)) == ["a"]
    assert (repo.show("main", "text"), repo.show("main", "more")) == ("one\n", "more\n")


def test_a_held_landing_is_no_reason_to_lose_the_branch(repo: UserRepo) -> None:
    """Removed as landed while the delivery waits; then the user moves on, and what waited is queued again."""
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    assert reconcile(repo).code == 1
    repo.overlayrun("rm", "a")
    repo.git("checkout", "-q", "a.py")
    repo.commit("mine", mine="x\n")
    reconcile(repo)
    blob = repo.raw_git("hash-object", "--stdin", data=b"agent\n").decode().strip()
    assert blob in repo.git("rev-list", "--objects", "--all", "--reflog")


def test_rebase_lands_a_branch_whose_merges_it_would_lose_as_one_commit(repo: UserRepo) -> None:
    repo.inside(
        "git checkout -qb side; echo 1 >one; git add .; git commit -qm one; git checkout -q b; echo 2 >two; git add .;"
        "git commit -qm two; git merge -q --no-commit side; echo merged >three; git add .; git commit -qm three"
    )
    agents(repo, "other")
    done = reconcile(repo, "--rebase")
    assert (done.code, landed(done)) == (0, ["b", "other"]), str(done)
    assert {"one", "two", "three", "other"} <= repo.files("main").keys()


def test_rebase_lands_a_branch_in_which_only_a_step_conflicts(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    repo.inside(
        "echo 2 >text; git commit -qam two; echo one >text; echo x >new; git add .; git commit -qm back"
    )
    repo.commit("mine", text="user\n")
    done = reconcile(repo, "--rebase")
    assert (done.code, landed(done)) == (0, ["b"]), str(done)
    assert (repo.show("main", "text"), repo.show("main", "new")) == ("user\n", "x\n")


def test_a_conflict_of_a_rebase_is_resolved_once(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "a", text="agent\n")
    repo.commit("mine", text="user\n")
    done = reconcile(repo, "--rebase", "--resolve", "echo both >text")
    assert (done.code, landed(done)) == (0, ["a"]), str(done)
    assert repo.show("main", "text") == "both\n"
    assert done.err.count("handed to") == 1


# Branches that began with uncommitted changes


def _from_uncommitted(repo: UserRepo) -> None:
    """A branch that began with `mine` changed and changed `theirs` itself."""
    repo.commit("start", mine="one\n", theirs="one\n")
    repo.write("mine", "two\n")
    repo.inside("echo agent >theirs")


def _after(repo: UserRepo, *args: str) -> Done:
    done = reconcile(repo, *args)
    assert (done.code, landed(done)) == (0, ["b"]), str(done)
    assert repo.show("main", "theirs") == "agent\n"
    assert queue(repo) == {"b": "landed"}
    return done


def test_uncommitted_changes_do_not_land_with_the_branch(repo: UserRepo) -> None:
    _from_uncommitted(repo)
    _after(repo)
    assert repo.show("main", "mine") == "one\n"
    assert (repo.root / "mine").read_text() == "two\n"
    assert repo.git("status", "--porcelain") == "M mine"


def test_they_may_have_been_committed_meanwhile(repo: UserRepo) -> None:
    _from_uncommitted(repo)
    repo.commit("mine")
    _after(repo)
    assert repo.show("main", "mine") == "two\n"
    assert_delivered(repo)


def test_they_may_have_been_altered_and_committed_meanwhile(repo: UserRepo) -> None:
    _from_uncommitted(repo)
    repo.commit("mine", mine="three\n")
    _after(repo)
    assert repo.show("main", "mine") == "three\n"


def test_they_may_have_been_dropped_meanwhile(repo: UserRepo) -> None:
    _from_uncommitted(repo)
    repo.git("checkout", "-q", "mine")
    _after(repo)
    assert repo.show("main", "mine") == "one\n"
    assert_delivered(repo)


def test_such_a_branch_goes_on_and_lands_its_new_work_only(repo: UserRepo) -> None:
    _from_uncommitted(repo)
    _after(repo)
    repo.commit("mine", mine="three\n", theirs="user\n")
    repo.inside("echo more >more")
    assert landed(reconcile(repo)) == ["b"]
    assert (repo.show("main", "theirs"), repo.show("main", "mine")) == ("user\n", "three\n")
    assert repo.show("main", "more") == "more\n"


# Delivery


def test_a_dirty_file_in_the_way_holds_what_has_landed(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    main = repo.git("rev-parse", "main")
    repo.write("a.py", "mine\n")
    done = reconcile(repo)
    assert done.code == 1, str(done)
    assert "1 landed commit waits: a.py is dirty" in done.out
    assert repo.git("rev-parse", "main") == main
    assert (repo.root / "a.py").read_text() == "mine\n"
    assert asked(repo, "queue")["waiting"] == 1
    assert queue(repo) == {"a": "landed"}


def test_it_is_delivered_once_the_user_has_cleaned_up(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    agents(repo, "b")
    repo.write("a.py", "mine\n")
    assert "2 landed commits wait: a.py is dirty" in reconcile(repo).out
    repo.git("checkout", "-q", "a.py")
    done = reconcile(repo)
    assert done.code == 0, str(done)
    assert (repo.root / "a.py").read_text() == "agent\n"
    assert [landings(repo, name) for name in "ab"] == [1, 1]
    assert_delivered(repo)


def test_more_lands_on_top_of_what_is_held(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    reconcile(repo)
    agents(repo, "b")
    assert "2 landed commits wait" in reconcile(repo).out
    assert queue(repo) == {"a": "landed", "b": "landed"}


def test_a_target_that_moves_while_something_is_held_gets_it_again(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    assert reconcile(repo).code == 1
    repo.git("checkout", "-q", "a.py")
    mine = repo.commit("mine", mine="x\n")
    assert landed(reconcile(repo)) == ["a"]
    assert repo.git("rev-list", "--parents", "-1", "main").split()[1:] == [mine, repo.git("rev-parse", "a")]
    assert_delivered(repo)


def test_the_users_commit_of_the_same_file_makes_it_a_conflict(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    assert reconcile(repo).code == 1
    repo.commit("mine")
    done = reconcile(repo)
    assert done.code == 1, str(done)
    assert queue(repo) == {"a": "conflict"}
    assert repo.show("main", "a.py") == "mine\n"
    assert_delivered(repo)


def test_a_target_reset_while_something_is_held_is_not_moved_forward_by_it(repo: UserRepo) -> None:
    before = repo.git("rev-parse", "main")
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    assert reconcile(repo).code == 1
    repo.git("reset", "-q", "--hard", before)
    done = reconcile(repo)
    assert is_in(repo, before, "main"), str(done)
    assert "start" not in first_parents(repo)


def test_a_target_that_is_not_checked_out_moves_alone(repo: UserRepo) -> None:
    agents(repo, "a")
    repo.git("checkout", "-q", "-b", "elsewhere")
    before = repo.picture()
    assert landed(reconcile(repo, "--into", "main")) == ["a"]
    assert repo.show("main", "a") == "a\n"
    assert repo.picture() == before


# The queue


def test_the_queue_is_in_the_order_of_landing_with_a_reason_for_each(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "clash", text="agent\n")
    agents(repo, "good", "bad")
    repo.inside("true", branch="idle")
    repo.commit("mine", text="user\n")
    reconcile(repo, "--check", "test ! -e bad")
    agents(repo, "late")
    found = asked(repo, "queue")
    states = [(one["branch"], one["state"]) for one in found["branches"]]
    assert states == [
        ("clash", "conflict"),
        ("good", "landed"),
        ("bad", "failed"),
        ("idle", "no change"),
        ("late", "waiting"),
    ]
    why = {one["branch"]: one["why"] for one in found["branches"]}
    assert "status 1" in why["bad"]
    assert why["clash"]
    shown = repo.overlayrun("queue").out
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["clash", "good", "bad", "idle", "late"]


def test_the_queue_shows_what_is_checked_now(repo: UserRepo) -> None:
    agents(repo, "a")
    with repo.started("reconcile", "--check", repo.sleeper()) as running:
        running.expect("checking a")
        one = asked(repo, "queue")["branches"][0]
        assert one["work"]["what"] == "checking"
    wait_until(lambda: not repo.marked(), "the end of the check")
    wait_until(lambda: asked(repo, "queue")["branches"][0]["work"] is None, "an empty board")
    assert queue(repo) == {"a": "waiting"}


def test_rm_takes_the_notes_of_a_branch_away(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    agent(repo, "clash", text="agent\n")
    agents(repo, "good", "bad")
    repo.commit("mine", text="user\n")
    reconcile(repo, "--check", "test ! -e bad")
    repo.overlayrun("approve", "bad")
    assert {name.split("/")[3] for name in notes(repo)} == {"landed", "park", "conflict", "approved"}
    assert repo.overlayrun("rm", "--force", "clash", "good", "bad").code == 0
    assert notes(repo) == {}


# Watching


def test_watch_takes_what_becomes_ready_and_ends_well(repo: UserRepo) -> None:
    agents(repo, "a")
    with repo.started("reconcile", "--watch") as running:
        running.expect("branch a is merged")
        agents(repo, "b")
        running.expect("branch b is merged")
        mine = repo.commit("mine", mine="x")
        agents(repo, "c")
        running.expect("branch c is merged")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0, running.text()
        lines = running.text().splitlines()
    assert len([line for line in lines if " is merged: " in line]) == 3
    assert is_in(repo, mine, "main")
    assert_delivered(repo)


def test_watch_delivers_what_was_held_once_it_can(repo: UserRepo) -> None:
    repo.commit("start", **{"a.py": "one\n"})
    agent(repo, "a", a_py="agent\n")
    repo.write("a.py", "mine\n")
    with repo.started("reconcile", "--watch") as running:
        running.expect("a.py is dirty")
        repo.git("checkout", "-q", "a.py")
        wait_until(lambda: (repo.root / "a.py").read_text() == "agent\n", "the delivery")
        wait_until(lambda: not undelivered(repo), "the end of the delivery")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0, running.text()
    assert running.text().count("a.py is dirty") == 1
    assert_delivered(repo)


def test_watch_tells_a_program_one_event_a_line(repo: UserRepo) -> None:
    agents(repo, "a")
    with repo.started("reconcile", "--watch", "--json") as running:
        running.expect('"event": "landed"')
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0, running.text()


@pytest.mark.by_both
def test_a_target_that_is_just_being_checked_out_gets_its_files_too(repo: UserRepo) -> None:
    repo.git("config", "filter.slow.smudge", "sleep 3; cat")
    repo.commit("start", **{".gitattributes": "slow filter=slow\n", "slow": "x\n"})
    agents(repo, "a")
    repo.git("checkout", "-q", "-b", "elsewhere")
    repo.git("rm", "-q", "slow")
    repo.git("commit", "-qm", "without")
    with subprocess.Popen(["git", "checkout", "-q", "main"], cwd=repo.root, env=repo.env) as checkout:
        wait_until((repo.root / ".git/index.lock").exists, "the checkout")
        reconcile(repo, "--into", "main")
    assert checkout.returncode == 0
    reconcile(repo)
    assert repo.show("main", "a") == "a\n"
    assert repo.git("status", "--porcelain") == ""


def test_where_the_target_itself_fails_no_branch_is_blamed(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    done = reconcile(repo, "--check", "exit 3")
    assert (done.code, landed(done)) == (1, [])
    assert "main itself fails the check (the check failed with status 3)" in done.out
    assert "goes back" not in done.out
    assert landed(reconcile(repo, "--check", "true")) == ["a", "b"]


def test_a_branch_that_mends_the_target_lands(repo: UserRepo) -> None:
    agents(repo, "a")
    repo.inside("touch mended", branch="mend")
    done = reconcile(repo, "--check", "test -e mended")
    assert "mend" in landed(done)


def test_a_branch_that_the_user_deleted_lands_only_by_name(repo: UserRepo) -> None:
    agents(repo, "a", "b")
    repo.git("branch", "-D", "a")
    assert landed(reconcile(repo)) == ["b"]
    assert landed(repo.overlayrun("merge", "a")) == ["a"]
