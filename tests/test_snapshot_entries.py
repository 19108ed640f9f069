"""What an upper can hold besides files that git would add, and who may be writing to it meanwhile."""

from __future__ import annotations

import ctypes  # noqa: TID251  # the attacker swaps names faster than any wrapper
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from snapshot_world import World

from overlayrun.collector import LeftOut, LeftOutReason, Limits
from overlayrun.errors import SnapshotError
from overlayrun.model import CommitId, SnapshotReason

pytestmark = pytest.mark.shared  # names, rules and sizes of what a command left

SPELLINGS: Final = [
    *(".GIT", ".Git", ".git ", ".git.", ".git . .", "git~1", "GIT~1", ".git::$INDEX_ALLOCATION", ".git\\"),
    *(".gi\u200ct", ".g\u200dit", "\ufeff.git", ".git\u202e", "x\\.git", ".git:stream"),
]


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_of_dotgit_gets_in(tmp_path: Path, name: str) -> None:
    world = World.make(tmp_path, {"x": "1\n"})

    def action() -> None:
        os.makedirs(f"d/{name}/hooks")
        Path(f"d/{name}/hooks/h").write_text("#!")
        Path("d/y").touch()

    world.inside(action)
    taken = world.snapshot()
    assert world.names(taken.tree) == {"x", "d/y"}
    assert taken.left_out == (LeftOut(f"d/{name}".encode(), LeftOutReason.DOTGIT),)
    world.fsck()


