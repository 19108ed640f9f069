from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from folders.world import Folders
from overlayrun.errors import HostError
from overlayrun.folders import server


def test_the_folders_hold_names_and_open_nothing_before_it_is_used(folders: Folders) -> None:
    assert sorted(os.listdir(folders.mount)) == ["branches", "commits", "snapshots"]
    names = [f"n{number:04}" for number in range(300)]
    for name in names:
        (folders.store / "commits" / name).mkdir()
    (folders.store / "snapshots/b/1").mkdir(parents=True)
    asked = folders.say("asked")
    listed = sorted(os.scandir(folders.mount / "commits"), key=lambda entry: entry.name)
    assert [entry.name for entry in listed] == names
    assert all(entry.is_dir() and entry.stat().st_uid == os.geteuid() for entry in listed)
    assert os.listdir(folders.mount / "snapshots/b") == ["1"]
    for nowhere in (
        "branches/none",
        "branches/.git",
        "commits/none",
        "snapshots/none",
        "none",
        "snapshots/b/2",
    ):
        assert not (folders.mount / nowhere).exists()
    assert int(folders.say("asked")) - int(asked) == 3  # names that no list held, none with a dot
    assert os.listdir(folders.mount / "commits/n0000") == []
    assert int(folders.say("asked")) - int(asked) == 4


def test_commits_are_read_only_and_a_moved_name_shows_the_other(
    folders: Folders, until: Callable[..., None]
) -> None:
    for name in ("one", "two"):
        (folders.store / "commits" / name).mkdir()
        (folders.store / "commits" / name / "file").write_text(name)
    head = folders.store / "commits/head"
    head.symlink_to("one")
    shown = folders.mount / "commits/head"
    assert (shown / "file").read_text() == "one"
    refused: tuple[Callable[[], object], ...] = (
        lambda: (shown / "file").write_text("x"),
        (shown / "new").touch,
        (shown / "file").unlink,
        lambda: (shown / "file").chmod(0o600),
        lambda: (shown / "file").rename(shown / "other"),
        lambda: os.link(shown / "file", shown / "other"),
        lambda: os.utime(shown / "file"),
        (folders.mount / "commits/new").mkdir,
        lambda: os.rmdir(shown),
    )
    for change in refused:
        with pytest.raises(OSError, match=r"Read-only|Permission denied") as raised:
            change()
        assert raised.value.errno == errno.EROFS or os.geteuid() != 0
    folders.store.joinpath("commits/moved").symlink_to("two")
    folders.store.joinpath("commits/moved").rename(head)
    until(lambda: (shown / "file").read_text() == "two")
    assert (folders.store / "commits/one/file").read_text() == "one"


def test_mkdir_makes_a_branch_and_rmdir_removes_one(folders: Folders) -> None:
    branches = folders.mount / "branches"
    subprocess.run(["mkdir", "-p", branches / "made/below"], check=True)
    assert (branches / "made/file").read_text() == "from the base\n"
    assert (folders.store / "branches/made/below").is_dir()
    with pytest.raises(FileExistsError):
        (branches / "made").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        (branches / "refused").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        (branches / ".hidden").mkdir()
    (branches / "made").rmdir()
    assert not (folders.store / "branches/made").exists()
    assert "made" not in os.listdir(folders.store / "branches")
    assert not (branches / "made").exists()
    (branches / "made").mkdir()
    assert sorted(os.listdir(branches / "made")) == ["file"]
    (branches / "kept").mkdir()
    with pytest.raises(OSError, match="not empty"):
        (branches / "kept").rmdir()
    assert (branches / "kept/file").exists()
    for refused in (lambda: (branches / "kept").rename(branches / "x"), (branches / "file").touch):
        with pytest.raises(PermissionError):
            refused()


def test_a_file_in_another_s_place_is_shown_and_stays(folders: Folders) -> None:
    (folders.store / "given.git").write_text("gitdir: elsewhere\n")
    shown, store = folders.branch("given")
    (store / ".git").mkdir()
    (store / ".git/config").write_text("[core] fsmonitor = evil\n")
    (store / "file").touch()
    for _ in range(2):
        assert (shown / ".git").read_text() == "gitdir: elsewhere\n"
        assert (shown / ".git").is_file()
        assert sorted(os.listdir(shown)) == [".git", "file"]
        for refused in (
            lambda: (shown / ".git").write_text("x"),
            (shown / ".git").unlink,
            lambda: (shown / ".git").rename(shown / "git"),
            lambda: (shown / "file").rename(shown / ".git"),
            lambda: (shown / ".git").chmod(0o777),
            lambda: os.link(shown / ".git", shown / "other"),
        ):
            with pytest.raises(OSError, match=r"Read-only|busy|cross-device|Permission"):
                refused()
        assert folders.say("let-go branches given") == "done"
    assert (store / ".git/config").read_text().startswith("[core]")
    assert (folders.store / "given.git").read_text() == "gitdir: elsewhere\n"


