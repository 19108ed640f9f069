"""What can't be done is said in one line with what to type next, and nothing is changed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Mounter, UserRepo

pytestmark = pytest.mark.shared  # what is refused, and in what words

Until = Callable[..., None]
SLOW = "first run on this tree: freezing it"


def _refused(done: Done, *words: str, hint: str | None = "") -> None:
    """One line that holds `words`, a hint, exit 125, and no traceback."""
    assert done.code == 125, str(done)
    assert "Traceback" not in done.err, str(done)
    told = [line for line in done.err.splitlines() if line.strip()]
    assert all(line.startswith("overlayrun: ") for line in told), str(done)
    said = [line for line in done.ours if line != SLOW]
    assert not [line for line in said[1:] if not line.startswith(("hint: ", "  "))], str(done)
    for word in words:
        assert word in said[0], str(done)
    hints = [line for line in said if line.startswith("hint: ")]
    assert hints, f"no hint: {done}"
    assert hint is None or hint in hints[0]


def _unchanged(repo: UserRepo, action: Callable[[], Done]) -> Done:
    before, refs = repo.picture(), repo.refs()
    done = action()
    assert repo.picture() == before
    assert repo.refs() == refs
    assert not list(repo.state.glob("workspaces/*"))
    return done


def test_not_a_repository(repo: UserRepo, tmp_path: Path) -> None:
    _refused(
        repo.overlayrun("--", "true", cwd=tmp_path), "not a git repository", str(tmp_path), hint="git init"
    )
    assert sorted(os.listdir(tmp_path)) == ["home", "repo"]


def test_a_directory_that_is_gone(repo: UserRepo) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; {' '.join(repo.command('--', 'true'))}"
    shell = subprocess.run(
        ["sh", "-c", script], cwd=repo.root, env=repo.env, capture_output=True, text=True, check=False
    )
    assert shell.returncode == 125, shell.stderr
    assert "Traceback" not in shell.stderr, shell.stderr


def test_bare_repository(repo: UserRepo, tmp_path: Path) -> None:
    repo.git("clone", "-q", "--bare", str(repo.root), str(tmp_path / "bare.git"))
    _refused(repo.overlayrun("--", "true", cwd=tmp_path / "bare.git"), "no working tree", "bare")
    assert not (tmp_path / "bare.git/overlayrun").exists()


def test_inside_the_git_directory(repo: UserRepo) -> None:
    _refused(repo.overlayrun("--", "true", cwd=repo.root / ".git/refs"), ".git")


def test_sha256_repository(repo: UserRepo, tmp_path: Path) -> None:
    other = repo.at(tmp_path / "sha256")
    other.root.mkdir()
    other.git("init", "-q", "--object-format=sha256")
    other.commit("x", a="a")
    _refused(_unchanged(other, lambda: other.overlayrun("--", "true")), "sha256")


@pytest.mark.parametrize("script", ["echo x >new", "true", "echo x >new; git add new; git commit -qm first"])
def test_unborn_head_works(empty_repo: UserRepo, script: str) -> None:
    done = empty_repo.sh(f"ls; git status --porcelain; {script}")
    assert done.code == 0, str(done)
    assert "Traceback" not in done.err
    if script != "true":
        assert empty_repo.show("b", "new") == "x\n"
        assert empty_repo.git("fsck", "--strict") in ("", "notice: HEAD points to an unborn branch (main)")
    assert empty_repo.inside("cat new 2>/dev/null || echo none") in ("x\n", "none\n")


@pytest.mark.by_both
def test_unborn_head_with_uncommitted_files(empty_repo: UserRepo) -> None:
    empty_repo.write("a", "a\n")
    empty_repo.write("staged", "s\n")
    empty_repo.git("add", "staged")
    assert empty_repo.inside("cat a staged; echo x >new") == "a\ns\n"
    assert set(empty_repo.files("b")) == {"a", "staged", "new"}


@pytest.mark.parametrize(
    "base", ["no-such", "HEAD~99", "--all", "-x", "HEAD:README", "", "main..main", "^HEAD", "0" * 40]
)
def test_unknown_base(repo: UserRepo, base: str) -> None:
    _refused(_unchanged(repo, lambda: repo.overlayrun(f"--base={base}", "--", "true")), hint="git log")


BAD_NAMES = (
    "-x", "../../x", "a..b", "HEAD", "refs/heads/main", "main.lock", "a b", "$(touch x)\n", "a\x1b[31m",
    "@{-1}", "x" * 300, "a//b", "/a", "a/", ".a", "a/.b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b",
    "@", "", "a.", "a\x7f",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[1:25])
def test_bad_branch_name(repo: UserRepo, name: str) -> None:
    done = _unchanged(repo, lambda: repo.overlayrun(f"--branch={name}", "--", "touch", "x"))
    _refused(done, hint=None)
    assert "\x1b" not in done.err


@pytest.mark.parametrize("name", ["fix/login", "A", "con", "1", "x" * 200, "a_b-c.d"])
def test_odd_but_good_branch_names_work(repo: UserRepo, name: str) -> None:
    repo.inside("echo x >new", branch=name)
    assert repo.show(name, "new") == "x\n"
    assert repo.inside("cat new", branch=name) == "x\n"


def test_branch_names_that_differ_by_case_alone(repo: UserRepo) -> None:
    repo.inside("echo 1 >n", branch="Name")
    repo.inside("echo 2 >n", branch="name")
    assert (repo.show("Name", "n"), repo.show("name", "n")) == ("1\n", "2\n")


def test_taken_branch_name(repo: UserRepo) -> None:
    repo.git("branch", "taken")
    _refused(_unchanged(repo, lambda: repo.sh("true", branch="taken")), "taken", hint="--base taken")


@pytest.mark.parametrize(("there", "wanted"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
@pytest.mark.parametrize("packed", [False, True])
def test_conflicting_branch_name(repo: UserRepo, there: str, wanted: str, packed: bool) -> None:  # noqa: FBT001
    repo.git("branch", there)
    if packed:
        repo.git("pack-refs", "--all", "--prune")
    _refused(_unchanged(repo, lambda: repo.sh("true", branch=wanted)), wanted, hint=None)


def test_conflict_of_two_workspaces_names(repo: UserRepo) -> None:
    repo.inside("echo x >new", branch="a")
    _refused(repo.sh("true", branch="a/b"), "a", hint=None)
    assert set(repo.records()) == {"a"}


def test_branch_that_is_checked_out(repo: UserRepo) -> None:
    _refused(_unchanged(repo, lambda: repo.sh("true", branch="main")), "main", "checked out", hint="-b")


def test_branch_that_is_checked_out_in_a_linked_worktree(repo: UserRepo, tmp_path: Path) -> None:
    repo.git("worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"))
    _refused(_unchanged(repo, lambda: repo.sh("true", branch="linked")), "linked", hint=None)


def test_workspace_branch_that_the_user_checks_out(repo: UserRepo) -> None:
    """His HEAD must not move under his files: the chain gets the snapshot, and the summary says so."""
    repo.inside("echo 1 >n")
    repo.git("checkout", "-q", "b")
    before = repo.picture()
    done = repo.sh("echo 2 >n")
    assert "checked out" in done.err
    assert repo.picture() == before
    assert repo.git("status", "--porcelain") == ""
    assert repo.raw_git("show", f"{repo.snapshots()[0]}:n") == b"2\n"


def test_workspace_branch_that_the_user_moved(repo: UserRepo) -> None:
    repo.inside("echo 1 >n")
    repo.git("branch", "-f", "b", "HEAD~1")
    done = repo.sh("echo 2 >n")
    assert "moved" in done.err
    assert repo.git("rev-parse", "b") == repo.git("rev-parse", "main~1")
    assert repo.raw_git("show", f"{repo.snapshots()[0]}:n") == b"2\n"


def test_branch_that_runs_already(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "echo ready; read a; echo x >new") as run:
        run.expect("ready")
        _refused(repo.sh("true"), "running", hint="overlayrun exec b")
        run.type("")
        assert run.end() == 0
    assert repo.show("b", "new") == "x\n"


def test_into_an_unknown_branch(repo: UserRepo) -> None:
    done = repo.sh("true", "--into", "no such branch")
    _refused(done, hint=None)


@pytest.mark.parametrize(
    "words",
    [["--timeout", "soon"], ["--timeout", "-1"], ["--timeout", "nan"], ["--every", ""], ["--dirty", "maybe"],
     ["--carry", "x"], ["--home", "x"], ["--no-such-option"], ["-b"], ["--rm=yes"]],
    ids="".join,
)  # fmt: skip
def test_bad_options(repo: UserRepo, words: list[str]) -> None:
    done = _unchanged(repo, lambda: repo.overlayrun(*words, "--", "true"))
    assert done.code == 125, str(done)
    assert "Traceback" not in done.err, str(done)
    assert done.err.strip()


def test_no_command(repo: UserRepo) -> None:
    _refused(_unchanged(repo, lambda: repo.overlayrun("--")), "command")


@pytest.mark.by_both
def test_missing_bind(repo: UserRepo) -> None:
    _refused(
        _unchanged(repo, lambda: repo.sh("true", "--bind-ro", "/no/such/place")), "/no/such/place", hint=None
    )


def test_dirty_fail_refuses_uncommitted_changes(repo: UserRepo) -> None:
    repo.write("new", "x")
    _refused(
        _unchanged(repo, lambda: repo.sh("true", "--dirty", "fail")),
        "1 uncommitted change in",
        hint="--dirty",
    )


@pytest.mark.by_both
def test_bind_of_what_holds_other_mounts(repo: UserRepo) -> None:
    done = repo.sh("true", "--bind-ro", "/dev")
    if os.geteuid():
        _refused(done, "other mounts lie in it")
    else:  # opened with the host's own rights
        assert done.code == 0, str(done)


@pytest.mark.parametrize(
    "words", [["-b", "taken/below"], ["-b", "b", "--dirty", "fail"], ["-b", "b", "--bind-ro", "/no/such"]]
)
def test_what_is_refused_is_refused_before_the_slow_part(repo: UserRepo, words: list[str]) -> None:
    repo.git("branch", "taken")
    repo.write("new", "x")
    done = repo.overlayrun(*words, "--", "true")
    assert done.code == 125
    assert SLOW not in done.ours, str(done)


@pytest.mark.by_both
def test_inside_a_workspace_it_says_what_to_do(repo: UserRepo) -> None:
    inner = " ".join(repo.command("--", "touch", "inner"))
    done = repo.sh(f"{inner} 2>&1; echo status $?")
    assert "status 125" in done.out
    assert "workspace" in done.out
    assert "hint: " in done.out
    assert set(repo.records()) == {"b"}


@pytest.mark.by_both
def test_inside_a_workspace_a_bent_environment_does_not_help(repo: UserRepo) -> None:
    """Depth two ends there by the kernel's rule too: one clear line, no traceback."""
    inner = " ".join(repo.command("--", "true"))
    done = repo.sh(f"unset OVERLAYRUN_BRANCH OVERLAYRUN_ID OVERLAYRUN_SOCKET; {inner} 2>&1; echo status $?")
    assert "Traceback" not in done.out, done.out
    assert "status 125" in done.out or "status 0" in done.out


