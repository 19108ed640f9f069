"""Ignored files come along, are kept by the branch, reach no commit, and stay as they are on the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import Mounter, UserRepo

pytestmark = pytest.mark.shared  # which ignored files come along

SEVERAL: Final = 700  # files: enough for a layer of its own


@pytest.fixture
def carrying(repo: UserRepo) -> UserRepo:
    """A repository with a .env, a large and a small ignored directory, nested ones, and odd files in them."""
    repo.write(".gitignore", ".env\nnode_modules/\n*.log\n/build/\n")
    repo.commit("ignore")
    repo.write(".env", "KEY=1\n", 0o600)
    for number in range(SEVERAL):
        repo.write(f"node_modules/p{number % 20}/f{number}.js", f"{number}\n")
    (repo.root / "node_modules/.bin").mkdir()
    (repo.root / "node_modules/.bin/tool").symlink_to("../p1/f1.js")
    repo.write("node_modules/p1/run", "#!/bin/sh\necho run\n", 0o755)
    repo.write("packages/one/node_modules/dep/index.js", "dep\n")
    repo.write("packages/one/src.js", "tracked\n")
    repo.write("build/out", "built\n")
    repo.write("src/debug.log", "log\n")
    repo.git("add", "packages/one/src.js")
    repo.git("commit", "-q", "-m", "package")
    return repo


LOOK: Final = (
    "cat .env build/out src/debug.log packages/one/node_modules/dep/index.js node_modules/p3/f3.js;"
    "find node_modules -type f | wc -l; readlink node_modules/.bin/tool; "
    "node_modules/p1/run; stat -c %a .env; git status --porcelain"
)
SEEN: Final = f"KEY=1\nbuilt\nlog\ndep\n3\n{SEVERAL + 1}\n../p1/f1.js\nrun\n600\n"


@pytest.mark.parametrize("policy", [[], ["--carry", "link"], ["--carry", "reflink"], ["--carry", "live"]])
@pytest.mark.parametrize("dirty", ["include", "ignore"])
def test_everything_ignored_is_there(carrying: UserRepo, policy: list[str], dirty: str) -> None:
    assert carrying.inside(LOOK, *policy, "--dirty", dirty) == SEEN


def test_carry_none_brings_nothing(carrying: UserRepo) -> None:
    assert carrying.inside("ls -A", "--carry", "none").split() == [
        ".git",
        ".gitignore",
        "README",
        "link",
        "packages",
        "src",
        "tool.sh",
    ]


@pytest.mark.by_both
def test_times_and_modes_come_along(carrying: UserRepo) -> None:
    os.utime(carrying.root / "node_modules/p3/f3.js", ns=(10**18, 1_234_567_890_123_456_789))
    os.utime(carrying.root / ".env", ns=(10**18, 1_234_567_890_000_000_001))
    assert carrying.inside("stat -c %.9Y node_modules/p3/f3.js .env").split() == [
        "1234567890.123456789",
        "1234567890.000000001",
    ]


EDITS: Final = (
    "echo inside >>.env; echo inside >>node_modules/p3/f3.js; "
    "rm -r node_modules/p1; echo n >node_modules/p2/new;"
    "chmod 777 build/out; echo x >build/out; mkdir -p node_modules/fresh; "
    "echo f >node_modules/fresh/f; truncate -s0 src/debug.log;"
    "echo dep2 >packages/one/node_modules/dep/index.js"
)


@pytest.mark.parametrize("policy", ["link", "reflink", "live", ""])
def test_host_files_stay_as_they_are(carrying: UserRepo, policy: str) -> None:
    before = carrying.picture()
    carrying.inside(EDITS, *(["--carry", policy] if policy else []))
    after = carrying.picture()
    assert after == before


def test_changes_are_kept_by_the_branch_and_not_shared(carrying: UserRepo) -> None:
    carrying.inside(EDITS)
    look = (
        "tail -1 .env; tail -1 node_modules/p3/f3.js; ls -d node_modules/p1 2>&1 | grep -c cannot || true; "
        "cat node_modules/fresh/f build/out packages/one/node_modules/dep/index.js"
    )
    assert carrying.inside(look) == "inside\ninside\n1\nf\nx\ndep2\n"
    assert carrying.inside(LOOK, branch="other") == SEEN


def test_nothing_carried_is_committed(carrying: UserRepo) -> None:
    carrying.inside(EDITS + "; echo x >new")
    assert set(carrying.files("b")) - set(carrying.files("main")) == {"new"}


def test_nothing_carried_is_committed_when_the_agent_bends_the_rules(carrying: UserRepo) -> None:
    """A rule that the agent changes, or a forced add, does not make a secret of the user's a commit's."""
    done = carrying.sh(
        "echo >.gitignore; echo inside >>.env; echo x >node_modules/p3/f3.js; "
        "git add -f .env node_modules/p3; git add -A . ; git commit -qm 'all of it' ; true"
    )
    assert done.code == 0, str(done)
    history = carrying.git("log", "--format=", "--name-only", "main..b").split()
    assert ".env" not in history
    assert not [name for name in history if name.startswith("node_modules")]
    everything = carrying.raw_git("cat-file", "--batch-all-objects", "--batch", "--unordered")
    assert b"KEY=1\ninside" not in everything
    assert carrying.git("fsck", "--strict") == ""


def test_an_unchanged_secret_is_not_committed_either(carrying: UserRepo) -> None:
    carrying.inside(
        "echo >.gitignore; cp .env copy-of-env; rm copy-of-env; git add -A; git commit -qm all || true"
    )
    assert ".env" not in carrying.files("b")
    assert b"KEY=1" not in carrying.raw_git("cat-file", "--batch-all-objects", "--batch")


def test_base_is_frozen_against_installs_of_the_user(carrying: UserRepo) -> None:
    script = "echo ready; read a; cat node_modules/p3/f3.js .env; ls node_modules | wc -l; ls build"
    with carrying.started("-b", "b", "--carry", "link", "--", "sh", "-c", script) as run:
        run.expect("ready")
        (carrying.root / "node_modules/p3/f3.js").unlink()
        carrying.write("node_modules/p3/f3.js", "reinstalled\n")
        carrying.write("node_modules/new-package/f", "x")
        (carrying.root / ".env").unlink()
        carrying.write(".env", "KEY=2\n")
        (carrying.root / "build/out").unlink()
        run.type("")
        assert run.end() == 0
    assert run.text().partition("ready\n")[2].partition("overlayrun:")[0] == "3\nKEY=1\n20\nout\n"


def test_single_files_edited_in_place_do_not_show(carrying: UserRepo) -> None:
    with carrying.started("-b", "b", "--", "sh", "-c", "echo ready; read a; cat .env src/debug.log") as run:
        run.expect("ready")
        for name in (".env", "src/debug.log"):
            with (carrying.root / name).open("a") as file:
                file.write("later\n")
        run.type("")
        assert run.end() == 0
    assert "later" not in run.text()


def test_a_new_branch_sees_the_users_newer_files(carrying: UserRepo) -> None:
    carrying.inside("true")
    carrying.write(".env", "KEY=22\n")
    (carrying.root / "node_modules/p3/f3.js").unlink()
    carrying.write("node_modules/p3/f3.js", "reinstalled\n")
    carrying.write("node_modules/p4/added.js", "added\n")
    assert (
        carrying.inside("cat .env node_modules/p3/f3.js node_modules/p4/added.js", branch="c")
        == "KEY=22\nreinstalled\nadded\n"
    )


def test_a_new_branch_sees_a_large_directorys_file_edited_in_place(carrying: UserRepo) -> None:
    """As an editor or a build tool does: no directory's time tells of it."""
    carrying.inside("true")
    with (carrying.root / "node_modules/p3/f3.js").open("w") as file:
        file.write("patched by the user\n")
    assert carrying.inside("cat node_modules/p3/f3.js", branch="c") == "patched by the user\n"


