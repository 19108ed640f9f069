"""`merge FORK --into BRANCH`: a fork's work comes into the workspace that it was made from, at rest or at work."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from conftest import wait_until

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared


def test_into_an_idle_branch_again_and_again(repo: UserRepo) -> None:
    repo.write("src/app.py", "answer = 42\n")  # the user has not committed it
    main, before = repo.git("rev-parse", "main"), repo.picture()
    repo.inside(
        "printf '1\\n2\\n3\\n4\\n5\\n' >one; git add one; echo x >gone; echo '*.log' >.gitignore; echo l >a.log"
    )
    assert repo.overlayrun("merge", "b", "--into", "b").code == 3
    repo.overlayrun("fork", "b", "-b", "c")
    assert repo.overlayrun("merge", "c", "--into", "b").out == "branch c is in b already\n"
    # The fork goes on with the very lines that the branch itself had not committed.
    repo.inside(
        "sed -i s/1/I/ one; rm gone; printf '\\0\\1' >binary; ln -s one link2; chmod +x one", branch="c"
    )
    repo.inside("sed -i s/5/V/ one; echo own >own")
    dry = repo.overlayrun("merge", "c", "--into", "b", "--dry-run")
    assert (dry.code, dry.out) == (0, "c would come into b (4 files)\n")
    done = repo.overlayrun("merge", "c", "--into", "b", "--json")
    assert done.code == 0, str(done)
    (told,) = json.loads(done.out)["targets"]
    assert (told["target"], told["status"]) == ("b", 0)
    assert [(each["branch"], each["files"], each["commit"]) for each in told["landed"]] == [
        ("c", 4, repo.git("rev-parse", "b"))
    ]
    seen = repo.inside(
        "cat one own a.log; readlink link2; test -x one; test ! -e gone; git status --short one"
    )
    assert seen == "I\n2\n3\n4\nV\nown\nl\none\nAM one\n"
    assert repo.show("b", "one") == "I\n2\n3\n4\nV\n"
    assert repo.git("log", "--format=%s", "-1", "b") == "Merge c"
    # Again, on lines that came with the first time.
    repo.inside("sed -i s/I/i/ one", branch="c")
    assert (
        repo.overlayrun("merge", "c", "--into", "b").out
        == "c is merged into b's workspace (1 file): snapshot 4\n"
    )
    assert repo.overlayrun("merge", "c", "--into", "b").out == "branch c is in b already\n"
    assert repo.overlayrun("rm", "c").out == "removed c\n"  # nothing is lost with it
    # On to the target, and nothing of the user's own with it.
    assert (repo.git("rev-parse", "main"), repo.picture()) == (main, before)
    assert repo.overlayrun("merge", "b").code == 0
    assert repo.show("main", "one") == "i\n2\n3\n4\nV\n"
    assert repo.show("main", "src/app.py") == "answer = 41\n"


def test_into_a_branch_at_work(repo: UserRepo) -> None:
    repo.inside("printf '1\\n2\\n3\\n4\\n5\\n' >one")
    script = "echo ready; read _; cat one; echo late >late; read _"
    with repo.started("-b", "b", "--every", "0", "--", "sh", "-c", script) as run:
        run.expect("ready")
        repo.overlayrun("fork", "b", "-b", "c", "-n", "2")
        repo.inside("sed -i s/1/I/ one; echo new >new", branch="c-1")
        done = repo.overlayrun("merge", "c-1", "--into", "b")
        assert done.out == "c-1 is merged into b's workspace (2 files): snapshot 2\n", str(done)
        run.type("go on")
        run.expect("I\n2\n")
        # What conflicts, and what lies in the way there, change nothing.
        repo.inside("sed -i s/1/eins/ one", branch="c-2")
        done = repo.overlayrun("merge", "c-2", "--into", "b")
        assert (done.code, done.out) == (
            1,
            "branch c-2 conflicts with b; nothing was changed\nconflict: one (contents)\n",
        )
        run.type("end")
        assert run.end() == 0
    assert repo.show("b", "one") == "I\n2\n3\n4\n5\n"
    assert {"late", "new"} <= set(repo.files("b"))


def test_what_lies_in_the_way_is_left_as_it_is(repo: UserRepo) -> None:
    repo.inside("echo '*.log' >.gitignore; echo own >a.log")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.inside(
        "git add -f a.log; git commit -qm forced; echo theirs >>a.log; git commit -qam more", branch="c"
    )
    repo.inside("echo other >>a.log")
    before = repo.snapshots("b")
    done = repo.overlayrun("merge", "c", "--into", "b")
    assert (done.code, done.ours[0]) == (3, "branch b has other files in the way now; nothing was changed")
    assert repo.inside("cat a.log") == "own\nother\n"
    assert repo.snapshots("b") == before
    assert repo.overlayrun("merge", "c", "--into", "b", "--check", "true").code == 3


def test_a_reconciler_refuses_a_branch_with_a_workspace(repo: UserRepo) -> None:
    """Its ref alone would move, and its next snapshot would undo that."""
    repo.inside("echo 1 >one")
    repo.inside("echo 2 >two", "--into", "b", branch="c")
    before = repo.refs()
    for words in (["reconcile", "--into", "b"], ["reconcile", "--into", "b", "--watch"]):
        done = repo.overlayrun(*words)
        assert (done.code, done.ours[0]) == (
            3,
            "b is a branch with a workspace: what comes into it must change its files, too",
        )
        assert done.ours[1].endswith("overlayrun merge BRANCH --into b")
    assert repo.refs() == before
    assert repo.overlayrun("merge", "c").code == 0
    assert repo.inside("cat one two") == "1\n2\n"


# Before the files change, before their snapshot, between its refs, before the note that it came in: each call
# with the number of its turn. (All others were tried by hand.)
_STEPS: Final = (("clone", 5), ("clone", 6), ("rename", 10), ("rename", 11), ("clone3", 7))


def test_killed_at_any_step_it_is_typed_again(repo: UserRepo) -> None:
    """Each time the same line changes: were a merge that came in not known, the next one would conflict."""
    repo.inside("seq 9 >one")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.inside("sed -i '9s/.*/own/' one")
    log = repo.home.parent / "strace"
    for call, turn in _STEPS:
        step = f"{call}{turn}"
        repo.inside(f"sed -i '1s/.*/{step}/' one; mkdir {step}; echo x >{step}/f", branch="c")
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={turn}"]
        command = ["strace", "-o", str(log), *inject, *repo.command("merge", "c", "--into", "b")]
        subprocess.run(command, cwd=repo.root, env=repo.env, capture_output=True, check=False)
        assert "killed by SIGKILL" in log.read_text(errors="replace"), step
        done = repo.overlayrun("merge", "c", "--into", "b")
        assert done.code == 0, (step, str(done))
        lines = [step, *"2345678", "own"]
        assert (repo.workspace() / "upper/one").read_text().split() == lines
        assert repo.show("b", "one").split() == lines
        assert f"{step}/f" in repo.files("b")
    repo.git("fsck", "--strict")


@pytest.mark.parametrize("target", ["b", "d"])
def test_killed_in_the_middle_of_the_files_it_is_taken_back(repo: UserRepo, target: str) -> None:
    """Git removes what it changes before it writes it again. In `d` nothing has run yet."""
    repo.write(".git/info/exclude", "*.log\n")
    repo.inside("echo 1 >one; echo 2 >two; echo l >a.log")
    repo.overlayrun("fork", "b", "-b", "d")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.inside("echo c >>one; echo c >>two", branch="c")
    patched = (
        "import os, sys, overlayrun.transplant as t; from overlayrun.cli.main import run_cli;"
        "t.change_files = lambda live, *_: (live.run_inside(('sh', '-c', 'rm one; echo half >two'), b''),"
        " os.kill(os.getpid(), 9)); run_cli(sys.argv[1:])"
    )
    words = [sys.executable, "-c", patched, "merge", "c", "--into", target]
    assert subprocess.run(words, cwd=repo.root, env=repo.env, check=False).returncode == -9
    upper = repo.workspace(target) / "upper"
    wait_until(lambda: not (upper / "one").exists(), "the kill")
    done = repo.overlayrun("merge", "c", "--into", target)
    assert f"a merge into branch {target} was interrupted: it is as it was before" in done.err
    assert done.code == 0, str(done)
    upper = repo.workspace(target) / "upper"
    assert [(upper / name).read_text() for name in ("one", "two", "a.log")] == ["1\nc\n", "2\nc\n", "l\n"]
    # Nobody throws away what was there.
    assert [repo.show(each, "two") for each in repo.snapshots(target)[:3]] == ["2\nc\n", "2\n", "half\n"]
    assert repo.overlayrun("ls").err == ""


def test_grandchildren_siblings_and_a_step_back(repo: UserRepo) -> None:
    repo.inside("printf '1\\n2\\n3\\n4\\n5\\n' >one")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.overlayrun("fork", "b", "-b", "d")
    repo.inside("sed -i s/1/I/ one", branch="c")
    repo.overlayrun("fork", "c", "-b", "cc")
    repo.inside("sed -i s/I/i/ one", branch="cc")
    repo.inside("sed -i s/5/V/ one", branch="d")
    assert repo.overlayrun("merge", "cc", "--into", "d").code == 0
    assert repo.inside("cat one", branch="d") == "i\n2\n3\n4\nV\n"
    assert repo.overlayrun("merge", "cc", "d", "--into", "b").out == (
        "cc is merged into b's workspace (1 file): snapshot 2\nd is merged into b's workspace (1 file): snapshot 3\n"
    )
    assert repo.inside("cat one") == "i\n2\n3\n4\nV\n"
    assert repo.overlayrun("restore", "b@{2}").code == 0
    assert repo.inside("cat one") == "1\n2\n3\n4\n5\n"
    assert "cc is merged" in repo.overlayrun("merge", "cc", "--into", "b").out
    assert repo.inside("cat one") == "i\n2\n3\n4\n5\n"
