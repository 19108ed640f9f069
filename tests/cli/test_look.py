"""`ls`, `status`, `show`, `log`, `diff`: what they print, golden where it is stable, and their JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import UserRepo, copy_repo

pytestmark = pytest.mark.shared  # how commits and records are shown

_WORKSPACE_KEYS = {
    *(
        "branch",
        "id",
        "repository",
        "state",
        "base",
        "dirty",
        "target",
        "parent",
        "parent_id",
        "created",
        "prompt",
        "last_run",
    ),
    *("snapshots", "change", "ahead", "landed", "bytes", "fault"),
    *("agent", "session_id", "session_title", "turn", "last_message"),
}


def _json(repo: UserRepo, *words: str) -> Any:
    done = repo.overlayrun(*words, "--json")
    assert done.code == 0, str(done)
    data = json.loads(done.out)
    assert data.pop("schema") == 1
    return data


def _plain(text: str) -> str:
    """`text` without what differs from run to run: ids, times, sizes."""
    text = re.sub(r"\b[0-9a-f]{10}\b", "<id>", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "<time>", text)
    text = re.sub(r"\d+ s( ago)?", r"<span>\1", text)
    return re.sub(r"[0-9.]+ KB", "<size>", text)


def _work(repo: UserRepo) -> UserRepo:
    """Branch `fix`: one file changed, then another added; two snapshots."""
    repo.inside("echo 'answer = 42' >src/app.py", "-m", "Right answer", branch="fix")
    repo.inside("echo new >added", branch="fix")
    return repo


@pytest.fixture
def worked(repo: UserRepo) -> UserRepo:
    """Branch `fix` in a repository of the test's own."""
    return _work(repo)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path) -> UserRepo:
    """Branch `fix` in one repository for all tests that do nothing but look."""
    return _work(copy_repo(_repo_to_copy, tmp_path_factory.mktemp("shown")))


def test_ls_without_a_workspace(repo: UserRepo) -> None:
    done = repo.overlayrun("ls")
    assert (done.code, done.out) == (0, "no workspace yet; start one: overlayrun -- COMMAND\n")
    assert _json(repo, "ls") == {"workspaces": [], "broken": []}


def test_ls_shows_a_line_a_branch(worked: UserRepo) -> None:
    worked.overlayrun("-b", "idle", "--", "true")
    lines = [re.sub(r" {2,}", "  ", line) for line in _plain(worked.overlayrun("ls").out).splitlines()]
    assert lines == [
        "BRANCH  STATE  FILES  LINES  AHEAD  CONFLICTS  SNAPSHOTS  DISK  USED  COMMAND",
        "fix  idle  2  +2 -1  1  -  2  <size>  <span> ago  Right answer",
        "idle  idle  0  +0 -0  0  -  0  <size>  <span> ago  true",
    ]


def test_ls_fits_a_terminal_of_80_columns(shown: UserRepo) -> None:
    with shown.terminal(*shown.command("ls")) as terminal:
        assert terminal.end() == 0
        text = terminal.text()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    heads, row = (next(line for line in lines if line.startswith(word)) for word in ("BRANCH", "fix"))
    assert "DISK" not in heads
    assert row.startswith("fix     idle   2      +2 -1  1      ")
    assert heads.index("COMMAND") == row.index("Right answer")
    assert max(len(heads), len(row)) <= 80


def test_ls_json_has_its_shape(shown: UserRepo) -> None:
    data = _json(shown, "ls")
    assert data["broken"] == []
    (item,) = data["workspaces"]
    assert set(item) == _WORKSPACE_KEYS
    assert (item["branch"], item["state"], item["target"], item["snapshots"]) == ("fix", "idle", "main", 2)
    assert item["change"] == {"files": 2, "insertions": 2, "deletions": 1}
    assert (item["ahead"], item["landed"], item["prompt"]) == (1, False, "Right answer")
    assert item["base"] == shown.git("rev-parse", "main")
    assert set(item["last_run"]) == {"number", "command", "status", "started", "ended"}
    assert item["last_run"]["number"] == 2
    assert item["last_run"]["status"] == 0
    assert item["created"] <= item["last_run"]["started"] <= item["last_run"]["ended"]