def test_a_rule_added_later_is_noticed(carrying: UserRepo) -> None:
    carrying.inside("true", "--dirty", "ignore")
    carrying.write(".git/info/exclude", "later-ignored\n")
    carrying.write("later-ignored", "l\n")
    assert carrying.inside("cat later-ignored", "--dirty", "ignore", branch="c") == "l\n"


def test_a_global_rule_added_later_is_noticed(carrying: UserRepo) -> None:
    carrying.write("notes.private", "n\n")
    carrying.inside("ls notes.private 2>&1 || true", "--dirty", "ignore")
    (carrying.home / ".config/git").mkdir(parents=True, exist_ok=True)
    (carrying.home / ".config/git/ignore").write_text("*.private\n")
    assert carrying.inside("cat notes.private", "--dirty", "ignore", branch="c") == "n\n"


def test_worktreeinclude_narrows(carrying: UserRepo) -> None:
    carrying.write(".worktreeinclude", "# what comes along\n.env\n/packages/**/node_modules/\n")
    carrying.commit("include")
    out = carrying.inside(
        "cat .env packages/one/node_modules/dep/index.js; "
        "ls -d node_modules build src/debug.log 2>/dev/null || true"
    )
    assert out == "KEY=1\ndep\n"


def test_an_ignored_repository_is_left_out_and_named(carrying: UserRepo) -> None:
    inner = carrying.at(carrying.root / "build/inner")
    inner.root.mkdir()
    inner.git("init", "-q")
    carrying.write("build/inner/f", "f")
    done = carrying.sh("ls -A; ls build 2>/dev/null; cat .env")
    assert done.code == 0, str(done)
    assert "KEY=1" in done.out


