"""Directories of the base are renamed in a branch's folder as in any other: by git, by mv, by who runs there."""

from __future__ import annotations

import ctypes  # noqa: TID251  # renameat2, as a program calls it
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE, UserRepo, copy_repo, wait_until
from sandbox.rename_oracle import FUZZ, differing, fill, renamed, wanted

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NOREPLACE, _EXCHANGE = 1, 2
_LARGE: Final = 1200
_MANY: Final = 8
_SEQUENCES: Final = 12


def _rename(old: Path, new: Path, flags: int = 0) -> str:
    """Name of the errno, "" for none."""
    failed = _LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return errno.errorcode[ctypes.get_errno()] if failed else ""


def _fill(repo: UserRepo, directory: str) -> None:
    for number in range(3):
        repo.write(f"{directory}/f{number}", f"{directory} {number}")
        repo.write(f"{directory}/sub/g{number}", f"{directory} {number}")


@pytest.fixture(scope="module")
def opened(_repo_to_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserRepo]:
    """A repository full of directories to rename, whose folders are open."""
    repo = copy_repo(_repo_to_copy, tmp_path_factory.mktemp("moved"))
    for name in ("tracked", "plain", "over", "one", "used"):
        _fill(repo, name)
    for number in range(_MANY):
        repo.write(f"many/d{number}/sub/f", f"many {number:02}")
    repo.write("two/single", "2")
    for number in range(_LARGE):
        repo.write(f"large/d{number % 12}/f{number}", f"{number}")
    fill(repo, _SEQUENCES)
    repo.commit()
    assert repo.overlayrun("open").code == 0
    yield repo
    repo.overlayrun("open", "--stop")


def _made(repo: UserRepo, name: str) -> Path:
    place = repo.root / ".overlay/branches" / name
    place.mkdir()
    return place


def _files(*places: Path) -> int:
    return sum(len(names) for place in places for _, _, names in os.walk(place))


def _file_system(repo: UserRepo) -> tuple[int, int]:
    """Processes: of the control, of the file system."""
    pid = json.loads(repo.overlayrun("status", "--json").out)["folders"]["pid"]
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            about = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
            if int(about[1]) == pid and b"overlayrun" in command:
                return pid, int(entry.name)
    raise AssertionError("no file system")


@pytest.mark.shared
@pytest.mark.parametrize("who", ["file system", "both"])
def test_a_kill_in_the_middle_loses_nothing(opened: UserRepo, until: Callable[..., None], who: str) -> None:
    branch = f"killed-{who[:4]}"
    place = _made(opened, branch)
    (place / "new").write_text("new")
    pids = _file_system(opened)
    before = len(os.listdir(place))
    code = "import os, sys; os.rename('large', 'huge')"
    mover = subprocess.Popen([sys.executable, "-c", code], cwd=place, stderr=subprocess.DEVNULL)
    time.sleep(random.random() * 0.3)
    for pid in pids[who == "file system" :]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    mover.wait()
    until(lambda: not Path(f"/proc/{pids[0]}").exists(), "the end of the daemon")
    assert opened.overlayrun("open").code == 0
    assert len(os.listdir(place)) == before
    assert _files(place / "large") + _files(place / "huge") == _LARGE
    assert (place / "new").read_text() == "new"
    assert opened.overlayrun("snapshot", branch).code == 0
    base, after = opened.files("main"), opened.files(branch)
    name = "huge/" if (place / "huge").exists() else "large/"
    wanted = {path.replace("large/", name): what for path, what in base.items()}
    assert {path: what for path, what in after.items() if path != "new"} == wanted


def test_git_and_mv_and_flags(opened: UserRepo) -> None:
    place = _made(opened, "all")
    there = opened.at(place)
    there.git("mv", "tracked", "moved")
    assert {line[:2] for line in there.git("status", "--porcelain").splitlines()} == {"R "}
    there.git("commit", "-qm", "moved")
    assert there.git("status", "--porcelain") == ""
    subprocess.run(["mv", "-T", "plain", "plain2"], cwd=place, check=True)
    (place / "empty").mkdir()
    assert _rename(place / "over", place / "empty", _NOREPLACE) == "EEXIST"
    assert _rename(place / "over", place / "empty") == ""
    assert _rename(place / "one", place / "two", _EXCHANGE) == ""
    assert _rename(place / "one", place / "empty") == "ENOTEMPTY"
    assert _rename(place / "two", place / "two/sub/x") == "EINVAL"
    assert [_files(place / name) for name in ("moved", "plain2", "empty", "two", "one")] == [6, 6, 6, 6, 1]
    wait_until(lambda: "two/sub/g0" in opened.files("all"), "the snapshot")
    paths = opened.files("all").keys()
    assert not [path for path in paths if path.startswith(("tracked/", "plain/", "over/", ".overlayrun"))]


