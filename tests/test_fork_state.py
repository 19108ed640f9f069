"""What of a workspace's state comes along into a fork, what is undone of one that fails, and who may be hostile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import SHARE, copy_repo

if TYPE_CHECKING:
    from conftest import Mounter, UserRepo

# Told by both sides: names, kinds, modes, times, contents, marks of git and of HOME.
_TELL: Final = r"""
find . -path ./.git -prune -o -printf '%p %y %m %n %T@ %l\n' | sort
cat one node_modules/a/index.js .env; git status --short --ignored; git stash list; git diff --cached
git log --format='%s %D' --all; git config user.nick; cat ~/.tool/state; git fsck 2>&1 | sed /dangling/d
cat .git/MERGE_MSG
"""
_MAKE: Final = """
git commit -q --allow-empty -m own
echo kept >kept; git add kept; git stash -q; git branch idea
echo 1 >one; ln one two; chmod 640 one; ln -s one three; touch -d @1000000000 one
mkdir -p node_modules/a 'odd name' private; echo js >node_modules/a/index.js; echo agent >.env
echo x >"odd name/$(printf 'a\\nb')"; echo secret >private/in; chmod 500 private
rm -r src; mkdir src; echo new >src/new; rm README; git add src
git config user.nick me; mkdir -p ~/.tool; echo state >~/.tool/state; echo half >.git/MERGE_MSG
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path) -> UserRepo:
    """A branch `b` with something of everything, and a fork `c` of it."""
    repo = copy_repo(_repo_to_copy, tmp_path_factory.mktemp("state"))
    repo.write(".git/info/exclude", ".env\nnode_modules\n")
    repo.write(".env", "of the user's\n")
    repo.inside(_MAKE)
    done = repo.overlayrun("fork", "b", "-b", "c")
    assert (done.code, done.err) == (0, ""), str(done)
    return repo


def test_a_fork_is_as_its_source_in_every_way(made: UserRepo) -> None:
    seen, told = made.inside(_TELL), made.inside(_TELL, branch="c")
    assert "js\nagent\n" in seen
    assert "state\nhalf\n" in seen
    assert told.replace("HEAD -> c", "HEAD -> b") == seen


def test_what_a_fork_does_stays_in_it(made: UserRepo) -> None:
    made.overlayrun("fork", "b", "-b", "alone")
    made.inside(
        "echo 2 >>two; echo 2 >>.env; git commit -qam more; echo 2 >>~/.tool/state; chmod 700 private; rm -r private",
        branch="alone",
    )
    assert made.inside("cat one two .env ~/.tool/state private/in; git symbolic-ref HEAD") == (
        "1\n1\nagent\nstate\nsecret\nrefs/heads/b\n"
    )
    assert made.inside("git branch --list --format='%(refname)'; cat two .env", branch="alone") == (
        "refs/heads/alone\nrefs/heads/idea\nrefs/heads/main\n1\n2\nagent\n2\n"
    )


def test_too_much_to_copy_is_said_and_the_snapshot_taken_instead(made: UserRepo) -> None:
    patched = "import sys, overlayrun.along as a; a._ENTRIES = 5; from overlayrun.cli.main import run_cli; "
    words = ["-c", patched + "run_cli(sys.argv[1:])", "fork", "b", "-b", "thin"]
    done = subprocess.run(
        [sys.executable, *words], cwd=made.root, env=made.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        "more than 5 files are too much to copy: the new branch gets what the snapshot holds" in done.stdout
    )
    assert made.inside("cat one src/new .env; ls README node_modules 2>/dev/null || true", branch="thin") == (
        "1\nnew\nof the user's\n"
    )


def test_a_source_that_goes_on_writing_gives_whole_files(repo: UserRepo) -> None:
    """A line of one letter, written anew all the time: a torn copy would have two letters or half of a line."""
    script = (
        "i=0; while [ ! -e stop ]; do i=$((i+1)); for l in a b; do head -c 300000 /dev/zero | tr '\\0' $l >busy.new; "
        "mv busy.new busy; for f in 1 2 3; do head -c 200000 /dev/zero | tr '\\0' $l >place$f; done; done; "
        "[ $i = 1 ] && echo ready; done; :"
    )
    with repo.started("-b", "b", "--every", "0", "--", "sh", "-c", script) as run:
        run.expect("ready")
        done = repo.overlayrun("fork", "b", "-n", "3", "-b", "c")
        assert done.code == 0, str(done)
        repo.overlayrun("exec", "b", "--", "touch", "stop")
        assert run.end() == 0
    for number in (1, 2, 3):
        upper = repo.workspace(f"c-{number}") / "upper"
        for path in upper.glob("[bp][ul]*"):
            if path.name != "busy.new":
                assert len(set(path.read_text())) <= 1, path


