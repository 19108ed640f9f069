"""Runs by root: the command is never the host's root, and what belongs to others stays theirs."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import UserRepo

pytestmark = pytest.mark.root
_NOBODY = 65534
_OWNER = 12345  # a number that no user has


def _owners(place: Path) -> set[int]:
    """Of all but whiteouts, which the kernel makes as the one who mounts."""
    found = {place.lstat().st_uid}
    for directory, directories, files in os.walk(place):
        infos = [os.lstat(f"{directory}/{name}") for name in [*directories, *files]]
        found |= {info.st_uid for info in infos if not stat.S_ISCHR(info.st_mode)}
    return found


@pytest.fixture
def foreign(repo: UserRepo) -> UserRepo:
    """A repository of somebody else, who can reach it and what the test calls."""
    for above in (repo.root, *repo.root.parents):
        if above != Path("/"):
            above.chmod(above.stat().st_mode | 0o055)
    for place in (repo.root, repo.home):
        subprocess.run(["chown", "-R", f"{_OWNER}:{_OWNER}", place], check=True)
    return repo


def test_the_command_is_root_inside_and_nobody_outside(repo: UserRepo) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", f"id -u; echo ready; {repo.sleeper()}") as running:
        running.expect("ready")
        assert "0\nready" in running.text()
        alive = repo.marked()
        inside = [pid for pid in alive if "overlayrun" not in Path(f"/proc/{pid}/cmdline").read_text()]
        assert inside
        assert {os.stat(f"/proc/{pid}").st_uid for pid in inside} == {_NOBODY}
        joined = repo.overlayrun("exec", "b", "--", "sh", "-c", "id -u; head -c 1 /etc/shadow")
        assert joined.out == "0\n"


def test_files_that_root_alone_may_read_stay_unread(repo: UserRepo) -> None:
    canary = repo.home.parent / "canary"
    canary.write_text("secret")
    canary.chmod(0o600)
    assert not repo.sh(f"cat /etc/shadow /etc/gshadow {canary}").out


def test_what_it_makes_belongs_to_root_on_disk_and_to_itself_inside(repo: UserRepo) -> None:
    listed = repo.inside("mkdir made; touch made/file; mv tool.sh made/; stat -c %u . made made/* README")
    assert set(listed.split()) == {"0"}
    assert _owners(repo.workspace() / "upper") == {0}
    assert repo.git("ls-tree", "-r", "--name-only", "b").split() == [
        "README",
        "link",
        "made/file",
        "made/tool.sh",
        "src/app.py",
    ]


def test_git_inside_believes_the_index_it_was_given(repo: UserRepo) -> None:
    """The owner is part of git's stat data: another one would have every file read again."""
    assert repo.inside("git diff-files --name-only; git status --porcelain") == ""


def test_a_repository_of_another_user_is_worked_on_as_him(foreign: UserRepo) -> None:
    done = foreign.sh("id -u; touch made")
    assert (done.code, done.out) == (0, f"{_OWNER}\n"), str(done)
    assert any(f"as user {_OWNER}" in line for line in done.ours)
    listed = foreign.overlayrun("ls")
    assert listed.code == 0, str(listed)
    assert _owners(foreign.root) == {_OWNER}


def test_the_owners_home_is_his_own(foreign: UserRepo) -> None:
    user = next(entry for entry in pwd.getpwall() if entry.pw_uid >= 1000 and os.path.isdir(entry.pw_dir))
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", foreign.root], check=True)
    done = foreign.overlayrun("--rm", "--", "sh", "-c", "echo $HOME $USER", env={"HOME": "/root"})
    assert done.out.split() == [user.pw_dir, user.pw_name], str(done)


def test_an_owner_without_a_home_gets_an_empty_one(foreign: UserRepo) -> None:
    """As in containers, whose root works on a directory of a user that they don't know."""
    done = foreign.sh("touch ~/file work && ls ~", "--rm", branch=None)
    assert (done.code, done.out) == (0, "file\n"), str(done)
    closed = foreign.overlayrun("--rm", "--", "sh", "-c", "touch ~/file && ls ~", env={"HOME": "/root"})
    assert (closed.code, closed.out) == (0, "file\n"), str(closed)


def test_root_itself_is_a_choice_that_the_header_shows(repo: UserRepo) -> None:
    done = repo.sh("id -u; head -c 4 /etc/shadow; cut -c-20 /proc/self/uid_map", "--allow-root-uid")
    assert done.code == 0, str(done)
    assert any("--allow-root-uid" in line for line in done.ours)
    plain = repo.sh("id -u")
    assert any("nobody, not root" in line for line in plain.ours)


def test_a_home_whose_disk_has_no_id_maps_is_left_out(repo: UserRepo, tmp_path: Path) -> None:
    """Overlayfs is a file system that has none, and HOME lies on one in many a container."""
    home = tmp_path / "joined"
    for name in ("lower", "upper", "work", "joined"):
        (tmp_path / name).mkdir()
    layers = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, home], check=True)
    try:
        there = UserRepo(repo.root, home, {**repo.env, "HOME": str(home)})
        plain = there.sh('ls -A "$HOME"', branch="plain")
        assert (plain.code, plain.out) == (0, ""), str(plain)
        assert any("HOME is private: " in line for line in plain.ours), str(plain)
        refused = there.sh("touch started", "--home", "cow")
        assert (refused.code, "started" in refused.out) == (125, False)
        assert any("id-mapped" in line for line in refused.ours), str(refused)
        assert any("--home private" in line for line in refused.ours), str(refused)
        assert there.sh("true", "--home", "private").code == 0
        assert there.sh("true", "--allow-root-uid").code == 0
    finally:
        subprocess.run(["umount", "--lazy", home], check=True)


def test_a_way_that_root_alone_may_go_leads_nobody_elsewhere(repo: UserRepo, tmp_path: Path) -> None:
    """A repository below a directory of root's: the command gets to it, and sees nothing beside it."""
    closed = Path("/srv") / f"overlayrun-test-{os.getpid()}"
    (closed / "beside").mkdir(parents=True)
    closed.chmod(0o700)
    try:
        shutil.copytree(repo.root, closed / "repo", symlinks=True)
        there = repo.at(closed / "repo")
        assert there.inside(f"ls {closed}; cat README") == "repo\nread me\n"
        assert not repo.sh(f"ls {closed}").out
        assert repo.inside(f"ls {closed}", "--bind-ro", str(closed / "beside")) == "beside\n"
    finally:
        shutil.rmtree(closed)
