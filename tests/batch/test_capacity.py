"""What this machine has room for."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from overlayrun.batch import capacity
from overlayrun.batch.capacity import Capacity, free_memory
from overlayrun.batch.task import Task
from overlayrun.batch.window import claim_of
from overlayrun.errors import HostError
from overlayrun.kernel.cgroups import make_group
from overlayrun.process import memory_available

TASK = Task(id="a", command=("true",), branch="a", group="a")


def test_every_running_task_claims_what_it_asked_for(tmp_path: Path) -> None:
    machine = Capacity(str(tmp_path), reserve=0)
    asking = Task(id="b", command=("true",), branch="b", group="b", memory=5 << 40, disk=7 << 40)

    free, left = machine.room([]), machine.room([TASK, asking])

    assert None not in (free.memory, free.disk, left.memory, left.disk)
    # Others use this machine too, so that no two measures are equal.
    assert (left.memory or 0) < (free.memory or 0) - (4 << 40)
    assert (left.disk or 0) < (free.disk or 0) - (6 << 40)
    assert not free.holds(claim_of(asking))
    assert not left.holds(claim_of(TASK))


def test_a_disk_below_the_reserve_is_the_machines_fault_unless_something_runs(tmp_path: Path) -> None:
    machine = Capacity(str(tmp_path), reserve=1 << 60)

    with pytest.raises(HostError, match="MiB of disk"):
        machine.room([])
    assert (machine.room([TASK]).disk or 0) < 0


def test_free_memory_is_never_more_than_the_machines() -> None:
    assert 0 < free_memory() <= memory_available() + (256 << 20)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "max", "memory.current": "1", "memory.stat": ""}, 1 << 62),
        ({"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 1\ninactive_file 300\n"}, 400),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "total_inactive_file 50\n",
            },
            150,
        ),
        ({}, 1 << 62),
    ],
)
def test_limits_of_a_group_are_read_as_the_kernel_writes_them(
    tmp_path: Path, files: dict[str, str], left: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert capacity._left(tmp_path) == left


@pytest.mark.root
def test_the_limit_of_the_group_around_us_is_seen() -> None:
    try:
        group = make_group("t", {"memory": 128 << 20})
    except OSError as err:
        if err.errno in (errno.ENODEV, errno.EROFS):
            pytest.skip(f"kernel lacks control groups of ours: {err}")
        raise
    code = "input()\nfrom overlayrun.batch.capacity import free_memory\nprint(free_memory())"
    with (
        group,
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process,
    ):
        group.add(process.pid)
        said, _ = process.communicate("\n")

    assert 0 < int(said) <= 128 << 20