@pytest.mark.by_both
def test_state_directory_with_wrong_modes(repo: UserRepo) -> None:
    repo.inside("true")
    repo.state.chmod(0o777)
    _refused(repo.sh("true"), "state directory", str(repo.state), hint="chmod 700")


@pytest.mark.by_both
def test_state_directory_that_is_a_link(repo: UserRepo, tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir(mode=0o700)
    repo.state.symlink_to(tmp_path / "planted")
    _refused(repo.sh("true"), "state directory", hint=None)
    assert os.listdir(tmp_path / "planted") == []


def test_state_directory_that_is_a_file(repo: UserRepo) -> None:
    repo.state.write_text("")
    _refused(repo.sh("true"), "state directory", hint=None)


@pytest.mark.root
def test_state_directory_of_somebody_else(repo: UserRepo) -> None:
    repo.inside("true")
    os.chown(repo.state, 12345, 12345)
    _refused(repo.sh("true"), "state directory", str(repo.state), hint="chown")


@pytest.mark.by_both
def test_state_elsewhere(repo: UserRepo, tmp_path: Path) -> None:
    repo.env["OVERLAYRUN_STATE_DIR"] = str(tmp_path / "my state: a,b\\c")
    repo.inside("echo x >new")
    assert repo.show("b", "new") == "x\n"
    assert not repo.state.exists()
    assert repo.inside("cat new") == "x\n"


@pytest.mark.by_both
def test_unwritable_state_place(repo: UserRepo) -> None:
    done = repo.overlayrun("--", "true", env={"OVERLAYRUN_STATE_DIR": "/proc/nowhere"})
    _refused(done, "/proc/nowhere", hint="OVERLAYRUN_STATE_DIR")


@pytest.mark.by_both
def test_read_only_repository(repo: UserRepo) -> None:
    """A read-only mount over it; by modes alone root would not notice."""
    wrapped = [
        "unshare",
        "-Urm",
        "sh",
        "-c",
        'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; cd "$0"; shift 0; exec "$@"',
        str(repo.root),
    ]
    shell = subprocess.run(
        [*wrapped, *repo.command("-b", "b", "--", "true")],
        cwd=repo.root,
        env=repo.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shell.returncode == 125, shell.stderr
    assert "Traceback" not in shell.stderr
    assert "hint: " in shell.stderr
    assert repo.records() == {}


def test_git_is_missing(repo: UserRepo, tmp_path: Path) -> None:
    _refused(repo.overlayrun("--", "true", env={"PATH": str(tmp_path)}), "git", hint="install git")


@pytest.mark.by_both
def test_user_namespaces_are_closed(repo: UserRepo) -> None:
    script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    shell = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script, "sh", *repo.command("-b", "b", "--", "true")],
        cwd=repo.root, env=repo.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shell.returncode == 125, shell.stderr
    assert "Traceback" not in shell.stderr
    assert "namespace" in shell.stderr
    assert "hint: " in shell.stderr
    assert repo.records() == {}
    assert "refs/heads/b" not in repo.refs()


@pytest.mark.by_both
def test_no_identity_at_all(repo: UserRepo) -> None:
    (repo.home / ".gitconfig").write_text("")
    done = repo.sh("echo x >new")
    assert "Traceback" not in done.err, str(done)
    assert done.code == 0 or "hint" in done.err, str(done)
    assert repo.show("b", "new") == "x\n"


def test_broken_record_is_no_traceback(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    (repo.workspace() / "record.json").write_text("{torn")
    done = repo.sh("true", branch="other")
    assert done.code == 0, str(done)
    again = repo.sh("true")
    assert "Traceback" not in again.err
    assert again.code == 125
    assert repo.show("b", "new") == "x\n"


def test_a_record_of_a_newer_version_says_so(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    path = repo.workspace() / "record.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    done = repo.sh("true")
    assert done.code == 125, str(done)
    assert "newer" in done.err, str(done)


@pytest.mark.root
def test_repository_of_somebody_else(repo: UserRepo) -> None:
    for path in [repo.root, *repo.root.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    _refused(repo.overlayrun("--", "true"), "belongs", hint="chmod a+x")


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_state_on_another_file_system(repo: UserRepo, loop_disk: Mounter, kind: str) -> None:
    disk = loop_disk(kind, 512 if kind == "xfs" else 128)
    repo.env["OVERLAYRUN_STATE_DIR"] = str(disk / "state")
    repo.write(".gitignore", "modules/\n")
    repo.write("modules/m", "M\n")
    assert repo.inside(
        "cat README modules/m; git status --porcelain; rm README; echo x >new", "--carry", "link"
    ).startswith("read me\nM\n")
    assert repo.show("b", "new") == "x\n"
    assert repo.inside("ls modules") == "m\n"


def test_interrupt_while_it_freezes_leaves_nothing(repo: UserRepo, until: Until) -> None:
    for number in range(3000):
        repo.write(f"many/{number % 50}/{number}", str(number))
    repo.commit("many")
    with repo.started("-b", "b", "--", "true") as run:
        until(lambda: list(repo.state.glob("bases/.*")) or run.process.poll() is not None)
        run.process.send_signal(signal.SIGINT)
        run.end()
    assert "Traceback" not in run.text(), run.text()
    assert repo.inside("ls many | wc -l", branch="c") == "50\n"