@pytest.mark.by_both
def test_bytes_are_those_of_the_workspace_alone(worked: UserRepo) -> None:
    before = _json(worked, "ls")["workspaces"][0]["bytes"]
    worked.inside("head -c 1000000 /dev/urandom >big", branch="fix")
    assert 900_000 < _json(worked, "ls")["workspaces"][0]["bytes"] - before < 1_300_000


def test_a_landed_branch_is_computed_from_the_commits(worked: UserRepo) -> None:
    worked.git("merge", "--quiet", "--ff-only", "fix")
    (item,) = _json(worked, "ls")["workspaces"]
    assert (item["landed"], item["ahead"]) == (True, 0)
    assert " landed " in worked.overlayrun("ls").out
    worked.git("reset", "--quiet", "--hard", "HEAD^")
    assert _json(worked, "ls")["workspaces"][0]["landed"] is False


def test_a_branch_without_work_has_not_landed(repo: UserRepo) -> None:
    repo.inside("true")
    (item,) = _json(repo, "ls")["workspaces"]
    assert (item["landed"], item["ahead"], item["snapshots"]) == (False, 0, 0)


def test_work_on_top_of_uncommitted_changes_lands_without_them(repo: UserRepo) -> None:
    repo.write("README", "my own edit\n")
    repo.inside("echo agent >agent")
    repo.git("checkout", "--quiet", "README")
    assert repo.overlayrun("merge", "b").code == 0
    assert repo.git("show", "main:README") == "read me"
    (item,) = _json(repo, "ls")["workspaces"]
    assert item["landed"] is True


def test_ls_all_lists_other_repositories_too(worked: UserRepo, tmp_path: Path) -> None:
    other = worked.at(tmp_path / "other")
    other.root.mkdir()
    other.git("init", "--quiet")
    other.commit("first", file="1\n")
    other.inside("echo 2 >file", branch="far")
    assert [each["branch"] for each in _json(worked, "ls")["workspaces"]] == ["fix"]
    found = {each["branch"]: each["repository"] for each in _json(worked, "ls", "--all")["workspaces"]}
    assert found == {"fix": str(worked.root), "far": str(other.root)}
    text = worked.overlayrun("ls", "--all", cwd=tmp_path).out
    assert f"{worked.root}\n" in text
    assert f"{other.root}\n" in text


def test_a_broken_record_is_told_of_and_hides_nothing(worked: UserRepo) -> None:
    torn = worked.state / "workspaces/torn"
    torn.mkdir()
    (torn / "record.json").write_text("{")
    done = worked.overlayrun("ls")
    assert "fix " in done.out
    assert done.ours == [f"broken: {torn}: see: overlayrun doctor"]
    assert _json(worked, "ls")["broken"] == [str(torn)]


def test_a_workspace_whose_commits_are_gone_is_broken(worked: UserRepo) -> None:
    base = worked.git("rev-parse", "main")
    record = worked.records()["fix"]["path"]
    record.write_text(record.read_text().replace(base, "1" * 40))
    (item,) = _json(worked, "ls")["workspaces"]
    assert item["state"] == "broken"
    assert item["fault"]
    done = worked.overlayrun("show", "fix")
    assert (done.code, f"state      broken: {item['fault']}" in done.out) == (0, True)
    assert _json(worked, "show", "fix")["snapshot_list"][1]["number"] == 1


def test_status_of_nothing(repo: UserRepo) -> None:
    repo.write("README", "edited\n")
    repo.write("new", "new\n")
    head = repo.git("rev-parse", "HEAD")
    done = repo.overlayrun("status")
    assert done.out == f"your tree repo: main ({head[:10]}), 2 uncommitted changes\nnothing runs\n"
    tree = {"root": str(repo.root), "branch": "main", "head": head, "uncommitted": 2}
    assert _json(repo, "status") == {"tree": tree, "running": [], "folders": None}


