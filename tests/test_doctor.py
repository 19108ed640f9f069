from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from kernel.lab import scene

from overlayrun.checks import Finding, State
from overlayrun.doctor import examine
from overlayrun.store.location import find_repository
from overlayrun.workspace.layout import open_state

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared

LEFT: Final = {
    "broken record",
    "interrupted workspace",
    "killed throwaway",
    "half-made directory",
    "torn write",
}


def examined(repo: UserRepo) -> dict[str, Finding]:
    return {one.name: one for one in examine(find_repository(str(repo.root)))}


def left(repo: UserRepo) -> list[Finding]:
    return [one for one in examine(find_repository(str(repo.root))) if one.name in LEFT]


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def make_state(repo: UserRepo) -> Path:
    return Path(open_state(find_repository(str(repo.root)).common_dir).root)


@pytest.mark.by_both
def test_the_doctor_looks_at_everything_and_changes_nothing(repo: UserRepo) -> None:
    before, git_directory = repo.picture(), sorted(os.listdir(repo.root / ".git"))
    found = examined(repo)
    assert [one for one in found.values() if one.state is State.MISSING] == []
    assert {"user namespaces", "overlayfs", "git", "state directory", "free space", "leftovers"} <= set(found)
    for one in found.values():
        assert one.found
        assert one.why
        assert (one.state is State.OK) == (not one.cure), one
    assert repo.picture() == before
    assert sorted(os.listdir(repo.root / ".git")) == git_directory


def test_names_are_unique(repo: UserRepo) -> None:
    names = [one.name for one in examine(find_repository(str(repo.root)))]
    assert sorted(names) == sorted(set(names))


def test_without_a_repository_its_state_is_left_out() -> None:
    names = {one.name for one in examine(None)}
    assert "overlayfs" in names
    assert not {"state directory", "upper layer", "free space", "leftovers"} & names


# The state's disk, mounted at ./disk; then finding, its state, what it must say.
DISKS: Final = {
    "overlay": (
        "for name in 'lower', 'upper', 'work', 'disk': os.makedirs(name, exist_ok=True)\n"
        "data = 'lowerdir=lower,upperdir=upper,workdir=work,userxattr'\n"
        "syscalls.mount('overlay', 'disk', 'overlay', 0, data)",
        ("upper layer", "limited", "this file system can't"),
    ),
    "no-attributes": (
        "mount('ramfs', 'disk')",
        ("upper layer", "limited", "this file system can't: "),
    ),
    "read-only": (
        "os.makedirs('disk', exist_ok=True); syscalls.mount('tmpfs', 'disk', 'tmpfs', 1)  # MS_RDONLY",
        ("state directory", "missing", "on tmpfs: Read-only file system"),
    ),
    "full": ("mount('tmpfs', 'disk', 'size=1m')", ("free space", "missing", "1 MiB")),
    "few-inodes": ("mount('tmpfs', 'disk', 'size=2g,nr_inodes=150')", ("free space", "missing", "inodes")),
    "no-inodes": (
        "mount('tmpfs', 'disk', 'size=10m,nr_inodes=1')",
        ("state directory", "missing", "No space left on device"),
    ),
    "little-room": ("mount('tmpfs', 'disk', 'size=100m')", ("free space", "limited", "100 MiB")),
}


@pytest.mark.by_both
@pytest.mark.parametrize(("disk", "expected"), DISKS.values(), ids=DISKS.keys())
def test_a_disk_that_is_not_fit_is_found(
    repo: UserRepo, tmp_path: Path, disk: str, expected: tuple[str, str, str]
) -> None:
    name, state, words = expected
    place = tmp_path / "disk"
    text = f"import os; enter(); os.chdir({str(tmp_path)!r})\n{disk}\nos.chdir({str(repo.root)!r})\n"
    findings = scene(f"{text}answer_findings()", cwd=repo.root, OVERLAYRUN_STATE_DIR=str(place))
    found_state, found, cure = findings[name]
    assert (found_state, words in found) == (state, True), found
    assert cure
    brief, hint = scene(f"{text}answer_reason({str(place / 'repo-0123')!r})", cwd=repo.root)
    is_reason = state == "missing" or name == "upper layer"  # for a run that asks for an overlay
    assert (name in brief) == is_reason, brief
    # The scene's namespace gives root no other id, which is the next thing that a run by root lacks there.
    other = (
        "give the repository to" if os.geteuid() == 0 else "overlayrun doctor tells what this machine lacks"
    )
    assert hint.startswith(cure if is_reason else other)


