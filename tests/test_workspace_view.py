"""What a command sees: the repository at its own path, with a .git that works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

Until = Callable[..., None]


def test_files_are_at_their_own_path_as_they_were(repo: UserRepo) -> None:
    facts = (
        "for f in README src/app.py tool.sh link src; do stat -c '%n %A %s %Y %U %G' $f; done; readlink link"
    )
    import subprocess

    outside = subprocess.check_output(["sh", "-c", f"cd {repo.root}; {facts}"], text=True, env=repo.env)
    # A directory's size is the file system's own affair.
    strip = [line for line in outside.splitlines() if not line.startswith("src ")]
    inside = repo.inside(f"cd {repo.root}; {facts}")
    assert [line for line in inside.splitlines() if not line.startswith("src ")] == strip


def test_git_status_is_clean_at_once(repo: UserRepo) -> None:
    assert repo.inside("git status --porcelain --branch; git diff --stat; git fsck --strict 2>&1") == "## b\n"


def test_git_status_is_right_after_edits(repo: UserRepo) -> None:
    script = (
        "echo x >new; echo y >>README; rm tool.sh; chmod +x src/app.py; "
        "git mv link moved; git status --porcelain"
    )
    assert sorted(repo.inside(script).splitlines()) == [
        " D tool.sh",
        " M README",
        " M src/app.py",
        "?? new",
        "R  link -> moved",
    ]


def test_git_status_reads_no_file(repo: UserRepo) -> None:
    """The index's stat data fits what the mount shows: a status has nothing to hash."""
    done = repo.inside("git diff-files --name-only; git ls-files --debug | head -0; git status --porcelain")
    assert done == ""


def test_history_is_the_repositorys(repo: UserRepo) -> None:
    repo.git("tag", "-a", "-m", "version", "v1.0", "HEAD~1")
    expected = repo.git("log", "--format=%H %an %ae %s")
    assert repo.inside("git log --format='%H %an %ae %s'").strip() == expected
    assert repo.inside("git describe --tags").startswith("v1.0-1-g")
    assert repo.inside("git blame -s README | wc -l; git show HEAD:README") == "1\nread me\n"


@pytest.mark.parametrize("packed", [False, True])
def test_tags_loose_and_packed_are_there(repo: UserRepo, packed: bool) -> None:  # noqa: FBT001  # a parameter
    repo.git("tag", "light")
    repo.git("tag", "-a", "-m", "x", "deep/er")
    if packed:
        repo.git("pack-refs", "--all", "--prune")
    assert repo.inside("git tag").split() == ["deep/er", "light"]
    assert repo.inside("git rev-parse light deep/er^{commit}").split() == [repo.git("rev-parse", "HEAD")] * 2


def test_target_branch_is_there_and_others_are_not(repo: UserRepo) -> None:
    repo.git("branch", "private/other")
    assert repo.inside("git for-each-ref --format='%(refname)' refs/heads").split() == [
        "refs/heads/b",
        "refs/heads/main",
    ]


def test_commits_made_inside_become_the_branch(repo: UserRepo) -> None:
    script = (
        "echo 1 >n; git add n; git commit -qm 'one of mine'; echo 2 >n; "
        "git commit -qam 'two of mine'; git rev-parse HEAD"
    )
    tip = repo.inside(script).strip()
    assert repo.refs()["refs/heads/b"] == tip
    assert repo.git("log", "--format=%s", "-2", "b") == "two of mine\none of mine"
    assert repo.git("rev-parse", "b~2") == repo.git("rev-parse", "main")


def test_work_on_top_of_own_commits_is_one_commit_more(repo: UserRepo) -> None:
    repo.inside("echo 1 >n; git add n; git commit -qm mine; echo 2 >n; echo 3 >m")
    assert repo.git("rev-list", "--count", "main..b") == "2"
    assert repo.git("log", "-1", "--format=%s", "b~1") == "mine"
    assert (repo.show("b", "n"), repo.show("b", "m"), repo.show("b~1", "n")) == ("2\n", "3\n", "1\n")


def test_amended_commits_follow(repo: UserRepo) -> None:
    repo.inside("echo 1 >n; git add n; git commit -qm first")
    repo.inside("git reset -q --hard HEAD; echo 2 >n; git commit -qa --amend -m amended")
    assert repo.git("log", "--format=%s", "main..b").splitlines()[0] == "amended"
    assert repo.show("b", "n") == "2\n"