@pytest.mark.by_both
def test_status_shows_what_a_run_uses(repo: UserRepo) -> None:
    script = "echo 1 >one; echo ready; while :; do :; done"
    with repo.started("-b", "busy", "--", "sh", "-c", script) as run:
        run.expect("ready")
        repo.overlayrun("snapshot", "busy")
        data = _json(repo, "status")
        text = repo.overlayrun("status").out
        assert [each["state"] for each in _json(repo, "ls")["workspaces"]] == ["running"]
    (item,) = data["running"]
    assert set(item) == {
        *("branch", "id", "throwaway", "run", "processes", "memory", "cpu_seconds", "cpu_load"),
        *("last_snapshot", "change", "agent", "session_id", "session_title", "turn", "last_message"),
    }
    assert (item["branch"], item["throwaway"], item["run"]["status"]) == ("busy", False, None)
    assert item["processes"] >= 2
    assert item["memory"] > 1_000_000
    assert item["cpu_load"] > 0.02
    assert item["change"]["files"] == 1
    assert item["last_snapshot"] > 0
    assert re.search(
        r"^BRANCH +RUNS +PROCESSES +MEMORY +CPU +LAST SNAPSHOT +FILES +LINES +COMMAND$", text, re.M
    )
    assert re.search(r"^busy +\d+ s +\d+ +[\d.]+ MB +\d+% +\d+ s ago +1 +\+1 -0 +sh -c ", text, re.M)


def test_show_a_branch(shown: UserRepo) -> None:
    place = shown.workspace("fix")
    text = _plain(
        shown.overlayrun("show", "fix").out.replace(str(place), "<place>").replace(place.name, "<name>")
    )
    assert text.splitlines() == [
        "branch     fix",
        "state      idle",
        "base       <id> second",
        "target     main",
        "created    <time>",
        "prompt     Right answer",
        "last run   sh -c 'set -e\\necho new >added' (status 0, <span>, <time>)",
        "change     2 files, +2 -1 lines",
        "standing   1 commit ahead of main",
        "home       copy-on-write view of yours",
        "disk       <size>",
        "workspace  <place>",
        "refs       refs/heads/fix refs/overlayrun/snapshots/<name>",
        "snapshots  @{0}  <time>  exit      <id>  Right answer",
        "           @{1}  <time>  exit      <id>  Right answer",
    ]


def test_show_json(shown: UserRepo) -> None:
    data = _json(shown, "show", "fix")
    assert set(data) == {"workspace", "snapshot_list", "left_out", "carried", "paths", "refs"}
    assert set(data["workspace"]) == _WORKSPACE_KEYS
    assert [(each["back"], each["number"]) for each in data["snapshot_list"]] == [(0, 2), (1, 1)]
    assert data["paths"]["workspace"] == str(shown.workspace("fix"))
    assert data["refs"][0] == "refs/heads/fix"


@pytest.mark.by_both
def test_show_names_what_no_snapshot_holds(repo: UserRepo) -> None:
    repo.inside("mkfifo 'pipe\nline'; echo 1 >file")
    assert _json(repo, "show", "b")["left_out"] == [
        {"path": "pipe\nline", "reason": "a socket, FIFO or device"}
    ]
    assert "left out   pipe\\nline: a socket, FIFO or device\n" in repo.overlayrun("show", "b").out


def test_show_a_snapshot_with_its_change(shown: UserRepo) -> None:
    text = shown.overlayrun("show", "fix@{1}").out
    assert re.match(r"@\{1\}  .{19}  exit      [0-9a-f]{10}  Right answer\n\n    Right answer\n", text)
    assert " src/app.py | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)\n" in text
    assert text.endswith("@@ -1 +1 @@\n-answer = 41\n+answer = 42\n")
    assert "b/added" not in text
    data = _json(shown, "show", "fix@{0}")
    assert data["snapshot"]["change"] == {"files": 1, "insertions": 1, "deletions": 0}
    assert data["snapshot"]["number"] == 2
    assert data["snapshot"]["files"] == [{"path": "added", "status": "A", "insertions": 1, "deletions": 0}]


def test_log_lists_the_newest_first(shown: UserRepo) -> None:
    assert _plain(shown.overlayrun("log", "fix").out).splitlines() == [
        "@{0}  2  <span> ago  1 file +1 -0  Right answer",
        "@{1}  1  <span> ago  1 file +1 -1  Right answer",
    ]
    assert shown.overlayrun("log", "--reverse", "fix").out.startswith("@{1}")
    data = _json(shown, "log", "fix")
    assert data["branch"] == "fix"
    assert [each["commit"] for each in data["snapshots"]] == shown.snapshots("fix")
    assert set(data["snapshots"][0]) == {
        *("back", "number", "commit", "tip", "tree", "time", "reason", "subject"),
        *("agent", "session_id", "model", "tool", "prompt", "message", "change"),
    }


