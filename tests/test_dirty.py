"""Uncommitted changes of the user: taken along as they are, never touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # which changes come along

# Done in the user's own tree; the commits that some need come first.
EDITS: Final = {
    "modified": "echo more >>README",
    "staged": "echo more >>README; git add README",
    "staged and modified again": "echo one >>README; git add README; echo two >>README",
    "deleted": "rm README",
    "deletion staged": "git rm -q README",
    "deleted and staged again as new": "git rm -q --cached README",
    "directory deleted": "rm -r src",
    "renamed": "git mv README READ.ME",
    "renamed by hand": "mv src lib",
    "untracked": "echo new >new; mkdir -p deep/er; echo d >deep/er/f",
    "added": "echo new >new; git add new",
    "intent to add": "echo new >new; git add -N new",
    "added then gone": "echo new >new; git add new; rm new",
    "executable": "chmod +x README",
    "not executable": "chmod -x tool.sh",
    "link changed": "ln -sf README link",
    "link became file": "rm link; echo file >link",
    "file became link": "rm README; ln -s tool.sh README",
    "file became directory": "rm README; mkdir README; echo f >README/f",
    "directory became file": "rm -r src; echo f >src",
    "directory became link": "mv src lib; ln -s lib src",
    "odd names": (
        "echo x >'a b'; echo x >\"$(printf 'n\\nl')\"; echo x >-rf; "
        "echo x >\"$(printf 'b\\377')\"; echo x >'q\"'"
    ),
    "empty directory": "mkdir empty",
    "large": "head -c 9000000 /dev/zero >large",
    "assume unchanged": "echo more >>README; git update-index --assume-unchanged README; echo new >new",
    "many": "for i in $(seq 300); do echo $i >f$i; done; git add f1*",
}
KINDS: Final = list(EDITS)
FACTS: Final = (
    "import hashlib, os, sys\n"
    "for place, dirs, names in os.walk(b'.'):\n"
    "  dirs[:] = sorted(d for d in dirs if d != b'.git')\n"
    "  for n in sorted(names) + [d for d in dirs if os.path.islink(place + b'/' + d)]:\n"
    "    p = place + b'/' + n\n"
    "    s = os.lstat(p)\n"
    "    c = os.readlink(p) if os.path.islink(p) else open(p, 'rb').read()\n"
    "    print(ascii(p), oct(s.st_mode), s.st_mtime_ns, hashlib.sha1(c).hexdigest())\n"
)


def _user_sh(repo: UserRepo, script: str) -> str:
    import subprocess

    return subprocess.check_output(["sh", "-c", script], cwd=repo.root, env=repo.env).decode(errors="replace")


def _facts_outside(repo: UserRepo) -> str:
    import subprocess

    return subprocess.check_output(["python3", "-c", FACTS], cwd=repo.root, env=repo.env, text=True)


@pytest.mark.parametrize("name", KINDS)
def test_the_command_sees_the_tree_as_the_user_does(repo: UserRepo, name: str) -> None:
    _user_sh(repo, EDITS[name])
    status = _user_sh(repo, "git status --porcelain --untracked-files=all | wc -l")  # it refreshes his index
    before = repo.picture()
    done = repo.overlayrun("-b", "b", "--", "python3", "-c", FACTS)
    assert done.code == 0, str(done)
    if name != "assume unchanged":  # git says nothing of it, so it can't come along
        assert done.out == _facts_outside(repo)
    assert repo.picture() == before, "his files, his index"
    assert _user_sh(repo, "git status --porcelain --untracked-files=all | wc -l") == status


@pytest.mark.parametrize("name", KINDS)
def test_only_the_agents_own_change_is_on_top(repo: UserRepo, name: str) -> None:
    _user_sh(repo, EDITS[name])
    repo.inside("echo agent >agent")
    assert repo.show("b", "agent") == "agent\n"
    kept = f"refs/overlayrun/dirty/{repo.records()['b']['id']}"
    if kept in repo.refs():
        assert repo.git("diff", "--name-status", kept, "b") == "A\tagent"
        assert repo.git("rev-parse", f"{kept}^") == repo.git("rev-parse", "main")
    else:
        assert name in {"empty directory", "added then gone"}, "nothing was recorded"
    assert repo.git("fsck", "--strict") == ""


def test_the_recorded_commit_is_what_add_all_would_record(repo: UserRepo) -> None:
    _user_sh(
        repo,
        "; ".join(
            EDITS[name]
            for name in ("modified", "directory deleted", "untracked", "not executable", "odd names")
        ),
    )
    repo.inside("true")
    index = str(repo.home / "index")
    repo.raw_git("read-tree", "HEAD", env={"GIT_INDEX_FILE": index})
    repo.raw_git("add", "-A", env={"GIT_INDEX_FILE": index})
    expected = repo.raw_git("write-tree", env={"GIT_INDEX_FILE": index}).decode().strip()
    assert repo.git("rev-parse", f"refs/overlayrun/dirty/{repo.records()['b']['id']}^{{tree}}") == expected


def test_ignore_leaves_them_out(repo: UserRepo) -> None:
    _user_sh(repo, "echo more >>README; echo new >new; rm tool.sh; git add README")
    before = repo.picture()
    assert (
        repo.inside("cat README; ls; git status --porcelain", "--dirty", "ignore")
        == "read me\nREADME\nlink\nsrc\ntool.sh\n"
    )
    assert repo.picture() == before


@pytest.mark.parametrize(
    "name", ["modified", "staged", "untracked", "deleted", "executable", "intent to add"]
)
def test_fail_refuses_every_kind(repo: UserRepo, name: str) -> None:
    _user_sh(repo, EDITS[name])
    before, refs = repo.picture(), repo.refs()
    done = repo.sh("true", "--dirty", "fail")
    assert done.code == 125, str(done)
    assert "uncommitted" in done.err
    assert "hint: " in done.err
    assert (repo.picture(), repo.refs(), repo.records()) == (before, refs, {})


def test_fail_lets_a_clean_tree_pass(repo: UserRepo) -> None:
    repo.write(".git/info/exclude", "ignored\n")
    repo.write("ignored", "i")
    assert repo.sh("true", "--dirty", "fail").code == 0


def test_conflicts_come_along_with_their_marks(repo: UserRepo) -> None:
    repo.git("checkout", "-q", "-b", "side", "HEAD~1")
    repo.commit("side", README="side\n")
    repo.git("checkout", "-q", "main")
    repo.commit("main", README="main\n")
    _user_sh(repo, "git merge side >/dev/null 2>&1 || true")
    assert "UU README" in repo.git("status", "--porcelain")
    before = repo.picture()
    out = repo.inside("cat README; echo agent >agent")
    assert "<<<<<<<" in out
    assert repo.picture() == before
    assert "UU README" in repo.git("status", "--porcelain")
    assert repo.show("b", "agent") == "agent\n"


def test_delete_modify_conflict(repo: UserRepo) -> None:
    repo.git("checkout", "-q", "-b", "side", "HEAD~1")
    repo.git("rm", "-q", "README")
    repo.git("commit", "-q", "-m", "gone")
    repo.git("checkout", "-q", "main")
    repo.commit("main", README="main\n")
    _user_sh(repo, "git merge side >/dev/null 2>&1 || true")
    before = repo.picture()
    assert repo.inside("cat README; echo agent >agent") == "main\n"
    assert repo.picture() == before


def test_an_untracked_repository_is_left_out_and_named(repo: UserRepo) -> None:
    inner = repo.at(repo.root / "inner")
    inner.root.mkdir()
    inner.git("init", "-q")
    inner.commit("x", f="f\n")
    done = repo.sh("echo x >new")
    assert "inner" in done.err
    assert repo.show("b", "new") == "x\n"
    assert not [name for name in repo.files("b") if name.startswith("inner")]


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_untracked_special_files_stop_nothing(repo: UserRepo, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(repo.root / "special")
    else:
        import socket

        place = os.open(repo.root, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{place}/special")
        os.close(place)
    repo.write("new", "user\n")
    assert repo.inside("cat new; echo x >other") == "user\n"
    assert repo.show("b", "other") == "x\n"


@pytest.mark.by_both
def test_an_unreadable_uncommitted_file_is_said(repo: UserRepo) -> None:
    path = repo.write("closed", "c", 0)
    before = repo.picture()
    done = repo.sh("echo x >new")
    assert "Traceback" not in done.err, str(done)
    if os.geteuid() != 0:
        assert "closed" in done.err
        assert done.code == 0 or "hint: " in done.err
    assert repo.picture() == before
    path.chmod(0o644)


def test_filters_of_the_user_do_not_run_on_the_host_by_an_agents_word(repo: UserRepo, tmp_path: Path) -> None:
    """The attributes are the user's own here; the driver may run or not, but nothing is lost or changed."""
    repo.git("config", "filter.up.clean", "tr a-z A-Z")
    repo.git("config", "filter.up.smudge", "tr A-Z a-z")
    repo.write(".gitattributes", "*.up filter=up\n")
    repo.write("a.up", "text\n")
    repo.commit("filter")
    repo.write("a.up", "changed\n")
    before = repo.picture()
    assert repo.inside("cat a.up; echo x >new") == "changed\n"
    assert repo.git("diff", "--name-only", f"refs/overlayrun/dirty/{repo.records()['b']['id']}", "b") == "new"
    assert repo.picture() == before