@pytest.mark.by_both
def test_unreadable_files_are_named_and_stop_nothing(carrying: UserRepo) -> None:
    secret = carrying.write("node_modules/p5/closed", "c", 0)
    carrying.write("build/closed", "c", 0)
    done = carrying.sh("cat .env node_modules/p3/f3.js build/out")
    assert done.out == "KEY=1\n3\nbuilt\n", str(done)
    if os.geteuid() != 0:
        assert "closed" in done.err, f"not carried, and not said: {done}"
    secret.chmod(0o644)


@pytest.mark.root
@pytest.mark.parametrize("owner", [0, 12345])
@pytest.mark.parametrize("policy", ["link", "reflink"])
def test_foreign_files_come_along_as_the_users(carrying: UserRepo, owner: int, policy: str) -> None:
    """Root sees all; what it carries must be writable inside, where no other owner is mapped."""
    for name in ("node_modules/p3/f3.js", "node_modules/p3", ".env", "build", "build/out"):
        os.chown(carrying.root / name, owner, 12345)
    done = carrying.sh(
        "echo w >>node_modules/p3/f3.js; echo w >>.env; echo w >>build/out; echo n >build/n; cat build/out",
        "--carry",
        policy,
    )
    assert done.code == 0, str(done)
    assert done.out == "built\nw\n"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_where_the_disk_can(carrying: UserRepo, loop_disk: Mounter, kind: str) -> None:
    disk = loop_disk(kind, 512)
    there = carrying.at(disk / "repo")
    subprocess.run(["cp", "-a", str(carrying.root), str(there.root)], check=True)
    there.write("node_modules/blob", os.urandom(8 << 20))
    subprocess.run(["sync"], check=True)
    used = os.statvfs(disk)
    assert there.inside("cat .env node_modules/p3/f3.js; wc -c <node_modules/blob") == "KEY=1\n3\n8388608\n"
    subprocess.run(["sync"], check=True)
    after = os.statvfs(disk)
    assert (used.f_bfree - after.f_bfree) * used.f_frsize < 8 << 20
    with (there.root / "node_modules/blob").open("r+b") as file:
        file.write(b"user")
    assert there.inside("head -c4 node_modules/blob | od -An -c") != there.inside(
        "printf user | od -An -c", branch="c"
    )


def test_sockets_and_pipes_among_ignored_files_stop_nothing(carrying: UserRepo) -> None:
    os.mkfifo(carrying.root / "build/pipe")
    os.mkfifo(carrying.root / "x.log")
    done = carrying.sh("cat .env build/out")
    assert done.out == "KEY=1\nbuilt\n", str(done)


def test_a_link_that_leads_nowhere_or_out_is_a_link_inside(carrying: UserRepo, tmp_path: Path) -> None:
    (carrying.root / "build/dangling").symlink_to("nowhere")
    (carrying.root / "build/out-of-tree").symlink_to(tmp_path / "elsewhere")
    (carrying.root / "linked.log").symlink_to(tmp_path / "elsewhere")
    assert carrying.inside("readlink build/dangling build/out-of-tree linked.log").splitlines() == [
        "nowhere",
        *[f"{tmp_path}/elsewhere"] * 2,
    ]


def test_names_of_ignored_files_may_be_odd(repo: UserRepo) -> None:
    repo.write(".gitignore", "*.x\nodd*/\n")
    repo.commit("ignore")
    for name in ("a b.x", "nl\n.x", "\udcff.x", "-r.x", "odd\n dir/f", "q'\".x"):
        repo.write(name, f"{name!a}")
    assert (
        repo.inside(
            "find . -path ./.git -prune -o -name '*.x' -print0 -o "
            "-path './odd*' -type f -print0 | tr -cd '\\0' | wc -c"
        )
        == "6\n"
    )