def test_names_that_only_look_like_dotgit_get_in(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    names = {".gitx", "git", ".gitignore2", "a.git", "git~2", ".github/x", ".git-", "..git"}
    world.sh("mkdir .github; " + "; ".join(f"echo 1 > {name}" for name in names))
    assert world.names(world.snapshot().tree) == names


@pytest.mark.by_both
def test_a_nested_repository_is_stored_as_plain_files(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh(
        "git init -q vendor/sub; cd vendor/sub; echo 1 > f;"
        "git -c user.name=a -c user.email=b commit -qm x --allow-empty"
    )
    taken = world.snapshot()
    assert world.names(taken.tree) == {"x", "vendor/sub/f"}
    assert taken.left_out == (LeftOut(b"vendor/sub/.git", LeftOutReason.DOTGIT),)
    assert b"160000" not in b"".join(world.files(taken.tree).values())


def test_the_workspaces_own_dotgit_is_passed_over(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    (world.upper / ".git").mkdir()
    (world.upper / ".git/config").write_text("[core]\n")
    taken = world.snapshot()
    assert (world.names(taken.tree), taken.left_out) == ({"x"}, ())


def test_a_gitlink_of_the_base_is_kept(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    for name in ("kept", "emptied", "gone", "replaced"):
        world.git("update-index", "--add", "--cacheinfo", f"160000,{world.job.base},{name}")
    world.git("commit", "-qm", "submodules")
    world.checkout(CommitId(world.git("rev-parse", "HEAD")))
    world.sh("echo 1 > kept/f; rm -r emptied; mkdir emptied; rmdir gone; rmdir replaced; echo 1 > replaced")
    taken = world.snapshot()
    modes = {name: info.split()[0] for name, info in world.files(taken.tree).items()}
    assert modes == {b"x": b"100644", b"kept": b"160000", b"emptied": b"160000", b"replaced": b"100644"}
    assert {one.path for one in taken.left_out} == {b"kept", b"emptied"}


@pytest.mark.by_both
def test_sockets_and_fifos_are_told_and_never_opened(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"was": "1\n", ".gitignore": "*.sock\n"})

    def action() -> None:
        os.mkfifo("fifo")
        os.unlink("was")
        os.mkfifo("was")
        socket.socket(socket.AF_UNIX).bind("s")
        socket.socket(socket.AF_UNIX).bind("ignored.sock")

    world.inside(action)
    taken = world.snapshot()
    assert world.names(taken.tree) == {".gitignore"}
    assert taken.left_out == tuple(
        LeftOut(path, LeftOutReason.UNSUPPORTED) for path in (b"fifo", b"s", b"was")
    )
    assert taken.ignored == 1


@pytest.mark.by_both
def test_a_device_is_told(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    try:
        os.mknod(world.upper / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        assert os.getuid() != 0  # an ordinary user can't make one, nor can his agent
        return
    taken = world.snapshot()
    assert (world.names(taken.tree), taken.left_out[0].reason) == ({"x"}, LeftOutReason.UNSUPPORTED)


@pytest.mark.by_both
def test_both_forms_of_whiteout_delete(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"a": "1\n", "d/b": "1\n", "d/c": "1\n", "e": "1\n"})
    os.mknod(world.upper / "a", 0o20000, os.makedev(0, 0))
    (world.upper / "d").mkdir()
    os.setxattr(world.upper / "d", "user.overlay.opaque", b"x")
    (world.upper / "d/b").touch()
    os.setxattr(world.upper / "d/b", "user.overlay.whiteout", b"")
    assert world.names(world.snapshot().tree) == {"d/c", "e"}


@pytest.mark.by_both
def test_overlay_attributes_of_the_agent_hide_nothing(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"d/a": "1\n", "b": ""})

    def action() -> None:
        os.setxattr("d", "user.overlay.opaque", b"y")
        Path("b").write_text("")
        os.setxattr("b", "user.overlay.whiteout", b"")

    world.inside(action)
    assert world.names(world.snapshot().tree) == {"d/a", "b"}


def test_a_symlinked_gitmodules_is_left_out(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh("ln -s x .gitmodules; ln -s x .GITMODULES; ln -s x fine")
    taken = world.snapshot()
    assert world.names(taken.tree) == {"x", "fine"}
    assert {one.reason for one in taken.left_out} == {LeftOutReason.LINKED_MODULES}
    world.fsck()


def test_a_link_is_stored_as_its_text(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh("ln -s /etc/passwd pw; ln -s .. up; ln -s loop loop; ln -s up/up/up deep")
    taken = world.snapshot()
    assert world.content(taken.tree, "pw") == b"/etc/passwd"
    assert world.names(taken.tree) == {"x", "pw", "up", "loop", "deep"}


def test_carried_paths_are_never_committed(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitignore": ".env\nnode_modules/\n"})
    world.job = replace(world.job, carried=(b".env", b"node_modules"))
    world.sh(
        "rm .gitignore; echo SECRET > .env; mkdir -p node_modules/m;"
        " echo 1 > node_modules/m/i.js; echo 1 > .env2"
    )
    taken = world.snapshot()
    assert (world.names(taken.tree), taken.ignored) == ({".env2"}, 0)


def test_ignore_rules_from_outside_the_tree_count(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    (world.repo / ".git/info/exclude").write_text("*.log\n!keep.tmp\n")
    (tmp_path / "excludes").write_text("*.tmp\n")
    world.git("config", "core.excludesFile", str(tmp_path / "excludes"))
    world.sh(
        "touch a.log b.tmp keep.tmp; mkdir d;"
        " echo '!*.log' > d/.gitignore; touch d/c.log; ln -s /x .gitignore"
    )
    taken = world.snapshot()
    assert world.names(taken.tree) == {"x", "keep.tmp", "d/.gitignore", "d/c.log", ".gitignore"}
    assert taken.ignored == 2


def test_file_mode_follows_the_users_setting(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"old": "1\n"})
    world.git("config", "core.fileMode", "false")
    world.sh("echo 2 > old; chmod +x old; echo 1 > new; chmod +x new")
    assert {info.split()[0] for info in world.files(world.snapshot().tree).values()} == {b"100644"}


@pytest.mark.by_both
def test_setuid_leaves_only_the_executable_bit(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    world.sh("echo 1 > f; chmod 6755 f")
    assert world.files(world.snapshot().tree)[b"f"].split()[0] == b"100755"


@pytest.mark.by_both
def test_a_file_copied_up_without_a_change_changes_nothing(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"d/a": "1\n"})
    world.sh("chmod +x d/a; chmod -x d/a; touch d/a; mkdir e")
    taken = world.snapshot(SnapshotReason.REQUEST)
    assert (taken.unchanged, taken.commit, taken.tip, taken.changes.total) == (True, None, world.job.base, 0)


def test_a_tree_5000_deep_neither_crashes_nor_loses_what_git_can_hold(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})

    def action() -> None:
        for depth in range(5000):
            with open("f", "w") as file:
                file.write("1\n" if depth % 100 == 0 else "2\n")
            os.mkdir("d")
            os.chdir("d")

    try:
        world.inside(action)
        taken = world.snapshot()
        assert len(world.names(taken.tree)) == 2049  # of "d/…/d/f", as many as stay below PATH_MAX, and x
        assert [one.reason for one in taken.left_out] == [LeftOutReason.TOO_DEEP] * len(taken.left_out)
        assert taken.left_out
    finally:
        subprocess.run(["rm", "-rf", str(world.upper)], check=True)


def test_many_directories_side_by_side_below_a_deep_one(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    deep = "/".join(["d"] * 200)

    def action() -> None:
        for number in range(150):
            side = Path(deep, f"s{number}")
            side.mkdir(parents=True)
            (side / "f").write_text(f"{number}\n")
            Path(deep[: 2 * number + 1], "z").write_text("1\n")

    world.inside(action)
    assert len(world.names(world.snapshot().tree)) == 300


def test_too_many_files_are_refused_unless_forced(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitignore": "i/\n"})
    world.sh("mkdir i; for n in 1 2 3 4 5 6; do echo $n > $n; echo $n > i/$n; done")
    world.job = replace(world.job, limits=Limits(entries=5))
    with pytest.raises(SnapshotError, match="more than 5 files"):
        world.snapshot()
    assert world.git("for-each-ref", "refs/overlayrun") == ""
    world.job = replace(world.job, limits=Limits(entries=5, force_large=True))
    assert len(world.names(world.snapshot().tree)) == 7


def test_a_file_over_the_limit_keeps_its_old_version(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"old": "1\n"})
    world.sh("truncate -s 16T new 2>/dev/null || truncate -s 1G new; truncate -s 2M old")
    world.job = replace(world.job, limits=Limits(file_bytes=1 << 20))
    taken = world.snapshot()
    assert world.content(taken.tree, "old") == b"1\n"
    assert taken.left_out == tuple(LeftOut(path, LeftOutReason.TOO_LARGE) for path in (b"new", b"old"))


@pytest.mark.by_both
def test_what_can_not_be_read_keeps_its_old_version(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"f": "1\n", "d/g": "1\n"})
    if os.getuid() != 0:  # all that he can have there is his own, which is read whatever its mode
        return
    world.sh("echo 2 > f; chmod 0 f; echo 2 > d/g; chmod 0 d; echo 3 > new")
    for name in ("f", "d"):
        os.chown(world.upper / name, 12345, 12345)
    taken = world.snapshot()
    assert world.content(taken.tree, "f") == b"1\n"
    assert world.content(taken.tree, "d/g") == b"1\n"
    assert world.content(taken.tree, "new") == b"3\n"
    assert {one.path for one in taken.left_out} == {b"f", b"d"}


SECRET: Final = b"a secret outside the workspace\n"


def _swap_forever(world: World, one: bytes, other: bytes) -> int:
    pid = os.fork()
    if pid == 0:
        os.chdir(world.upper)
        exchange = ctypes.CDLL(None).renameat2
        while True:
            exchange(-100, one, -100, other, 2)
    return pid


def _make_file(name: str) -> None:
    Path(name).write_text("mine\n")


def _make_directory(name: str) -> None:
    os.mkdir(name)
    Path(name, "secret").write_text("mine\n")


def _naive_rounds_that_leak(world: World, *, until: float) -> int:
    """Count rounds in which a walker that checks first and opens afterwards reads the secret."""
    leaks = 0
    while time.monotonic() < until and not leaks:
        for place, directories, names in os.walk(world.upper):
            directories[:] = [name for name in directories if not os.path.islink(f"{place}/{name}")]
            for name in names:
                with suppress(OSError):
                    path = Path(place, name)
                    leaks += not path.is_symlink() and path.is_file() and SECRET in path.read_bytes()
    return leaks


@pytest.mark.parametrize(
    ("make", "target"),
    [(_make_directory, "outside"), (_make_file, "outside/secret"), (_make_file, "fifo"), (_make_file, "dir")],
)
def test_names_that_are_swapped_meanwhile_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], None], target: str
) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(SECRET)
    monkeypatch.chdir(world.upper)
    make("one")
    if target == "fifo":
        os.mkfifo("two")
    elif target == "dir":
        _make_directory("two")
    else:
        os.symlink(tmp_path / target, "two")
    attacker = _swap_forever(world, b"one", b"two")
    try:
        until = time.monotonic() + 2.0
        rounds = 0
        while time.monotonic() < until or rounds < 20:
            world.snapshot(SnapshotReason.INTERVAL)
            rounds += 1
        if target == "outside":
            # The race is real: a walker by paths falls for it within this time or soon after.
            assert _naive_rounds_that_leak(world, until=time.monotonic() + 30)
    finally:
        os.kill(attacker, 9)
        os.waitpid(attacker, 0)
    everything = subprocess.check_output(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=world.repo
    )
    assert SECRET not in everything
    world.fsck()


def test_files_that_come_and_go_meanwhile_stop_nothing(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    churn = f"""cd {world.upper}; n=0; while :; do n=$((n+1));
        mkdir -p d$((n%7))/e; echo $n > d$((n%7))/e/f$((n%5));
        rm -rf d$(((n+3)%7)); done"""
    writer = subprocess.Popen(["sh", "-c", churn])
    try:
        for _ in range(40):
            world.snapshot(SnapshotReason.INTERVAL)
    finally:
        writer.kill()
        writer.wait()
    last = world.snapshot()
    shutil.rmtree(world.root / "lower")
    found = {str(path.relative_to(world.upper)) for path in world.upper.rglob("*") if path.is_file()}
    assert world.names(last.tree) == found | {"x"}
    world.fsck()


def test_below_an_ignored_directory_only_tracked_files_are_followed(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"d/a": "1\n", "d/e/b": "1\n"})
    world.sh(
        "printf 'd/\\n!d/new\\n' > .gitignore; echo 2 > d/a; echo 2 > d/e/b; touch d/new d/e/new;"
        "mkdir d/f; touch d/f/x"
    )
    taken = world.snapshot()
    assert world.names(taken.tree) == {".gitignore", "d/a", "d/e/b"}
    assert world.content(taken.tree, "d/e/b") == b"2\n"
    assert taken.ignored == 3


def test_git_agrees_with_the_order_of_names(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    names = {"a/x", "a.b", "a-b", "a0", "a b", "ab/x", "ab.c", "a\x7f"}
    world.sh("mkdir a ab")
    world.inside(lambda: [Path(name).write_text("1\n") for name in names])
    assert world.names(world.snapshot().tree) == names
    world.fsck()