def test_stash_and_interactive_rebase(repo: UserRepo) -> None:
    repo.inside(
        "for i in 1 2 3; do echo $i >f$i; git add .; git commit -qm c$i; done\n"
        'echo dirty >>README; git stash -q; test -z "$(git status --porcelain)"\n'
        "GIT_SEQUENCE_EDITOR=\"sed -i '1!G;h;$!d'\" git rebase -qi HEAD~3 "
        "2>/dev/null || git rebase -qi --root 2>/dev/null || true\n"
        "GIT_SEQUENCE_EDITOR=\"sed -i 's/^pick \\(.* c2\\)$/drop \\1/'\" git rebase -qi main\n"
        "git stash pop -q; git checkout -q -b side main; "
        "git checkout -q b; git merge -q side; git cherry-pick --quit"
    )
    assert set(repo.git("log", "--format=%s", "main..b").splitlines()) >= {"c1", "c3"}
    assert "f2" not in repo.files("b")
    assert repo.show("b", "README") == "read me\ndirty\n"


def test_snapshot_follows_a_commit_on_another_local_branch(repo: UserRepo) -> None:
    repo.inside("git checkout -q -b other; echo x >new; git add new; git commit -qm elsewhere")
    assert repo.show("b", "new") == "x\n"


def test_git_directory_can_not_be_moved(repo: UserRepo) -> None:
    out = repo.inside(
        "mv .git away 2>&1 || true; rmdir .git 2>&1 || true; "
        "git status --porcelain; git log --oneline | wc -l"
    )
    assert out.count("busy") == 2
    assert out.endswith("2\n")


def test_removing_what_is_in_the_git_directory_loses_no_work(repo: UserRepo) -> None:
    before = repo.picture()
    done = repo.sh("echo x >new; rm -rf .git 2>&1")
    assert "busy" in done.out
    assert "Traceback" not in done.err
    assert done.code == 1
    assert repo.show("b", "new") == "x\n"
    assert repo.picture() == before
    assert repo.inside("cat new") == "x\n"


def test_real_git_directory_is_invisible(repo: UserRepo) -> None:
    repo.git("config", "remote.origin.url", "https://user:s3cret@example.invalid/x.git")
    repo.git("config", "credential.helper", "!echo s3cret")
    repo.git("config", "http.https://example.invalid/.extraheader", "Authorization: s3cret")
    repo.write(".git/hooks/pre-commit", "#!/bin/sh\nexit 1\n", 0o755)
    repo.write(".git/real-mark", "s3cret")
    script = (
        "git config --list --local; find .git -name pre-commit -o -name real-mark; "
        "cat .git/config; ls .git/hooks 2>/dev/null || true;"
        "find / \\( -name real-mark -o -name overlayrun -path "
        "'*/.git/*' \\) -not -path '/proc/*' 2>/dev/null || true;"
        "grep -rs s3cret .git /run/overlayrun || true; echo end"
    )
    out = repo.inside(script)
    assert "s3cret" not in out
    assert "hooks" not in out
    assert "pre-commit" not in out
    assert out.endswith("end\n")
    assert "real-mark" not in out


def test_objects_of_the_history_are_read_only(repo: UserRepo) -> None:
    out = repo.inside(
        "d=$(cat .git/objects/info/alternates); test -d $d; touch $d/x 2>&1 || true; "
        "rm -rf $d/?? 2>&1 | head -1; git gc -q --prune=now 2>&1 || true; git log --oneline | wc -l"
    )
    assert out.count("Read-only") >= 2
    assert out.splitlines()[-1] == "2"
    assert repo.git("fsck", "--strict") == ""


