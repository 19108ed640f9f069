"""Cases 81 to 90: what lives too long, dies too early, or is too many."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest
from conftest import SHARE, wait_until

from hostile.world import Attack, World

_DAEMON = """
import os, signal, sys, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork():
    sys.exit()
os.setsid()
if os.fork():
    os._exit(0)
import ctypes
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
open("alive", "w").write("yes")
os.closerange(0, 1024)
while True:
    time.sleep(0.01)
    with open("daemon", "a") as file:
        file.write("x")
"""


def test_case_081_a_daemon_is_dead_before_the_last_snapshot(world: World) -> None:
    """It has left its session, its parents and its descriptors, and ignores every signal."""
    script = f"python3 -c '{_DAEMON}' & while ! [ -e alive ]; do sleep 0.01; done; sleep 0.2"
    attack = world.sh(script, branch="daemon")
    attack.assert_sound()
    kept = world.repo.show("daemon", "daemon")
    assert kept
    upper = world.repo.workspace("daemon") / "upper/daemon"
    assert upper.read_text() == kept, "it wrote on after the last snapshot"


def test_case_084_a_cleared_death_signal_saves_nobody(world: World) -> None:
    script = f"python3 -c '{_DAEMON}' & while ! [ -e alive ]; do sleep 0.01; done; echo ready; read line"
    with world.repo.started(*world.words("cleared"), "--", "sh", "-c", script) as run:
        run.expect("ready")
        run.process.kill()
        run.process.wait()
        wait_until(lambda: not world.left(), "all dead", 5)
    again = world.sh("cat alive", branch="cleared")
    again.assert_sound()
    assert again.done.out == "yes"


def _bomb(world: World, branch: str, program: str, *options: str) -> Attack:
    began = time.monotonic()
    attack = world.attack(["python3", "-c", program], "--timeout", "40", *options, branch=branch)
    assert time.monotonic() - began < 55, "the host was slow to answer"
    return attack


_FORKS = """
import os, time
made = 0
while made < 2000:
    try:
        pid = os.fork()
    except BlockingIOError:
        break
    if pid == 0:
        time.sleep(60)
    made += 1
open("made", "w").write(str(made))
"""


def test_case_087_a_fork_bomb_meets_its_limit(world: World) -> None:
    attack = _bomb(world, "forks", _FORKS, "--pids", "50")
    attack.assert_sound()
    assert 30 <= int(world.repo.show("forks", "made")) <= 50


def test_case_087_the_users_own_processes_do_not_count(world: World) -> None:
    """The limit is the sandbox's: two of them at once do not share it."""
    words = world.words("first", "--pids", "40", "--every", "0")
    with world.repo.started(
        *words, "--", "python3", "-c", f"{_FORKS}\nprint('full', flush=True)\ninput()"
    ) as run:
        run.expect("full")
        second = world.repo.overlayrun(*world.words("second", "--pids", "40"), "--", "python3", "-c", _FORKS)
        assert second.code == 0, str(second)
        run.end()
    assert int(world.repo.show("second", "made")) >= 20


_BOMBS = """
import ctypes, json, os, resource, socket, threading
told = {}

def count(what, make, most):
    kept = []
    try:
        while len(kept) < most:
            kept.append(make())
        told[what] = "no end"
    except (OSError, RuntimeError) as err:
        told[what] = type(err).__name__
    return kept

kept = count("threads", lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(), 9000)
kept = count("descriptors", lambda: os.open("/dev/null", os.O_RDONLY), 2_000_000)
for fd in kept:
    os.close(fd)
libc = ctypes.CDLL(None, use_errno=True)

def watch():
    fd = libc.inotify_init()
    if fd < 0:
        raise OSError(ctypes.get_errno(), "")
    return fd

kept = count("inotify", watch, 100_000)
for fd in kept:
    os.close(fd)
pipes = count("pipes", os.pipe, 200_000)
open("told", "w").write(json.dumps(told))
os._exit(0)
"""


def test_case_088_bombs_of_other_kinds(world: World) -> None:
    attack = _bomb(world, "bombs", _BOMBS, "--pids", "200")
    attack.assert_sound()
    told = world.repo.show("bombs", "told")
    assert "no end" not in told, told


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGSYS][SHARE:][:1])
def test_case_089_a_death_by_signal_is_no_success(world: World, number: int) -> None:
    attack = world.attack(
        ["sh", "-c", f"echo w >work; kill -{int(number)} $$"], branch=f"signal-{int(number)}"
    )
    attack.assert_sound()
    assert attack.done.code == 128 + number
    assert world.repo.show(f"signal-{int(number)}", "work") == "w\n"


@pytest.mark.parametrize("signal_name", ["USR1", "TERM", "KILL"])
def test_signals_to_the_own_group_stay_inside(world: World, signal_name: str) -> None:
    """kill(2) with 0 goes by the process group, of which no pid namespace hides a part: the user's script is in it."""
    branch = f"group-{signal_name.lower()}"
    inside = f"echo w >work; kill -{signal_name} 0; sleep 0.2; echo later >later"
    run = shlex.join(world.repo.command(*world.words(branch), "--", "sh", "-c", inside))
    script = f"sleep 60 & {run}; echo ended $?; kill -0 $! && echo alive; kill $!"
    done = subprocess.run(
        ["setsid", "--wait", "sh", "-c", script],
        cwd=world.repo.root,
        env=world.repo.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "ended " in done.stdout, f"the agent killed the user's own script: {done}"
    assert "alive" in done.stdout, f"the agent killed a program of the user's: {done}"
    assert "ended 125" not in done.stdout, done
    assert world.repo.show(branch, "work") == "w\n", "the supervisor was killed before the last snapshot"


def test_signals_to_everybody_stay_inside(world: World) -> None:
    attack = world.sh(
        "trap '' TERM HUP INT USR1; echo w >work; kill -HUP -1; kill -USR1 -1; kill -KILL -1; exit 3",
        branch="wild",
    )
    attack.assert_sound()
    assert attack.done.code == 3, str(attack.done)
    assert world.repo.show("wild", "work") == "w\n"


def test_the_keepers_pipes_are_not_the_agents(world: World) -> None:
    """No report can be forged: there is no descriptor to write it to, and pid 1 lends none."""
    forged = "\n".join(
        f"for fd in /proc/*/fd/* /proc/1/task/*/fd/*; do (echo {letter} >$fd) 2>/dev/null; done"
        for letter in ("X0", "F13")
    )
    attack = world.sh(f"ls /proc/self/fd >fds; {forged}\nexit 9", branch="forged-report")
    attack.assert_sound()
    assert attack.done.code == 9
    assert len(world.repo.show("forged-report", "fds").split()) <= 4


def test_a_workspace_whose_directory_the_agent_left_and_removed(world: World) -> None:
    world.repo.write("sub/f", "f\n")
    done = world.repo.overlayrun(
        *world.words("gone"), "--", "sh", "-c", "rm -rf ../sub; echo w >/proc/self/cwd/x; true",
        cwd=world.repo.root / "sub",
    )  # fmt: skip
    try:
        assert done.code == 0, str(done)
        assert "sub/f" not in world.repo.files("gone")
        again = world.repo.overlayrun(*world.words("gone"), "--", "pwd", cwd=world.repo.root / "sub")
        assert again.code == 0, str(again)
    finally:
        (world.repo.root / "sub/f").unlink()
        os.rmdir(world.repo.root / "sub")
