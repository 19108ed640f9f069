"""What a process and its files in memory may take, and what is refused because nothing can hold it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from overlayrun.errors import HostError
from overlayrun.kernel import abi, syscalls
from overlayrun.kernel.attempt import attempt
from overlayrun.kernel.groups import Group
from overlayrun.sandbox.limits import (
    LimitOptions,
    events_text,
    hold_by_group,
    rlimits,
    size_text,
    tmpfs_data,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from conftest import UserRepo


def _limits_inside(code: str = "") -> dict[str, list[str]]:
    """/proc/self/limits of a process that was limited, after `code`: soft, hard."""
    script = (
        f"{code}\nfrom overlayrun.sandbox.limits import *\n"
        "apply_rlimits(LimitOptions(memory=1 << 29, pids=100, disk=1 << 31))\n"
        "print(open('/proc/self/limits').read()); import os; print('Nice value  ', os.nice(0))"
    )
    printed = subprocess.check_output([sys.executable, "-c", script], text=True)
    rows = (line.split("  ") for line in printed.splitlines())
    return {row[0]: [word.strip() for word in row[1:] if word.strip()] for row in rows}


def test_each_process_is_limited() -> None:
    found = _limits_inside()
    assert found["Max core file size"][:2] == ["0", "0"]
    assert found["Max file size"][:2] == [str(1 << 31)] * 2
    assert found["Max processes"][1] == "102"
    assert int(found["Max open files"][1]) <= 1 << 16
    assert found["Max data size"][1] == str((1 << 29) + (2 << 30))
    assert found["Max address space"][1] == "unlimited"
    assert int(found["Nice value"][0]) == min(19, os.nice(0) + 5)


def test_a_limit_is_never_raised() -> None:
    lower = "import resource as r\nfor n, v in ((r.RLIMIT_NOFILE, 64), (r.RLIMIT_FSIZE, 4096)): r.setrlimit(n, (v, v))"
    found = _limits_inside(lower)
    assert found["Max open files"][:2] == ["64", "64"]
    assert found["Max file size"][:2] == ["4096", "4096"]


def test_a_group_that_holds_memory_spares_the_processes() -> None:
    limits = LimitOptions(memory=1 << 29)
    assert abi.RLIMIT_DATA in rlimits(limits)
    limits.held = ("memory",)
    assert abi.RLIMIT_DATA not in rlimits(limits)


def test_node_starts_under_a_small_memory_limit() -> None:
    if not os.path.exists("/usr/bin/node"):
        pytest.skip("node is not installed")
    script = (
        "import os; from overlayrun.sandbox.limits import *\n"
        "apply_rlimits(LimitOptions(memory=256 << 20)); os.execv('/usr/bin/node', ['node', '-e', 'console.log(6*7)'])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "42\n"


@pytest.mark.parametrize(
    ("limits", "without", "option"),
    [
        (LimitOptions(cpus=1.5), {"cgroup"}, "--cpus"),
        (LimitOptions(memory=1 << 30), {"cgroup", "watchdog"}, "--memory"),
        (LimitOptions(pids=9, cpus=1), {"cgroup", "rlimits"}, "--pids and --cpus"),
    ],
)
def test_what_nothing_can_hold_is_refused(
    limits: LimitOptions, without: Collection[str], option: str
) -> None:
    with pytest.raises(HostError, match=f"^{option} can't be held") as caught:
        hold_by_group(limits, "t", freeze=False, root_uid=False, without=without)
    assert "Delegate=yes" in (caught.value.hint or "")


def test_the_hosts_root_is_not_counted_so_its_number_needs_a_group() -> None:
    with pytest.raises(HostError, match="--pids"):
        hold_by_group(LimitOptions(pids=9), "t", freeze=False, root_uid=True, without={"cgroup"})


@pytest.mark.parametrize("limits", [LimitOptions(), LimitOptions(memory=1 << 30, pids=9, disk=1 << 40)])
def test_without_a_group_the_rest_is_held_otherwise(limits: LimitOptions) -> None:
    group = hold_by_group(limits, "t", freeze=True, root_uid=False, without={"cgroup"})
    assert (group.places, limits.held, group.can_freeze, group.events()) == ({}, (), False, (0, 0))
    group.add(os.getpid())
    group.close()


def test_limits_travel_as_plain_values() -> None:
    limits = LimitOptions(1 << 30, 9, 1.5, 1 << 40)
    limits.held = ("memory",)
    assert LimitOptions.from_json(limits.to_json()).to_json() == limits.to_json()


def test_limits_and_what_they_did_are_told() -> None:
    limits = LimitOptions(512 << 20, 100, 1.5)
    both = ": memory 512M, 100 processes, 1.5 cpus"
    assert words(limits, Group({}, ["memory"])) == f"limits by control group v2{both}"
    assert words(limits, Group({"pids": "/x"}, ["pids"])) == f"limits by control group v1{both}"
    assert words(limits, Group({})).startswith("limits of each process and by a watchdog: no control group")
    assert words(LimitOptions(disk=1), Group({})) == ""
    assert events_text(limits, Group({})) is None
    assert [size_text(size) for size in (7, 1536, 50 << 30, (1 << 30) - 1)] == ["7", "1.5K", "50G", "1024M"]


def _fill(data: str) -> str:
    syscalls.mount("tmpfs", "/tmp", "tmpfs", abi.MS_NOSUID | abi.MS_NODEV, data)
    counts = []
    for write in (_one_more_file, _one_more_block):
        count = 0
        while count < 50_000 and _has_room(write, count):
            count += 1
        for name in os.listdir("/tmp"):
            os.unlink(f"/tmp/{name}")
        counts.append(count)
    return f"{counts[0]} {counts[1]}"


def _has_room(write: Callable[[int], None], number: int) -> bool:
    try:
        write(number)
    except OSError as err:
        if err.errno != errno.ENOSPC:
            raise
        return False
    return True


def _one_more_file(number: int) -> None:
    os.close(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY))


def _one_more_block(_: int) -> None:
    fd = os.open("/tmp/x", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(fd, b"x" * 4096) < 4096:
            raise OSError(errno.ENOSPC, "full")
    finally:
        os.close(fd)


def test_a_file_system_in_memory_ends_in_bytes_and_in_files() -> None:
    tried = attempt(lambda: _fill(tmpfs_data(0o700, "mask")), abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
    assert tried.works, tried.text
    files, blocks = map(int, tried.text.split())
    assert 4000 < files <= 4096
    assert blocks <= 256


def test_file_systems_in_memory_take_parts_of_it() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = {kind: _number(tmpfs_data(0o1777, kind), "size") for kind in ("tmp", "shm", "var-tmp", "run")}
    assert sizes["tmp"] == memory // 4
    assert sum(sizes.values()) < memory // 2
    assert _number(tmpfs_data(0o1777, "tmp", 1 << 28), "size") == 1 << 26
    assert _number(tmpfs_data(0o1777, "tmp", 1 << 60), "size") == memory // 4
    assert _number(tmpfs_data(0o1777, "tmp"), "nr_inodes") == max(memory // 4 >> 14, 4096)
    assert tmpfs_data(0o1777, "run", 1 << 28) == "mode=1777,size=4194304,nr_inodes=4096"


def _number(data: str, name: str) -> int:
    return int(dict(word.split("=") for word in data.split(","))[name])


def test_inside_a_run(repo: UserRepo) -> None:
    """One run for what holds by default."""
    script = """
import _thread, ctypes, os, resource, time
print('core', resource.getrlimit(resource.RLIMIT_CORE)[1])
print('file', resource.getrlimit(resource.RLIMIT_FSIZE)[1] == 10 << 30)
try: os.setpriority(os.PRIO_PROCESS, 0, -20)
except PermissionError: print('nice', os.nice(0) >= 5)
print('oom', int(open('/proc/self/oom_score_adj').read()) >= 100)
call = ctypes.CDLL(None); count = 0
while call.inotify_init() >= 0: count += 1
print('inotify', 0 < count <= int(open('/proc/sys/fs/inotify/max_user_instances').read()) // 2)
_thread.stack_size(1 << 15); count = 0
try:
    while True: count += bool(_thread.start_new_thread(time.sleep, (60,)))
except RuntimeError: print('processes', 3000 < count <= 4096, flush=True)
os._exit(0)
"""
    repo.write("look.py", script)
    printed = repo.inside("python3 look.py")
    assert printed.splitlines() == [
        "core 0",
        "file True",
        "nice True",
        "oom True",
        "inotify True",
        "processes True",
    ]