def test_log_with_patches_shows_each_against_the_one_before(shown: UserRepo) -> None:
    text = shown.overlayrun("log", "-p", "fix").out
    first, second = text.split("@{1}")
    assert "+++ b/added" in first
    assert "src/app.py" not in first
    assert "+answer = 42" in second


def test_log_of_a_branch_without_a_snapshot(repo: UserRepo) -> None:
    repo.inside("true")
    assert repo.overlayrun("log", "b").out == "branch b has no snapshot yet\n"
    assert repo.overlayrun("diff", "b").out == ""


_PATCH = """\
diff --git a/added b/added
new file mode 100644
index 0000000..3e75765
--- /dev/null
+++ b/added
@@ -0,0 +1 @@
+new
diff --git a/src/app.py b/src/app.py
index e4af6c9..e29d6b4 100644
--- a/src/app.py
+++ b/src/app.py
@@ -1 +1 @@
-answer = 41
+answer = 42
"""


def test_diff_is_the_patch_against_the_start(shown: UserRepo) -> None:
    done = shown.overlayrun("diff", "fix")
    assert (done.code, done.err) == (0, "")
    assert re.sub(r"index \S+", "index", done.out) == re.sub(r"index \S+", "index", _PATCH)
    assert done.out == shown.overlayrun("diff").out


def test_diff_can_be_applied_by_git(worked: UserRepo) -> None:
    worked.raw_git("apply", "--index", data=worked.overlayrun("diff", "fix").out.encode())
    assert worked.git("write-tree") == worked.git("rev-parse", "fix^{tree}")


@pytest.mark.parametrize(
    ("span", "names"),
    [
        ("fix", ["added", "src/app.py"]),
        ("fix@{0}", ["added", "src/app.py"]),
        ("fix@{1}", ["src/app.py"]),
        ("@{1}", ["src/app.py"]),
        ("fix@{1}..fix", ["added"]),
        ("fix@{1}..@{0}", ["added"]),
        ("@{1}..", ["added"]),
        ("fix..fix@{1}", ["added"]),
    ],
)
def test_places_in_a_history(shown: UserRepo, span: str, names: list[str]) -> None:
    assert shown.overlayrun("diff", "--name-only", span).out.split() == names


def test_diff_leaves_the_users_uncommitted_changes_aside(repo: UserRepo) -> None:
    repo.write("README", "my own edit\n")
    repo.inside("echo agent >agent")
    assert repo.overlayrun("diff", "--name-only", "b").out == "agent\n"


def test_diff_stat(shown: UserRepo) -> None:
    assert shown.overlayrun("diff", "--stat", "fix").out == (
        " added      | 1 +\n src/app.py | 2 +-\n 2 files changed, 2 insertions(+), 1 deletion(-)\n"
    )


def test_diff_json(worked: UserRepo) -> None:
    worked.inside("head -c 100 /dev/zero >binary; rm README", branch="fix")
    data = _json(worked, "diff", "fix@{1}..fix")
    assert data["files"] == [
        {"path": "README", "status": "D", "insertions": 0, "deletions": 1},
        {"path": "binary", "status": "A", "insertions": None, "deletions": None},
    ]
    assert (data["insertions"], data["deletions"], data["branch"]) == (0, 1, "fix")
    assert data["from"]["label"] == "fix@{1}"
    assert set(data["to"]) == {"label", "tree", "snapshot"}


def test_diff_runs_no_program_that_attributes_name(repo: UserRepo) -> None:
    repo.git("config", "diff.evil.command", f"touch {repo.root}/command-ran")
    repo.git("config", "diff.evil.textconv", f"touch {repo.root}/textconv-ran; cat")
    (repo.root / ".git/info/attributes").write_text("* diff=evil\n")
    repo.inside("echo '* diff=evil' >.gitattributes; echo 1 >>README")
    for words in (["diff", "b"], ["diff", "--stat", "b"], ["log", "-p", "b"], ["show", "b@{0}"]):
        assert repo.overlayrun(*words).code == 0
    assert not list(repo.root.glob("*-ran"))