def test_line_endings_in_uncommitted_files(repo: UserRepo) -> None:
    repo.write(".gitattributes", "*.txt text eol=crlf\n")
    repo.write("a.txt", "one\r\n")
    repo.commit("crlf")
    repo.write("a.txt", "one\r\ntwo\r\n")
    assert (
        repo.inside("od -An -c a.txt | tr -d ' \\n'; git status --porcelain")
        == "one\\r\\ntwo\\r\\n M a.txt\n"
    )
    assert repo.show(f"refs/overlayrun/dirty/{repo.records()['b']['id']}", "a.txt") == "one\ntwo\n"


def test_changes_made_after_the_start_stay_out(repo: UserRepo) -> None:
    repo.write("new", "first\n")
    with repo.started(
        "-b", "b", "--", "sh", "-c", "echo ready; read a; cat new; ls later 2>&1; cat README"
    ) as run:
        run.expect("ready")
        for name in ("new", "README"):
            with (repo.root / name).open("a") as file:
                file.write("later\n")
        repo.write("later", "l")
        run.type("")
        run.end()
    assert "first\nls: cannot access" in run.text()
    assert "later\n" not in run.text().replace("access 'later'", "")


def test_a_resumed_branch_keeps_what_it_started_with(repo: UserRepo) -> None:
    repo.write("new", "first\n")
    repo.inside("true")
    (repo.root / "new").unlink()
    assert repo.inside("cat new; git status --porcelain") == "first\n?? new\n"


def test_uncommitted_changes_inside_a_linked_worktree(repo: UserRepo, tmp_path: Path) -> None:
    linked = repo.at(tmp_path / "linked")
    repo.git("worktree", "add", "-q", "-b", "side", str(linked.root))
    linked.write("staged", "s\n")
    linked.git("add", "staged")
    repo.write("main-only", "m\n")
    assert linked.inside("cat staged; ls main-only 2>/dev/null || echo none") == "s\nnone\n"


def test_times_of_uncommitted_files_are_kept(repo: UserRepo) -> None:
    repo.write("README", "changed\n")
    os.utime(repo.root / "README", ns=(10**18, 1_234_567_890_123_456_789))
    assert repo.inside("stat -c %.9Y README").strip() == "1234567890.123456789"
