"""Nothing that was acknowledged is lost: kills at any time, power cuts, full disks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import SHARE

from overlayrun.workspace.lock import is_locked

if TYPE_CHECKING:
    from conftest import Running, UserRepo

Until = Callable[..., None]
KILLS: Final = 200
GROUPS: Final = 8
_EARLIER: Final = "00000000-0000-0000-0000-000000000000"  # a boot's id

# Counts up; after each turn asks for a snapshot and, once that is acknowledged, says so on standard output.
WRITER: Final = r"""
import json, os, socket, sys, time
number = int(open("count").read()) if os.path.exists("count") else 0
while True:
    number += 1
    for name, text in (("count", str(number)), (f"d/{number % 7}/f", str(number) * 50)):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name + ".new", "w") as file: file.write(text)
        os.rename(name + ".new", name)
    if number % 5 == 0: os.system("git add -A && git commit -qm turn >/dev/null 2>&1")
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.environ["OVERLAYRUN_SOCKET"])
            client.sendall(b'{"op": "snapshot"}\n')
            answer = client.makefile().readline()
        if answer and "error" not in json.loads(answer): print("ack", number, flush=True)
    except OSError: pass
    time.sleep(0.005)
"""


def _acknowledged(text: str) -> int:
    return max((int(line.split()[1]) for line in text.splitlines() if line.startswith("ack ")), default=0)


def _keeper_of(pid: int) -> int | None:
    """The supervisor's child that is first in a process namespace of its own."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            inner = next(line.split() for line in status.splitlines() if line.startswith("NSpid:"))
            if inner[-1] == "1" and len(inner) > 2:
                return int(child)
    return None


def _clean(repo: UserRepo) -> None:
    assert [
        line for line in repo.git("fsck", "--strict", "--full").splitlines() if "dangling" not in line
    ] == []


