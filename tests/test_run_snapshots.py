"""Snapshots while a run goes on: by time, on request, from inside and outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pytest
from conftest import PATIENCE

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # when a snapshot is taken

Until = Callable[..., None]


def test_what_an_interval_snapshot_took_and_the_command_removed_again_is_gone(
    repo: UserRepo, until: Until
) -> None:
    with repo.started("-b", "b", "--every", "0.3", "--", "sh", "-c", "echo 1 >n; read a; rm n") as run:
        until(lambda: "b" in repo.records() and "n" in repo.files("b"), "the snapshot")
        run.type("")
        assert run.end() == 0
    assert repo.files("b") == repo.files("main")


def test_interval_snapshots_while_it_runs(repo: UserRepo, until: Until) -> None:
    with repo.started(
        "-b", "b", "--every", "0.3", "--", "sh", "-c", "echo 1 >n; read a; echo 2 >n; read b"
    ) as run:
        until(
            lambda: "b" in repo.records() and "n" in repo.files("b") and repo.show("b", "n") == "1\n", "first"
        )
        run.type("")
        until(lambda: repo.show("b", "n") == "2\n", "second")
        assert run.process.poll() is None
        count = len(repo.snapshots())
        assert count == 2
        run.end()
    assert "Overlayrun-Reason: interval" in repo.git("log", "-1", "--format=%B", repo.snapshots()[-1])


def test_every_zero_takes_none_before_the_end(repo: UserRepo) -> None:
    with repo.started(
        "-b", "b", "--every", "0", "--", "sh", "-c", "echo 1 >n; echo ready; sleep 1; echo late; read a"
    ) as run:
        run.expect("late")
        assert "n" not in repo.files("b")
        run.end()
    assert len(repo.snapshots()) == 1


@pytest.mark.by_both
def test_freeze_lets_the_command_go_on(repo: UserRepo, until: Until) -> None:
    script = (
        "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i >a; "
        "echo $i >b; [ $i = 400 ] && echo ready; sleep 0.005; done"
    )
    with repo.started("-b", "b", "--every", "0.2", "--freeze", "--", "sh", "-c", script) as run:
        run.expect("ready")
        until(lambda: "a" in repo.files("b") and int(repo.show("b", "a").strip() or 0) > 400, "goes on")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 128 + signal.SIGTERM
    for commit in repo.snapshots()[1:]:
        # Between the two writes of a turn it may be frozen, never further apart.
        a, b = (repo.show(commit, name).strip() for name in "ab")
        assert (a.isdigit() and b.isdigit() and int(a) - int(b) in (0, 1)) or not (a and b)


@pytest.mark.by_both
def test_snapshot_on_request_from_inside(repo: UserRepo) -> None:
    script = 'echo 1 >n; sleep 0.3; overlayrun snapshot -m "half way"; echo 2 >n; echo ready; read a'
    with repo.started("-b", "b", "--every", "0", "--", "sh", "-c", script) as run:
        run.expect("ready")
        assert repo.show("b", "n") == "1\n"
        assert repo.git("log", "-1", "--format=%s", "b") == "half way"
        run.end()
    assert repo.show("b", "n") == "2\n"


@pytest.mark.by_both
def test_snapshot_on_request_from_outside(repo: UserRepo) -> None:
    with repo.started(
        "-b", "b", "--every", "0", "--", "sh", "-c", "echo 1 >n; echo ready; read a; echo 2 >n"
    ) as run:
        run.expect("ready")
        done = repo.overlayrun("snapshot", "b", "-m", "from outside")
        assert done.code == 0, str(done)
        assert (repo.show("b", "n"), run.process.poll()) == ("1\n", None)
        run.type("")
        run.end()
    assert [repo.git("log", "-1", "--format=%s", commit) for commit in repo.snapshots()][-1] == "from outside"


@pytest.mark.by_both
def test_the_inner_socket_hands_out_nothing_else(repo: UserRepo) -> None:
    ask = """import json, os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["OVERLAYRUN_SOCKET"])
s.sendall(b'{"op":"join"}\\n'); data, fds, *_ = socket.recv_fds(s, 9999, 9); print(json.loads(data), fds)"""
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", 'sleep 0.4; python3 -c "$0"', ask)
    assert "error" in done.out
    assert done.out.rstrip().endswith("[]")


# Stops every git that comes into the sandbox, from a second process, and asks for a snapshot.
_STOPPING: Final = """
import os, signal, socket, subprocess, time
place = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(place):
    time.sleep(0.02)
open("own", "w").close()
subprocess.run("git add own && git commit --quiet --message=own && echo 2 >own", shell=True, check=True)
if os.fork() == 0:
    while True:
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/comm") as file:
                    if file.read() == "git\\n":
                        os.kill(int(name), signal.SIGSTOP)
            except OSError:
                pass
with socket.socket(socket.AF_UNIX) as client:
    client.connect(place)
    client.sendall(b'{"op": "snapshot"}\\n')
    print(client.makefile().readline())
"""
_IMPATIENT: Final = (
    "import sys; from overlayrun import launch, live; live._PATIENCE = 1.0; sys.exit(launch.main())"
)


@pytest.mark.by_both
def test_a_git_that_the_command_stops_holds_nobody(repo: UserRepo) -> None:
    words = [*repo.command("-b", "b", "--", "python3", "-c", _STOPPING)]
    done = subprocess.run(
        [sys.executable, "-c", _IMPATIENT, *words[1:]],
        cwd=repo.root,
        env=repo.env,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["number"] == 1
    assert repo.show("b", "own") == "2\n"