def test_a_tree_that_was_let_go_shows_what_took_its_place(
    folders: Folders, until: Callable[..., None]
) -> None:
    shown, store = folders.branch("swapped")
    (store / "file").write_text("before")
    (store / "dir").mkdir()
    assert not (shown / "dir/below").exists()
    assert (shown / "file").read_text() == "before"
    assert not (shown / "other").exists()
    here = os.open(shown, os.O_PATH)
    store.rename(folders.store / "aside")
    store.mkdir()
    (store / "file").write_text("and after")
    (store / "other").touch()
    (store / "dir").mkdir()
    (store / "dir/below").touch()
    assert folders.say("let-go branches swapped") == "done"
    until(lambda: (shown / "file").read_text() == "and after")
    until((shown / "other").exists)
    until((shown / "dir/below").exists)
    assert sorted(os.listdir(f"/proc/self/fd/{here}")) == ["dir", "file", "other"]
    os.close(here)
    (shown / "file").write_text("new")
    assert (store / "file").read_text() == "new"
    assert (folders.store / "aside/file").read_text() == "before"


_STAYER = """
import os, sys
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    os.getcwd()
"""


def test_who_is_in_a_tree_that_is_let_go_stays_there(folders: Folders) -> None:
    shown, store = folders.branch("stay")
    (store / "below/deep").mkdir(parents=True)
    end = folders.store / "end"
    stayers = [
        subprocess.Popen([sys.executable, "-ISc", _STAYER, end], cwd=place, stdout=subprocess.PIPE)
        for place in (shown, shown / "below/deep")
    ]
    try:
        for stayer in stayers:
            assert stayer.stdout is not None
            assert stayer.stdout.readline() == b"ready\n"
        for number in range(200):
            assert not (shown / f"below/file{number}").exists()
            (store / f"below/file{number}").write_text("x")
            assert folders.say("let-go branches stay") == "done"
            assert [stayer.poll() for stayer in stayers] == [None, None]
    finally:
        end.touch()
        codes = [(stayer.communicate(), stayer.returncode)[1] for stayer in stayers]
    assert codes == [0, 0]


def test_a_tree_deeper_than_any_path_is_reached_again(folders: Folders) -> None:
    shown, _ = folders.branch("deep")
    here = os.open(shown, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    assert folders.say("let-go branches deep") == "done"
    os.mkdir("last", dir_fd=here)
    assert os.listdir(here) == ["last"]
    os.close(here)
    subprocess.run(["rm", "-r", shown / "d"], check=True)
    assert os.listdir(shown) == []


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_nothing_stays_open_when_nobody_looks(folders: Folders, until: Callable[..., None]) -> None:
    before = _descriptors(folders.pid)
    shown, store = folders.branch("tidy")
    for number in range(200):
        (store / f"d{number}").mkdir()
        (store / f"d{number}/file").write_text("x")
    readers = [threading.Thread(target=lambda: list(os.walk(shown))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [path.read_text() for path in shown.glob("d*/file")] == ["x"] * 200
    assert _descriptors(folders.pid) > 200
    assert folders.say("let-go branches tidy 60") == "kept"
    assert folders.say("let-go branches tidy") == "done"
    until(lambda: _descriptors(folders.pid) <= before, "descriptors closed")


def test_the_mount_ends_with_either_process_and_is_mounted_again(
    tmp_path: Path, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Folders(tmp_path)
    (made.mount / "branches/b").mkdir()
    fd = os.open(made.mount / "branches/b/file", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"written")
    with pytest.raises(HostError, match="is open already"):
        server.clear_stale(str(made.mount))
    made.process.send_signal(signal.SIGKILL)
    until(lambda: not server.is_mounted(str(made.mount)))
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    assert (made.store / "branches/b/file").read_text() == "written"
    until(lambda: not Path(f"/proc/{made.pid}/stat").exists() or _is_zombie(made.pid))
    made.close()
    assert os.listdir(made.mount) == []

    again = Folders(tmp_path)
    assert (again.mount / "branches/b/file").read_text() == "written"
    os.kill(again.pid, signal.SIGKILL)
    assert again.read() == "gone"
    until(lambda: not server.is_mounted(str(again.mount)))
    again.close()

    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = server.missing()
    assert lacking is not None
    assert "apt install fuse3" in str(lacking.hint)
    with pytest.raises(HostError, match="not installed"):
        server.start(str(tmp_path))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