def test_a_link_that_is_swapped_in_leads_nowhere(repo: UserRepo) -> None:
    secret = repo.home / "secret"
    secret.mkdir()
    (secret / "key").write_text("of the host\n")
    (repo.home / ".ssh").mkdir()
    (repo.home / ".ssh/key").write_text("of the host\n")
    script = (
        f"mkdir d; echo in >d/key; ln -s {repo.home}/.ssh link; rm -rf .git/refs; ln -s {secret} .git/refs; "
        "echo ready; while [ ! -e stop ]; do mv d d2; mv link d; mv d link; mv d2 d; done"
    )
    with repo.started("-b", "b", "--every", "0", "--", "sh", "-c", script) as run:
        run.expect("ready")
        done = repo.overlayrun("fork", "b", "-n", "8", "-b", "c")
        repo.overlayrun("exec", "b", "--", "touch", "stop")
        run.end()
    assert done.code == 0, str(done)
    for number in range(1, 9):
        place = repo.workspace(f"c-{number}")
        found = [Path(top) / name for top, _, names in os.walk(place) for name in names if name == "key"]
        assert all("of the host" not in path.read_text() for path in found)
    assert [path.name for path in secret.iterdir()] == ["key"]


@pytest.mark.root
@pytest.mark.parametrize("backend", ["overlay", "copy"])
def test_a_full_disk_leaves_nothing_half_made(repo: UserRepo, loop_disk: Mounter, backend: str) -> None:
    disk = loop_disk("ext4", 48)
    there = repo.at(disk / "repo")
    subprocess.run(["cp", "-a", str(repo.root), str(there.root)], check=True)
    there.git("config", "overlayrun.without", "watchdog")
    there.inside("head -c 3000000 /dev/urandom >large; echo 1 >one", "--backend", backend)
    there.overlayrun("fork", "b", "-b", "c")  # everything that is made once
    room = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        file.write(b"x" * (room.f_bavail * room.f_frsize - (4 << 20)))
    refs, records = there.refs(), set(there.records())
    patched = "import sys, overlayrun.along as a; a._excess = lambda *_: None; from overlayrun.cli.main import run_cli; "
    words = [sys.executable, "-c", patched + "run_cli(sys.argv[1:])", "fork", "b", "-n", "4"]
    done = subprocess.run(words, cwd=there.root, env=there.env, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done
    assert "No space left" in done.stderr
    assert "make room" in done.stderr
    assert (there.refs(), set(there.records())) == (refs, records)
    assert not list(there.state.glob("workspaces/.*"))
    (disk / "ballast").unlink()
    assert there.overlayrun("fork", "b", "-n", "4").code == 0


_STEPS: Final = "rename,renameat2,fsync,unlink,unlinkat,mkdir,mkdirat"


@pytest.mark.parametrize(("backend", "stride"), [("overlay", 2), ("copy", 5)])
def test_killed_at_any_step_a_fork_is_whole_or_not_there(repo: UserRepo, backend: str, stride: int) -> None:
    repo.inside("echo 1 >one", "--backend", backend)
    log = repo.home.parent / "strace"
    killed = 0
    for step in range(1 + SHARE, 400, stride):
        name = f"c{step}"
        inject = ["-e", f"trace={_STEPS}", "-e", f"inject={_STEPS}:signal=SIGKILL:when={step}"]
        command = ["strace", "-o", str(log), *inject, *repo.command("fork", "b", "-n", "2", "-b", name)]
        subprocess.run(command, cwd=repo.root, env=repo.env, capture_output=True, check=False)
        if "killed by SIGKILL" not in log.read_text(errors="replace"):
            break
        killed += 1
        assert repo.overlayrun("ls").err == ""
        records, refs = repo.records(), repo.refs()
        made = {each for each in (f"{name}-1", f"{name}-2") if each in records}
        assert len(made) in (0, 2), step
        for each in made:
            ids = [f"refs/overlayrun/{kind}/{records[each]['id']}" for kind in ("base", "snapshots")]
            assert {f"refs/heads/{each}", *ids} <= refs.keys(), step
            assert (repo.workspace(each) / "upper/one").read_text() == "1\n"
        assert made == {each for each in (f"{name}-1", f"{name}-2") if f"refs/heads/{each}" in refs}, step
        assert not list(repo.state.glob("workspaces/.*/refs")), step
        if made:
            assert repo.overlayrun("rm", *made).code == 0, step
    assert killed > 10 // stride
    assert repo.inside("cat one") == "1\n"