def test_what_is_open_in_it_goes_on(opened: UserRepo) -> None:
    """Also a working directory, and what the kernel was told before."""
    place = _made(opened, "open") / "used"
    listed = os.open(place / "sub", os.O_RDONLY | os.O_DIRECTORY)
    (place / "closed").mkdir(0o555)
    os.utime(place, ns=(10**9, 2 * 10**9))
    script = "echo ready; read line; ls sub; cat f0; echo new >>sub/g0; readlink /proc/self/cwd"
    with subprocess.Popen(
        ["sh", "-c", script], cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "ready\n"
        with (place / "f1").open("r+") as file:
            assert _rename(place, place.with_name("now")) == ""
            now = place.with_name("now")
            assert not place.exists()
            file.write("USED")
        told, _ = inside.communicate("go\n", timeout=60)
    assert told.split() == ["g0", "g1", "g2", "used", "0" + os.path.realpath(now)]
    assert sorted(os.listdir(listed)) == ["g0", "g1", "g2"]
    os.close(listed)
    assert (now / "f1").read_text() == "USED 1"
    assert (now / "sub/g0").read_text() == "used 0new\n"
    assert now.stat().st_mtime == 2
    assert (now / "closed").stat().st_mode & 0o777 == 0o555


def test_random_operations_are_those_of_a_plain_directory(opened: UserRepo, tmp_path: Path) -> None:
    """Errno by errno, and the trees at the end; each of root and the user tries other sequences."""
    place = _made(opened, "fuzz")
    first = random.randrange(10**6) * 2 * _SEQUENCES + SHARE * _SEQUENCES
    words = [sys.executable, str(FUZZ), str(first), str(_SEQUENCES)]
    told = json.loads(subprocess.run(words, cwd=place, capture_output=True, check=True).stdout)
    assert differing(told, wanted(opened, tmp_path, first, _SEQUENCES, as_nobody=False)) == []
    assert renamed(told) > _SEQUENCES // 2
    assert ".overlayrun-moving" not in os.listdir(place)


@pytest.mark.shared
def test_others_go_on_and_nobody_sees_the_half_of_it(opened: UserRepo) -> None:
    place, other = _made(opened, "long"), _made(opened, "beside")
    seen: set[int] = set()
    beside = 0

    def move() -> None:
        assert _rename(place / "large", place / "huge") == ""

    mover = threading.Thread(target=move)
    watcher = threading.Thread(target=lambda: seen.update(_watched(place, mover)))
    mover.start()
    watcher.start()
    while mover.is_alive():
        (other / f"new{beside}").write_text("x")
        beside += 1
    watcher.join()
    assert beside > 5
    assert seen <= {_LARGE}
    assert _files(place / "huge") == _LARGE


def _watched(place: Path, mover: threading.Thread) -> Iterator[int]:
    """How many files there are, wherever the directory is at that moment."""
    while mover.is_alive():
        with suppress(FileNotFoundError):
            yield sum(len(os.listdir(place / "large" / f"d{number}")) for number in range(12))


# Its directory can't be written to: where that is a reason to refuse, it looks like one of a lower. The mark makes
# the call one that the sandbox does not look at, which is faster.
_SWAPPER: Final = """
import ctypes, os, sys
number, mark = 276 if os.uname().machine == "aarch64" else 316, 0x6F76_6572_6C61_7972
swap, here = ctypes.CDLL(None).syscall, ctypes.c_long(-100)
for name in os.listdir("many"):
    os.symlink(sys.argv[1], f"many/{name}/ln")
    os.mkdir(f"many/{name}/closed", 0o555)
print("ready", flush=True)
while not os.path.exists("stop"):
    for name in os.listdir("many"):
        one, other = (f"many/{name}/{end}".encode() for end in ("closed", "ln"))
        for _ in range(50):
            swap(ctypes.c_long(number), here, one, here, other, ctypes.c_long(2), ctypes.c_long(mark))
print(sum(len(names) for _, _, names in os.walk("later")), os.path.exists(".overlayrun-moving"))
assert {os.stat(name).st_uid for name in ("later", "later/sub", "later/sub/g0")} == {os.getuid()}
os.rename("later", "last")
"""


def test_the_tree_of_a_run(opened: UserRepo, tmp_path: Path) -> None:
    """Its command swaps directories and links while the user renames: nothing outside is reached."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    secret.chmod(0o100)
    before = secret.stat()
    place = _made(opened, "live")
    with opened.started("-b", "live", "--", "python3", "-c", _SWAPPER, str(secret)) as run:
        run.expect("ready")
        told = {_rename(place / f"many/d{n}", place / f"many/r{n}") for n in range(_MANY)}
        assert _rename(place / "one", place / "later") == ""
        (place / "stop").touch()
        assert run.end() == 0, run.text()
        assert "6 False" in run.text()
    assert "" in told
    # Its mode would be as before again, too.
    assert secret.stat().st_ctime_ns == before.st_ctime_ns
    secret.chmod(0o700)
    assert os.listdir(secret) == ["file"]
    paths = opened.files("live")
    texts = [opened.show("live", path) for path in paths if path.startswith(("many/", ".overlayrun"))]
    assert sorted(text for text in texts if text.startswith("many")) == [f"many {n:02}" for n in range(_MANY)]
    assert "last/sub/g0" in paths