def test_rest_of_the_disk_is_read_only(repo: UserRepo, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    tries = (
        f"touch {beside}/x; mkdir {beside}/y; touch /usr/x /etc/x "
        f"/var/x /opt/x; rm -rf {beside}; mount -o remount,rw /"
    )
    repo.sh(f"({tries}) 2>/dev/null; true")
    assert beside.is_dir()
    assert os.listdir(beside) == []
    for place in ("/usr/x", "/etc/x", "/var/x", "/opt/x"):
        assert not os.path.exists(place)


def test_scratch_directories_are_private(repo: UserRepo) -> None:
    mark = f"mark-{repo.marker}"
    outside = Path("/dev/shm") / mark
    outside.write_text("host")
    try:
        out = repo.inside(
            f"ls /tmp /var/tmp /dev/shm /run; for d in /tmp /var/tmp /dev/shm; "
            f"do echo x >$d/{mark}; done; ls /dev"
        )
        assert "pytest-of" not in out.replace(str(repo.root.parents[2].name), "") or str(
            repo.root
        ).startswith("/tmp")
        assert mark not in out
        assert outside.read_text() == "host"
        assert not os.path.exists(f"/tmp/{mark}")
        assert not os.path.exists(f"/var/tmp/{mark}")
    finally:
        outside.unlink()


def test_devices_are_the_harmless_ones(repo: UserRepo) -> None:
    out = set(repo.inside("ls /dev").split())
    assert out <= {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "pts",
        "ptmx",
        "shm",
        "fd",
        "stdin",
        "stdout",
        "stderr",
        "console",
        "core",
        "mqueue",
    }
    assert {"null", "zero", "urandom", "pts", "ptmx", "shm"} <= out
    assert (
        repo.inside(
            "echo x >/dev/null; head -c 3 /dev/zero | wc -c; "
            "python3 -c 'import os; print(os.openpty()[0] > 0)'"
        )
        == "3\nTrue\n"
    )


def test_proc_shows_own_processes_alone(repo: UserRepo) -> None:
    out = repo.inside(
        "ls /proc | grep -c '^[0-9]'; cat /proc/1/environ 2>/dev/null | wc -c; "
        "ls -l /proc/1/exe 2>&1 | grep -c python || true"
    )
    count, environment, program = (int(line) for line in out.split())
    assert count < 10
    assert (environment, program) == (0, 0)


def test_privileges_are_gone(repo: UserRepo) -> None:
    out = repo.inside("grep -E '^(Cap|NoNew|Uid|Gid)' /proc/self/status; id -u; id -g")
    lines = dict(line.split(":", 1) for line in out.splitlines() if ":" in line)
    assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert lines["NoNewPrivs"].strip() == "1"
    assert out.splitlines()[-2:] == [str(os.geteuid()), str(os.getegid())]
    assert os.stat(repo.workspace() / "upper").st_uid == os.geteuid()


def test_no_descriptor_leaks_in(repo: UserRepo) -> None:
    assert repo.inside("ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls reads the directory


def test_mount_and_namespace_calls_fail(repo: UserRepo) -> None:
    out = repo.inside(
        "for c in 'mount -t tmpfs x /mnt' 'umount /tmp' 'mknod n b 8 0' 'chroot "
        "/ true' 'mknod w c 0 0'; do $c 2>/dev/null && echo did $c; done; true"
    )
    assert out == ""


def test_base_is_frozen_against_the_users_later_work(repo: UserRepo) -> None:
    script = (
        "echo ready; read a; cat README src/app.py; ls; "
        "git status --porcelain; git log --oneline | wc -l; read b"
    )
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        run.expect("ready")
        repo.write("README", "edited later\n")
        with (repo.root / "src/app.py").open("a") as file:  # in place: a hard link would show it
            file.write("later\n")
        repo.commit("later", extra="new")
        repo.git("checkout", "-q", "HEAD~2")
        repo.git("checkout", "-q", "main")
        run.type("")
        run.type("")
        assert run.end() == 0
        shown = run.text().partition("ready\n")[2].partition("overlayrun:")[0]
        assert shown == "read me\nanswer = 41\nREADME\nlink\nsrc\ntool.sh\n2\n"


def test_a_host_gc_during_a_run_does_no_harm(repo: UserRepo) -> None:
    script = (
        "echo one >n; git add n; git commit -qm one; echo ready; read a; git log --oneline | wc -l; "
        "git fsck --strict 2>&1; cat README; echo two >n; git commit -qam two"
    )
    repo.write("README", "uncommitted\n")
    repo.write("untracked", "mine\n")
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        run.expect("ready")
        # The user drops the commit that the workspace started from, and prunes all that no ref keeps.
        repo.git("stash", "--include-untracked", "--quiet")
        repo.git("stash", "drop", "--quiet")
        repo.git("reset", "--quiet", "--hard", "HEAD~1")
        repo.git("reflog", "expire", "--expire=now", "--all")
        repo.git("gc", "--quiet", "--prune=now")
        run.type("")
        assert run.end() == 0, run.text()
        shown = run.text().partition("ready\n")[2].partition("overlayrun:")[0]
        assert shown.splitlines()[0] in {"3", "4"}
        assert shown.splitlines()[-1] == "uncommitted"
    assert repo.show("b", "n") == "two\n"
    assert repo.show("b", "untracked") == "mine\n"
    assert repo.git("fsck", "--strict") == ""


def test_a_repository_inside_home_works(repo: UserRepo) -> None:
    inner = repo.at(repo.home / "code/project")
    inner.root.mkdir(parents=True)
    inner.git("init", "-q")
    inner.commit("x", a="a\n")
    (repo.home / "note").write_text("host\n")
    out = inner.inside('pwd; cat a; git status --porcelain; cat "$HOME/note"; echo n >new; echo h >"$HOME/h"')
    assert out == f"{inner.root}\na\nhost\n"
    assert inner.show("b", "new") == "n\n"
    assert not (repo.home / "h").exists()


def test_a_repository_that_is_home_itself_works(repo: UserRepo) -> None:
    inner = repo.at(repo.home)
    inner.git("init", "-q")
    inner.commit("x", a="a\n")
    assert inner.inside("pwd; cat a; echo n >new") == f"{inner.root}\na\n"
    assert inner.show("b", "new") == "n\n"
    assert not (repo.home / "new").exists()


def test_other_branches_layers_are_out_of_reach(repo: UserRepo) -> None:
    repo.inside("echo canary-7f3a >secret-of-b")
    upper = repo.workspace() / "upper"
    assert (
        repo.inside(
            f"ls {upper} 2>&1 || true; find / -name secret-of-b 2>/dev/null || true", branch="other"
        ).count("secret-of-b")
        == 0
    )


def test_bound_paths_are_shared(repo: UserRepo, tmp_path: Path) -> None:
    shared, shown = tmp_path / "shared", tmp_path / "shown"
    shared.mkdir()
    shown.mkdir()
    (shown / "f").write_text("f\n")
    done = repo.sh(
        f"cat {shown}/f; echo x >{shared}/x; echo y >{shown}/y",
        "--bind-rw",
        str(shared),
        "--bind-ro",
        str(shown),
    )
    assert done.out == "f\n"
    assert (shared / "x").read_text() == "x\n"
    assert not (shown / "y").exists()


def test_linked_files_inside_behave(repo: UserRepo) -> None:
    assert (
        repo.inside(
            "ln README hard; ln -s src d; mv src/app.py src/b.py; "
            "mkdir -p n/m; mv n n2; mv n2 src/; cat hard; ls src"
        )
        == "read me\nb.py\nn2\n"
    )


def test_renaming_a_new_directory_works(repo: UserRepo) -> None:
    repo.inside("mkdir new; echo x >new/f; mv new newer; cat newer/f")
    assert repo.show("b", "newer/f") == "x\n"


def test_the_target_is_there_at_its_own_commit(repo: UserRepo) -> None:
    repo.git("branch", "release")
    repo.commit("later", new="1\n")
    done = repo.overlayrun("-q", "--into", "release", "-b", "b", "--", "git", "rev-parse", "release")
    assert done.out.strip() == repo.git("rev-parse", "release") != repo.git("rev-parse", "HEAD")


_TOLD = """
import os, sys
from overlayrun.launch import main
def tell(event, args):
    if event == "open" and args[0] == "/proc/self/mountinfo":
        os.write(1, b"read")
sys.addaudithook(tell)
main()
"""


@pytest.mark.shared
def test_a_start_reads_the_list_of_mounts_once(repo: UserRepo) -> None:
    """It is as long as the machine has mounts."""
    import subprocess
    import sys

    repo.inside("true")  # the first start of all enters the repository into a list
    argv = [sys.executable, "-c", _TOLD, "-b", "b", "--", "true"]
    out = subprocess.check_output(argv, cwd=repo.root, env=repo.env, text=True)
    assert out == "read"