@pytest.mark.by_both
def test_live_shows_what_a_running_branch_has_now(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo 1 >one; echo ready; cat") as run:
        run.expect("ready")
        assert repo.overlayrun("diff", "b").out == ""
        assert repo.overlayrun("diff", "--name-only", "--live", "b").out == "one\n"
        assert repo.overlayrun("diff", "--name-only", "b").out == "one\n"


def test_odd_names_and_contents_can_not_write_to_a_terminal(repo: UserRepo) -> None:
    repo.inside("printf 'x\\033[2J\\342\\200\\256y\\n' >file; echo 1 >\"$(printf 'a\\033[2Jb')\"")
    for words in (["diff", "b"], ["diff", "--stat", "b"], ["log", "b"], ["ls"], ["show", "b"]):
        with repo.terminal(*repo.command(*words)) as terminal:
            assert terminal.end() == 0
            text = terminal.text()
        assert "\x1b[2J" not in text, words
        assert "\u202e" not in text, words


def test_a_pipe_gets_the_patch_byte_for_byte(repo: UserRepo) -> None:
    repo.inside("printf 'x\\033[2J\\377y\\n' >file")
    assert "+x\x1b[2J\udcffy\n" in repo.overlayrun("diff", "b").out


@pytest.mark.parametrize(("name", "has_colours"), [("NOTHING", True), ("NO_COLOR", False)])
def test_colours_are_for_terminals_that_want_them(worked: UserRepo, name: str, *, has_colours: bool) -> None:
    worked.env[name] = "1"
    for words in (["diff", "fix"], ["log", "fix"]):
        assert "\x1b[" not in worked.overlayrun(*words).out
        with worked.terminal(*worked.command(*words)) as terminal:
            assert terminal.end() == 0
            assert ("\x1b[3" in terminal.text()) is has_colours


def test_ls_on_a_terminal_fits_its_width(worked: UserRepo) -> None:
    with worked.terminal(*worked.command("ls")) as terminal:
        assert terminal.end() == 0
        lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text()).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("fix") for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["log", "nope"], "no workspace is called 'nope'"),
        (["diff", "fix@{7}"], "branch fix has no @{7}: it has 2 snapshots"),
        (["diff", "fix@{x}"], "not a branch or a snapshot: 'fix@{x}'"),
        (["diff", "fix..nope"], "no workspace is called 'nope'"),
        (["show", "\x1b[2J@"], r"not a branch or a snapshot: '\x1b[2J@'"),
    ],
)
def test_places_that_are_not_there(shown: UserRepo, words: list[str], line: str) -> None:
    done = shown.overlayrun(*words)
    assert (done.code, done.ours[0]) == (3, line)
    assert done.ours[1].startswith("hint: ")


def test_branches_are_found_by_what_is_unique(repo: UserRepo) -> None:
    for branch in ("fix/login", "fix/logout", "other"):
        repo.inside("echo 1 >one", branch=branch)
    assert repo.overlayrun("diff", "--name-only", "oth").out == "one\n"
    assert repo.overlayrun("diff", "--name-only", "fix/logi").out == "one\n"
    done = repo.overlayrun("diff", "fix/log")
    assert done.code == 3
    assert done.ours == ["'fix/log' could be fix/login, fix/logout", "hint: type more of the name"]
    assert repo.overlayrun("diff").ours[0] == "which of the 3 branches?"


def test_a_generated_name_is_found_by_its_own_part(repo: UserRepo) -> None:
    repo.overlayrun("--", "sh", "-c", "echo 1 >one")
    (branch,) = repo.records()
    assert branch.startswith("overlay/sh-")
    assert repo.overlayrun("diff", "--name-only", branch.removeprefix("overlay/")).out == "one\n"


@pytest.mark.by_both
def test_an_interrupted_branch_is_recovered_before_it_is_shown(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo 1 >one; echo ready; cat") as run:
        run.expect("ready")
        run.process.kill()
        run.process.wait()
        done = repo.overlayrun("ls")
    assert done.ours == ["branch b was interrupted: its changes are in snapshot 1"]
    assert repo.overlayrun("diff", "--name-only", "b").out == "one\n"
    assert repo.overlayrun("ls").err == ""


def test_names_that_are_no_text_are_json(repo: UserRepo) -> None:
    repo.inside("echo 1 >\"$(printf 'a\\377b')\"")
    (file,) = _json(repo, "diff", "b")["files"]
    assert os.fsencode(file["path"]) == b"a\xffb"