@pytest.mark.parametrize("group", range(SHARE, GROUPS, 2))
@pytest.mark.parametrize("victim", ["supervisor", "keeper"])
def test_kills_at_random_times_lose_nothing(repo: UserRepo, until: Until, victim: str, group: int) -> None:
    """200 kills in all, by both users, in groups; after each the next run finds everything that was acknowledged."""
    dice = random.Random(f"{victim}{group}")
    floor = 0
    for turn in range(KILLS // GROUPS // 2):
        with repo.started("-b", "b", "--every", "0.05", "--", "python3", "-c", WRITER) as run:
            if turn % 3:
                until(lambda run=run: "branch b" in run.text() or run.process.poll() is not None)
            time.sleep(dice.random() ** 2 * 0.7)
            target = run.process.pid if victim == "supervisor" else _keeper_of(run.process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(target or run.process.pid, signal.SIGKILL)
            run.process.wait(60)
        floor = max(floor, _acknowledged(run.text()))
        records = repo.records()
        if "b" not in records:
            assert floor == 0
            continue
        until(lambda: not is_locked(str(repo.workspace() / "lock")), "lock free")
        if floor:
            newest = f"refs/overlayrun/snapshots/{records['b']['id']}"
            assert int(repo.show(newest, "count")) >= floor, run.text()
    done = repo.sh("cat count 2>/dev/null || echo 0")
    assert done.code == 0, str(done)
    assert int(done.out) >= floor
    if int(done.out):
        assert repo.show("b", "count") == done.out.strip()
    _clean(repo)


def _interrupt(repo: UserRepo, script: str, until: Until) -> Running:
    with repo.started(
        "-b", "b", "--every", "0", "--", "sh", "-c", f"{script}; echo ready; sleep 1000"
    ) as run:
        run.expect("ready")
        run.process.kill()
        run.process.wait()
    until(lambda: not is_locked(str(repo.workspace() / "lock")), "lock free")
    return run


def test_after_a_kill_the_next_run_takes_the_missing_snapshot(repo: UserRepo, until: Until) -> None:
    _interrupt(repo, "echo x >new; rm README; git add -A; git commit -qm mine; echo y >>new", until)
    assert repo.records()["b"]["last_run"]["ended"] is None
    done = repo.sh("cat new")
    assert done.out == "x\ny\n"
    assert "interrupted" in done.err
    assert repo.git("log", "--format=%s", "main..b").splitlines()[-1] == "mine"
    assert "Overlayrun-Reason: recovery" in repo.git("log", "-1", "--format=%B", repo.snapshots()[-1])
    _clean(repo)


@pytest.mark.parametrize("command", ["ls", "status", "log b", "show b", "diff b"])
def test_after_a_kill_the_next_command_recovers(repo: UserRepo, until: Until, command: str) -> None:
    _interrupt(repo, "echo x >new", until)
    done = repo.overlayrun(*command.split())
    assert done.code == 0, str(done)
    assert "interrupted" in done.out + done.err
    assert repo.show("b", "new") == "x\n"


def test_a_run_on_another_branch_leaves_an_interrupted_one_whole(repo: UserRepo, until: Until) -> None:
    _interrupt(repo, "echo x >new", until)
    repo.inside("true", branch="other")
    assert repo.inside("cat new") == "x\n"


def test_a_kill_of_everything_at_once(repo: UserRepo, until: Until) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", f"echo x >new; echo ready; {repo.sleeper()}") as run:
        run.expect("ready")
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until(lambda: not repo.marked())
    assert repo.inside("cat new") == "x\n"


def test_a_keeper_that_is_killed_ends_the_run_with_its_work(repo: UserRepo, until: Until) -> None:
    with repo.started("-b", "b", "--", "sh", "-c", f"echo x >new; echo ready; {repo.sleeper()}") as run:
        run.expect("ready")
        keeper = _keeper_of(run.process.pid)
        assert keeper
        os.kill(keeper, signal.SIGKILL)
        assert run.end() not in (0, None)
    assert "Traceback" not in run.text(), run.text()
    until(lambda: not repo.marked(), "all dead", 5.0)
    done = repo.sh("cat new")
    assert done.out == "x\n"
    assert repo.show("b", "new") == "x\n"


def test_stale_locks_of_git_are_no_obstacle_for_ever(repo: UserRepo) -> None:
    """A kill between lock and rename leaves git's own .lock of our refs behind."""
    repo.inside("echo x >new")
    identity = repo.records()["b"]["id"]
    mark = repo.workspace() / "hashes.json.moving"
    mark.write_text(f"{repo.refs()['refs/heads/b']}\n")
    (repo.root / f".git/refs/overlayrun/snapshots/{identity}.lock").write_text("")
    (repo.root / ".git/refs/heads/b.lock").write_text("")
    assert repo.sh("echo y >new").code == 0
    assert repo.show("b", "new") == "y\n"


def _other_boot(repo: UserRepo, *, open_run: bool) -> None:
    """What a power cut leaves: a record of another boot, and perhaps no clean end."""
    path = repo.records()["b"]["path"]
    data = json.loads(path.read_text())
    data["last_run"]["boot"] = _EARLIER
    if open_run:
        data["last_run"]["ended"] = data["last_run"]["status"] = None
    path.write_text(json.dumps(data))


def test_power_cut_during_a_run_rebuilds_from_the_last_snapshot(repo: UserRepo, until: Until) -> None:
    _interrupt(
        repo,
        (
            "echo one >new; rm README; sleep 0.3; overlayrun snapshot "
            "-m kept >/dev/null; echo torn >new; echo doubtful >late"
        ),
        until,
    )
    _other_boot(repo, open_run=True)
    done = repo.sh("cat new; ls; git status --porcelain | wc -l")
    assert done.code == 0, str(done)
    assert done.out.startswith("one\nlink\nnew\nsrc\ntool.sh\n"), str(done)
    assert "power cut" in done.err
    aside = list(repo.state.rglob("late"))
    assert [path.read_text() for path in aside] == ["doubtful\n"], "the doubtful upper is kept"
    assert repo.show("b", "new") == "one\n"
    _clean(repo)


def test_power_cut_keeps_agents_commits_and_uncommitted_work_of_the_snapshot(
    repo: UserRepo, until: Until
) -> None:
    script = (
        "echo 1 >a; git add a; git commit -qm mine; echo 2 >b; chmod +x b; "
        "ln -s a l; rm -r src; sleep 0.3; overlayrun snapshot >/dev/null"
    )
    _interrupt(repo, script, until)
    _other_boot(repo, open_run=True)
    out = repo.inside(
        "cat a b; stat -c %a b; readlink l; ls; git log -1 --format=%s; git fsck --no-dangling 2>&1"
    )
    assert out == "1\n2\n755\na\nREADME\na\nb\nl\nlink\ntool.sh\nmine\n"


def test_power_cut_before_the_first_snapshot_starts_from_the_base(repo: UserRepo, until: Until) -> None:
    repo.write("dirty", "user\n")
    _interrupt(repo, "echo doubtful >late", until)
    _other_boot(repo, open_run=True)
    done = repo.sh("cat dirty; ls late 2>/dev/null || echo none")
    assert done.code == 0, str(done)
    assert done.out == "user\nnone\n"
    assert any(path.read_text() == "doubtful\n" for path in repo.state.rglob("late"))


def test_power_cut_after_a_clean_end_loses_nothing(repo: UserRepo) -> None:
    repo.write(".gitignore", "cache/\n")
    repo.commit("ignore")
    repo.inside("echo x >new; mkdir -p cache; echo c >cache/c")
    _other_boot(repo, open_run=False)
    assert repo.inside("cat new") == "x\n"
    assert repo.show("b", "new") == "x\n"


def _tear(repo: UserRepo, until: Until) -> None:
    """What a power cut leaves right after a run that wrote `new`."""
    place = repo.workspace()
    until((place / "synced").exists, "the flush is over")
    (place / "synced").unlink()
    (place / "upper/new").write_text("")
    _other_boot(repo, open_run=False)


@pytest.mark.shared
@pytest.mark.parametrize(
    "words",
    ["snapshot b", "sync b", "restore b @{1}", "fork b -b f", "merge c --into b"],
    ids=lambda it: it.split()[0],
)
def test_what_the_cut_tore_gets_into_no_snapshot(repo: UserRepo, until: Until, words: str) -> None:
    """The run had ended, and its files were not on the disk yet: the first command of all rebuilds them."""
    repo.inside("echo w >new; overlayrun snapshot >/dev/null; echo x >new")
    repo.sh("echo c >c", branch="c")
    repo.commit("user's", users="user\n")
    _tear(repo, until)
    done = repo.overlayrun(*words.split())
    assert done.code == 0, str(done)
    assert "went through a power cut" in done.err
    branch = "f" if words.startswith("fork") else "b"
    expected = "w\n" if words.startswith("restore") else "x\n"
    assert repo.show(branch, "new") == expected
    assert repo.sh("cat new", branch=branch).out == expected
    taken = repo.git("rev-list", "--glob=refs/overlayrun/snapshots", "--", "new").split()
    assert "" not in [repo.show(each, "new") for each in taken]


@pytest.mark.shared
@pytest.mark.parametrize(
    "words", ["snapshot b", "sync b", "restore b @{1}", "fork b -b f", "merge c --into b"]
)
def test_what_is_torn_and_can_not_be_rebuilt_is_left_alone(repo: UserRepo, until: Until, words: str) -> None:
    repo.inside("echo w >new; overlayrun snapshot >/dev/null; echo x >new")
    repo.sh("echo c >c", branch="c")
    repo.commit("user's", users="user\n")
    _tear(repo, until)
    before, obstacle = repo.refs(), repo.workspace() / "kept"
    obstacle.write_text("")  # as good as a full disk
    done = repo.overlayrun(*words.split())
    assert done.code == 3, str(done)
    assert "branch b went through a power cut and is not rebuilt yet" in done.err
    assert repo.refs() == before
    obstacle.unlink()
    assert repo.inside("cat new") == "x\n"


def test_what_is_merged_into_a_branch_of_an_earlier_boot_is_of_this_one(repo: UserRepo, until: Until) -> None:
    repo.inside("echo x >new")
    repo.sh("echo c >c", branch="c")
    mark = repo.workspace() / "synced"
    until(mark.exists, "the flush is over")
    mark.write_text(f"{_EARLIER} 1")
    _other_boot(repo, open_run=False)
    assert repo.overlayrun("merge", "c", "--into", "b").code == 0
    until(mark.exists, "the flush is over")
    mark.unlink()  # as if the flush were not over
    assert "power cut" not in repo.overlayrun("ls").err


def test_a_reboot_long_after_is_no_power_cut(repo: UserRepo) -> None:
    """Once it has reached the disk, an idle workspace keeps also what no snapshot holds."""
    repo.write(".gitignore", "cache/\n")
    repo.commit("ignore")
    repo.inside('mkdir cache; echo c >cache/c; echo h >"$HOME/h"')
    subprocess.run(["sync"], check=True)
    done = repo.overlayrun("ls")
    assert done.code == 0, str(done)
    _other_boot(repo, open_run=False)
    out = repo.inside('cat cache/c "$HOME/h" 2>/dev/null || echo lost')
    assert "lost" not in out or [path for path in repo.state.rglob("c") if path.is_file()], (
        "kept aside at least"
    )


def test_a_branch_whose_start_was_killed_can_be_used_again(repo: UserRepo) -> None:
    """Killed between the branch's ref and the record: the name must not be lost for ever."""
    repo.inside("true")
    (repo.workspace() / "record.json").unlink()
    done = repo.sh("echo x >new")
    assert done.code == 0, str(done)
    assert repo.show("b", "new") == "x\n"


def test_who_dies_while_he_makes_a_workspace_is_waited_for(repo: UserRepo) -> None:
    """A batch that is resumed at once meets the processes of the one that was killed."""
    repo.inside("true")
    place = repo.workspace()
    (place / "record.json").unlink()
    with (place / "lock").open() as dying:
        fcntl.flock(dying, fcntl.LOCK_EX)
        with repo.started("-b", "b", "--", "sh", "-c", "echo x >new") as run:
            time.sleep(0.5)  # by then it had given up, without waiting
            fcntl.flock(dying, fcntl.LOCK_UN)
            assert run.end() == 0, run.text()
    assert repo.show("b", "new") == "x\n"


def test_objects_that_a_kill_left_half_written_are_cleared(repo: UserRepo, until: Until) -> None:
    left = repo.root / ".git/objects/ab/tmp_obj_overla"
    _interrupt(repo, "echo x >new", until)
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    repo.inside("true")
    assert not left.exists()


def test_a_half_made_workspace_is_no_trouble(repo: UserRepo) -> None:
    repo.inside("true")
    for name in ("halfmade0001", ".gone-halfmade0002"):
        (repo.state / "workspaces" / name / "upper").mkdir(parents=True, mode=0o700)
    (repo.state / "bases/.123-aside").mkdir()
    assert repo.sh("true").code == 0
    done = repo.overlayrun("ls")
    assert "Traceback" not in done.err, str(done)
