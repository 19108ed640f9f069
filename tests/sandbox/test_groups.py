"""Control groups of a run: real ones, where they are ours."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.attempt import attempt
from overlayrun.kernel.cgroups import enter_group_of, make_group
from overlayrun.kernel.groups import UNIFIED, Group, read

if TYPE_CHECKING:
    from conftest import UserRepo

Until = Callable[..., None]
_HOG = "x = []\nwhile True: x.append(bytearray(1 << 20))"
_BOMB = """
import os, time
children = []
try:
    while len(children) < 200:
        children.append(os.fork())
        if not children[-1]: time.sleep(60)
except OSError as err:
    print(len(children), err.errno, flush=True)
for child in children: os.kill(child, 9)
"""
_COUNT = "import sys, time\nwhile True: sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.005)"


def _groups() -> list[str]:
    mine = f"-{os.getpid()}"
    return [str(path) for path in Path("/sys/fs/cgroup").glob("**/overlayrun-*") if path.name.endswith(mine)]


def _make(wanted: Mapping[str, float], *, freeze: bool = False) -> Group:
    try:
        return make_group("t", wanted, freeze=freeze)
    except OSError as err:
        if err.errno in (errno.ENODEV, errno.EROFS):
            pytest.skip(f"kernel lacks control groups of ours: {err}")
        raise


@contextmanager
def _member(code: str, group: Group) -> Iterator[subprocess.Popen[str]]:
    """Python code that runs in a group."""
    with subprocess.Popen(
        [sys.executable, "-c", f"input()\n{code}"], stdin=-1, stdout=-1, text=True, start_new_session=True
    ) as process:
        group.add(process.pid)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        process.stdin = None  # communicate(timeout=…) would flush it
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.root
def test_what_takes_too_much_memory_dies_alone() -> None:
    group = _make({"memory": 64 << 20})
    with _member("import time; time.sleep(600)", group) as other:
        with _member(_HOG, group) as hog:
            assert hog.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        assert group.events()[0] >= 1
    group.close()
    assert _groups() == []


@pytest.mark.root
def test_a_fork_bomb_is_capped() -> None:
    with _make({"pids": 20}) as group, _member(_BOMB, group) as bomb:
        assert bomb.communicate(timeout=60)[0] == "19 11\n"
        assert group.events()[1] >= 1
    assert _groups() == []


@pytest.mark.root
def test_limits_are_those_that_were_asked_for() -> None:
    with _make({"memory": 1 << 30, "pids": 99, "cpu": 1.5}, freeze=True) as group:
        assert set(group.held) == {"memory", "pids", "cpu"}
        assert group.can_freeze
        held = " ".join(
            read(f"{place}/{name}")
            for place in set(group.places.values())
            for name in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us")
            if Path(place, name).exists()
        ).split()
        assert {str(1 << 30), "99", "150000"} <= set(held)


def test_limits_are_written_as_the_v2_tree_wants_them(tmp_path: Path) -> None:
    # A directory of files stands for the tree: few machines give a test controllers of the v2 tree.
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight"):
        (tmp_path / name).touch()
    Group({UNIFIED: str(tmp_path)}).limit({"memory": 512 << 20, "pids": 33, "cpu": 0.001})
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {
        "memory.max": "536870912",
        "memory.swap.max": "0",
        "pids.max": "33",
        "cpu.max": "1000 100000",
        "cpu.weight": "33",
    }


def _v1_freezer() -> Group:
    tree = Path("/sys/fs/cgroup/freezer")
    if not (tree / "cgroup.procs").exists():
        pytest.skip("kernel lacks a v1 freezer")
    place = tree / f"overlayrun-t-{os.getpid()}"
    place.mkdir()
    return Group({"freezer": str(place)})


@pytest.mark.root
@pytest.mark.parametrize("make", [lambda: _make({}, freeze=True), _v1_freezer], ids=["found", "v1"])
def test_what_is_frozen_stops_goes_on_and_can_be_killed(make: Callable[[], Group]) -> None:
    with make() as group, _member(_COUNT, group) as counter:
        assert counter.stdout is not None
        output = counter.stdout.fileno()
        assert _readable(output, 60)
        group.freeze(frozen=True)
        _drain(output)
        assert not _readable(output, 0.2)
        group.freeze(frozen=False)
        assert _readable(output, 60)
        group.freeze(frozen=True)
        group.close()
        assert counter.wait(60) == -signal.SIGKILL
    assert _groups() == []


@pytest.mark.root
def test_what_is_frozen_goes_on_when_the_one_who_froze_it_is_killed() -> None:
    group = _v1_freezer()
    code = (
        "import time; from overlayrun.kernel.groups import Group\n"
        f"Group({group.places!r}).freeze(frozen=True); print('frozen', flush=True); time.sleep(600)"
    )
    with group, _member(_COUNT, group) as counter:
        assert counter.stdout is not None
        output = counter.stdout.fileno()
        with subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True) as freezing:
            assert freezing.stdout is not None
            assert freezing.stdout.readline() == "frozen\n"
            _drain(output)
            assert not _readable(output, 0.1)
            freezing.kill()
        assert _readable(output, 60)
    assert _groups() == []


def _readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


def _drain(fd: int) -> None:
    while _readable(fd, 0):
        os.read(fd, 1 << 16)


@pytest.mark.root
def test_groups_that_killed_runs_left_are_removed() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    with _make({"pids": 20}) as group:
        left = (
            Path(group.places.get("pids", group.places.get(UNIFIED, ""))).parent / f"overlayrun-x-{ended.pid}"
        )
        left.mkdir()
    assert left.exists()
    with _make({"pids": 20}):
        assert not left.exists()


@pytest.mark.root
def test_another_process_enters_by_what_it_is_told() -> None:
    with _make({"pids": 20}) as group, subprocess.Popen(["sleep", "60"]) as process:
        enter_group_of(group.to_json(), process.pid)
        for place in group.places.values():
            assert str(process.pid) in read(f"{place}/cgroup.procs").split()
        group.close()
        assert process.wait(60) == -signal.SIGKILL


def test_where_no_tree_is_ours_it_is_refused() -> None:
    def without_trees() -> str:
        syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", abi.MS_NODEV)
        for wanted in ({}, {"memory": 1 << 30}, {"cpu": 1.0}):
            try:
                make_group("t", wanted, freeze=True)
            except OSError:
                continue
            return "made"
        return "refused"

    assert attempt(without_trees, abi.CLONE_NEWUSER | abi.CLONE_NEWNS).text == "refused"


@pytest.mark.root
def test_a_run_stays_in_its_group_and_so_does_what_joins_it(repo: UserRepo, until: Until) -> None:
    repo.write("hog.py", _HOG)
    options = ("--memory", "100M", "--pids", "50", "--cpus", "1", "--freeze", "--every", "0.2")
    script = "python3 hog.py; echo survived; read line; exit 7"
    with repo.started("-b", "b", *options, "--", "sh", "-c", script) as run:
        run.expect("survived")
        joined = repo.overlayrun("exec", "b", "--", "cat", "/proc/self/cgroup")
        assert "overlayrun-" in joined.out, str(joined)
        name = f"overlayrun-{repo.records()['b']['id']}-*"
        assert list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
        run.type("go")
        assert run.end() == 7
        assert "memory limit of 100M reached: a process was killed" in run.text()
    until(lambda: not list(Path("/sys/fs/cgroup").glob(f"**/{name}")), "the group is gone")