@pytest.mark.by_both
@pytest.mark.parametrize("spoil", ["mode", "file", "link"])
def test_a_state_directory_that_is_not_ours_alone_is_found(repo: UserRepo, spoil: str) -> None:
    if spoil == "mode":
        make_state(repo).chmod(0o750)
    elif spoil == "file":
        repo.state.write_text("")
    else:
        repo.state.symlink_to(repo.home)
    one = examined(repo)["state directory"]
    assert one.state is State.MISSING
    assert "is not yours alone" in one.found
    assert str(repo.state) in one.cure


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "megabytes", "shares"), [("ext4", 32, False), ("xfs", 320, True), ("btrfs", 128, True)]
)
def test_reflinks_are_found_where_the_disk_has_them(
    repo: UserRepo,
    loop_disk: Callable[[str, int], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    megabytes: int,
    *,
    shares: bool,
) -> None:
    monkeypatch.setenv("OVERLAYRUN_STATE_DIR", str(loop_disk(kind, megabytes) / "state"))
    found = examined(repo)
    assert (found["reflinks"].state is State.OK) == shares, found["reflinks"]
    assert f" on {kind}" in found["state directory"].found
    assert found["upper layer"].state is State.OK


@pytest.mark.root
def test_a_state_directory_of_somebody_else_is_found(repo: UserRepo) -> None:
    os.chown(make_state(repo), 12345, -1)
    assert examined(repo)["state directory"].state is State.MISSING


def test_an_old_git_is_found(repo: UserRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("git")
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\ncase "$*" in version) echo git version 2.30.2;;\n'
        '*merge-tree*) echo "usage: git merge-tree <base> <one> <other>" >&2; exit 129;;\n'
        f'*) exec {real} "$@";; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    found = examined(repo)
    assert (found["git"].state, found["git"].found) == (State.MISSING, "2.30.2")
    assert (found["git merge-tree"].state, found["git merge-tree"].found[:5]) == (State.LIMITED, "usage")


def test_no_git_at_all_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {one.name: one for one in examine(None)}
    assert found["git"].state is State.MISSING
    assert "install git" in found["git"].cure


def test_an_identity_that_is_not_set_is_found(
    repo: UserRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examined(repo)["git identity"].found.endswith(">")
    monkeypatch.setenv("HOME", str(tmp_path))
    one = examined(repo)["git identity"]
    assert one.state is State.LIMITED
    assert "user.email" in one.cure


def test_a_repository_without_commits_is_examined(empty_repo: UserRepo) -> None:
    found = examined(empty_repo)
    assert "git merge-tree" not in found
    assert found["state directory"].state is State.OK


def test_an_interrupted_run_is_found_and_a_living_one_is_not(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", "touch made; echo STARTED; read line") as run:
        run.expect("STARTED")
        assert left(repo) == []
    found = left(repo)
    assert [(one.name, one.state) for one in found] == [("interrupted workspace", State.LIMITED)]
    assert found[0].cure == "overlayrun snapshot b"
    assert repo.overlayrun(*found[0].cure.split()[1:]).code == 0
    assert left(repo) == []
    assert "made" in repo.files("b")


def test_a_broken_record_is_found_with_what_can_be_saved(repo: UserRepo) -> None:
    repo.inside("echo work > made; mkdir more")
    path = repo.workspace() / "record.json"
    upper = path.parent / "upper"
    path.write_bytes(path.read_bytes()[:-20])
    found = left(repo)
    assert [one.name for one in found] == ["broken record"]
    assert str(upper) in found[0].found
    assert str(upper) in found[0].cure
    shutil.rmtree(upper)
    assert "nothing is to be saved" in left(repo)[0].cure


def test_half_made_directories_of_dead_processes_are_found(repo: UserRepo) -> None:
    state, dead, alive = make_state(repo), dead_pid(), os.getpid()
    made = [
        state / f"bases/.{dead}-tree",
        state / f"layers/.{dead}-old-new",
        state / f"carried/.{dead}-digest",
        state / "workspaces/.gone-abcdefghijkl",
        state / f".{dead}-doctor",
        state.parent / f".{dead}-doctor",
    ]
    for place in [
        *made,
        state / f"bases/.{alive}-tree",
        state.parent / ".own",
        state.parent / f".{dead}-other",
    ]:
        place.mkdir()
    assert sorted(one.found for one in left(repo)) == sorted(map(str, made))
    assert {one.name for one in left(repo)} == {"half-made directory"}
    for one in left(repo):
        if "gc" not in one.cure:
            subprocess.run(one.cure, shell=True, check=True)
    assert sorted(one.found for one in left(repo)) == sorted(map(str, made[:4]))


def test_a_torn_write_of_a_dead_process_is_found(repo: UserRepo) -> None:
    repo.inside("true")
    torn = repo.workspace() / f"record.json.{dead_pid()}.new"
    torn.touch()
    (repo.workspace() / f"record.json.{os.getpid()}.new").touch()
    assert [one.found for one in left(repo)] == [str(torn)]


def test_a_throwaway_that_was_killed_is_found(repo: UserRepo) -> None:
    with repo.started("--rm", "--", "sh", "-c", "echo STARTED; read line") as run:
        run.expect("STARTED")
    assert [one.name for one in left(repo)] == ["killed throwaway"]


def test_sockets_of_ended_runs_are_counted_and_harmless(
    repo: UserRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.inside("true")
    assert "stale sockets" not in examined(repo)
    place = repo.workspace() / "sockets"
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(place)  # a socket's path may have 107 bytes at most
        server.bind("outside")
    one = examined(repo)["stale sockets"]
    assert (one.state, one.found[:1]) == (State.OK, "1")


@pytest.mark.by_both
def test_the_sandbox_is_shown_and_proved_from_inside(repo: UserRepo) -> None:
    (repo.home / ".ssh").mkdir()
    (repo.home / ".ssh/id_rsa").write_text("s3cret\n")
    before, branches = repo.picture(), repo.refs()
    done = repo.overlayrun("doctor", "--sandbox", "--json", "--profile", "codex")
    found = json.loads(done.out)
    assert (done.code, found["failed"]) == (0, 0), str(done)
    reach = {place["path"]: place["reach"] for place in found["places"]}
    expected = {
        "/": "read-only",
        "/run": "private",
        "/proc": "private",
        str(repo.root): "copy-on-write",
        str(repo.home): "copy-on-write",
        f"{repo.home}/.ssh": "masked",
        f"{repo.home}/.codex/sessions": "shared",
    }
    assert {path: reach.get(path) for path in expected} == expected
    tried = {proof["name"]: proof["state"] for proof in found["proofs"]}
    wanted = {f"hidden {repo.home}/.ssh", "read-only /usr", f"own {repo.root}", "mount", "/proc/1/mem"}
    assert wanted <= set(tried)
    assert f"host's {repo.home}" in tried
    assert (repo.picture(), repo.refs(), list((repo.state / "workspaces").iterdir())) == (
        before,
        branches,
        [],
    )


@pytest.mark.by_both
def test_a_layer_that_is_switched_off_is_found_from_inside(repo: UserRepo) -> None:
    (repo.home / ".netrc").write_text("s3cret\n")
    options = ("--home", "private", "--net", "none", "--without", "seccomp", "--without", "no-new-privs")
    done = repo.overlayrun("doctor", "--sandbox", *options)
    lines = done.out.splitlines()
    assert done.code == 3, str(done)
    assert "FAIL     status Seccomp: 0" in lines
    assert "ok       loopback of the host: ECONNREFUSED" in lines
    assert f"private        {repo.home}" in "\n".join(lines)
    assert lines[-1].endswith("tries FAILED")


@pytest.mark.by_both
def test_the_sandbox_is_shown_as_a_tree_on_a_terminal(repo: UserRepo) -> None:
    with repo.terminal(*repo.command("doctor", "--sandbox")) as terminal:
        terminal.expect("read-only")
        terminal.expect("├── ")
        terminal.expect("tries as promised")
        assert terminal.end() == 0


@pytest.mark.parametrize("words", [("--sandbox", "--nonsense"), ("--nonsense",), ("--sandbox", "-b", "x")])
def test_what_the_doctor_does_not_take_is_refused(repo: UserRepo, words: tuple[str, ...]) -> None:
    done = repo.overlayrun("doctor", *words)
    assert done.code in (2, 3)
    assert len(done.ours) == 2, str(done)


@pytest.mark.by_both
def test_probing_is_lean() -> None:
    # It is loaded on the way out of a failed start.
    code = "import sys; import overlayrun.kernel.probe; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-I", "-c", code], text=True).split()
    assert "overlayrun.kernel.probe" in loaded
    assert not {"click", "pygit2", "psutil", "rich", "subprocess"} & set(loaded)
