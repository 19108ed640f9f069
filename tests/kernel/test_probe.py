from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Final

import pytest

from overlayrun.kernel import abi
from overlayrun.kernel.abilities import KERNEL
from overlayrun.kernel.attempt import attempt
from overlayrun.kernel.disk import STORAGE
from overlayrun.kernel.probe import Capabilities, file_system_of

from .lab import scene

# What a kernel or a user may lack without a fault of ours.
BEST_EFFORT: Final = {"descriptors", "landlock", "cgroup", "xattr_whiteout", "reflink"}
# What only root can do, and needs.
OF_ROOT: Final = {"id_map"} if os.geteuid() else set[str]()


@pytest.mark.parametrize("name", [name for name in (*KERNEL, *STORAGE) if name not in BEST_EFFORT | OF_ROOT])
def test_an_ability_that_this_suite_stands_on_works(tmp_path: Path, name: str) -> None:
    tried = Capabilities(str(tmp_path))[name]
    assert tried.works, tried.text


def test_an_ability_is_tried_once(tmp_path: Path) -> None:
    able = Capabilities(str(tmp_path))
    assert able["hard_link"] is able["hard_link"]
    assert os.listdir(tmp_path) == ["hard_link"]


def test_the_tries_leave_no_mount_and_no_child(tmp_path: Path) -> None:
    text = (
        "import os\n"
        "from overlayrun.kernel.probe import KERNEL, STORAGE, mounts\n"
        "seen = lambda: [(one.number, one.place) for one in mounts()]\n"
        "enter(); before = seen(); able = Capabilities(os.getcwd())\n"
        "numbers = [able[name].errno for name in (*KERNEL, *STORAGE)]\n"
        "try: os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError: answer([len(numbers), seen() == before])\n"
    )
    assert scene(text, cwd=tmp_path) == [len(KERNEL) + len(STORAGE), True]


def test_a_refusal_has_the_errno_and_the_words() -> None:
    tried = attempt(lambda: str(os.open("/nowhere/at all", os.O_RDONLY)))
    assert (tried.errno, tried.text) == (errno.ENOENT, "No such file or directory: /nowhere/at all")
    assert not tried.works


@pytest.mark.parametrize("flags", [0, abi.CLONE_NEWUSER], ids=["child", "namespace"])
def test_a_try_that_is_killed_is_told_as_such(flags: int) -> None:
    def end() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return ""

    tried = attempt(end, flags)
    assert (tried.works, tried.text) == (False, f"killed by signal {signal.SIGTERM}")


def test_a_try_that_fails_otherwise_does_not_work() -> None:
    tried = attempt(lambda: os.environ["OVERLAYRUN_NO_SUCH"])
    assert (tried.works, tried.text) == (False, "the try died")


def test_a_try_that_hangs_is_ended() -> None:
    # Not waited for by the try, because a wait could hang too; dead all the same.
    text = (
        "import os, time\n"
        "from overlayrun.kernel import attempt\n"
        "attempt._PATIENCE = 200\n"
        "tried = attempt.attempt(lambda: time.sleep(3600), abi.CLONE_NEWUSER)\n"
        "answer([tried.errno, os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])])"
    )
    assert scene(text) == [errno.ETIMEDOUT, -signal.SIGKILL]


def test_the_file_system_of_a_path_is_that_of_the_last_mount_over_it(tmp_path: Path) -> None:
    assert file_system_of("/proc/self/status") == "proc"
    text = (
        "from overlayrun.kernel.probe import file_system_of\n"
        "enter(); mount('tmpfs', 'a b\\\\c'); first = file_system_of('a b\\\\c')\n"
        "mount('ramfs', 'a b\\\\c')\n"
        "answer([first, file_system_of('a b\\\\c'), file_system_of('a b')])"
    )
    below, above, beside = scene(text, cwd=tmp_path)
    assert (below, above, beside) == ("tmpfs", "ramfs", file_system_of(str(tmp_path)))


@pytest.mark.root
def test_root_divides_its_control_group() -> None:
    tried = Capabilities()["cgroup"]
    if not tried.works and tried.errno in (errno.ENODEV, errno.EROFS):
        pytest.skip(f"kernel lacks control groups of ours: {tried.text}")
    assert tried.works, tried.text
    version, *limits = tried.text.split()
    assert version in ("v1:", "v2:")
    assert {"memory", "pids"} <= set(limits)
