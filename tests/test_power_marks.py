"""What is on the disk is noted, and of nothing else; who is killed in a merge leaves nothing half; disks that take no writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import wait_until

from overlayrun.collect import DAY
from overlayrun.model import EMPTY_TREE, BranchName
from overlayrun.recover import whole_before
from overlayrun.relay import Relay
from overlayrun.workspace.layout import WorkspaceLayout
from overlayrun.workspace.record import Record, Run

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared

_EARLIER: Final = "00000000-0000-0000-0000-000000000000"  # a boot's id
_LAUNCH: Final = "import overlayrun.launch as l; l.main()"


def _mark(repo: UserRepo, branch: str) -> Path:
    """The note of what is on the disk, once it is written."""
    mark = repo.workspace(branch) / "synced"
    record = json.loads(repo.records()[branch]["path"].read_text())
    run = record["last_run"]
    stamp = f"{run['boot']} {run['number']}" if run else f"{record['filled']} 0"
    wait_until(lambda: mark.exists() and mark.read_text() == stamp, f"the flush of {branch}")
    return mark


def _reboot(repo: UserRepo, branch: str) -> None:
    """What is there is of an earlier boot, and what is noted of it."""
    path = repo.records()[branch]["path"]
    data = json.loads(path.read_text())
    now = data["last_run"]["boot"] if data["last_run"] else data["filled"]
    for each in (path, path.with_name("synced")):
        if each.exists():
            each.write_text(each.read_text().replace(now, _EARLIER))


def _patched(patch: str, *words: str) -> list[str]:
    """A command line of overlayrun, after a patch to it."""
    return [sys.executable, "-c", f"{patch}\n{_LAUNCH}", *words]


def _call(repo: UserRepo, argv: list[str]) -> int:
    return subprocess.run(argv, cwd=repo.root, env=repo.env, capture_output=True, check=False).returncode


def _told(repo: UserRepo, text: str) -> str:
    [line] = [line for line in repo.overlayrun("ls").ours if text in line]
    return line


def test_what_came_into_a_fork_that_never_ran_may_be_torn(repo: UserRepo) -> None:
    repo.inside("echo b >own")
    repo.sh("echo c >theirs", branch="c")
    repo.overlayrun("fork", "b", "-b", "f")
    _mark(repo, "f")
    assert repo.overlayrun("merge", "c", "--into", "f").code == 0
    _mark(repo, "f").unlink()  # as if the flush were not over
    _reboot(repo, "f")
    (repo.workspace("f") / "upper/theirs").write_text("")
    done = repo.overlayrun("snapshot", "f")
    assert "branch f went through a power cut" in done.err, str(done)
    assert [repo.show(each, "theirs") for each in repo.snapshots("f")[:1]] == ["c\n"]
    assert repo.inside("cat own theirs", branch="f") == "b\nc\n"


def test_a_merge_that_was_told_of_is_not_taken_back_after_a_power_cut(repo: UserRepo) -> None:
    """The removal of its mark had not reached the disk."""
    repo.inside("echo b >own")
    repo.sh("echo c >theirs", branch="c")
    repo.overlayrun("fork", "b", "-b", "f")
    assert repo.overlayrun("merge", "c", "--into", "f").code == 0
    _mark(repo, "f").unlink()
    _reboot(repo, "f")
    (repo.workspace("f") / "absorbing").write_text("1")
    assert "rebuilt from its last snapshot" in _told(repo, "is rebuilt")
    assert repo.inside("cat own theirs", branch="f") == "b\nc\n"
    assert not (repo.workspace("f") / "absorbing").exists()


def test_an_ordinary_reboot_is_no_power_cut(repo: UserRepo) -> None:
    """Also where the last run changed nothing but HOME; what is rebuilt is on the disk at once."""
    repo.inside("echo b >own")
    repo.inside('true >"$HOME/flag"')
    _mark(repo, "b")
    _reboot(repo, "b")
    assert repo.overlayrun("ls").err == ""
    assert repo.inside('ls "$HOME/flag"').endswith("flag\n")
    _mark(repo, "b").unlink()
    _reboot(repo, "b")
    assert "went through a power cut" in _told(repo, "power cut")
    _reboot(repo, "b")
    assert repo.overlayrun("ls").err == ""
    assert repo.show("b", "own") == "b\n"
    assert repo.overlayrun("restore", "b", "@{0}").code == 0
    _mark(repo, "b")
    _check_age_of_what_was_put_aside(repo)


def _check_age_of_what_was_put_aside(repo: UserRepo) -> None:
    """A time from before the branch was made is a clock's that was not set yet, and no age."""
    path, aside = repo.records()["b"]["path"], repo.workspace() / "kept/1"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "created": time.time() - 60 * DAY}))
    for when, goes in ((1.0, False), (time.time() - 40 * DAY, True)):
        os.utime(aside, (when, when))
        assert (str(aside) in repo.overlayrun("gc", "--dry-run").out) is goes


# Whoever flushes in the background waits for the file `go`, and says before who he is.
_SLOW_FLUSH: Final = """
import os, time
import overlayrun.kernel.syscalls as s
real = s.syncfs
def held(fd):
    if os.getsid(0) == os.getpid():
        with open(f"{os.environ['SLOW']}/new", "w") as file: file.write(str(os.getpid()))
        os.rename(f"{os.environ['SLOW']}/new", f"{os.environ['SLOW']}/flusher")
        while not os.path.exists(f"{os.environ['SLOW']}/go"): time.sleep(0.01)
    real(fd)
s.syncfs = held
"""


def test_a_flush_that_began_before_a_merge_notes_nothing_of_it(repo: UserRepo, tmp_path: Path) -> None:
    repo.sh("echo c >theirs", branch="c")
    repo.inside("echo b >own")
    words = ("-b", "b", "--", "sh", "-c", "echo more >>own")
    patch = _SLOW_FLUSH.replace("os.environ['SLOW']", ascii(str(tmp_path)))
    assert _call(repo, _patched(patch, *words)) == 0
    wait_until((tmp_path / "flusher").exists, "the flush begins")
    assert repo.overlayrun("merge", "c", "--into", "b").code == 0
    mark = _mark(repo, "b")
    mark.unlink()  # as if the merge's own flush were not over
    flusher = int((tmp_path / "flusher").read_text())
    (tmp_path / "go").touch()
    wait_until(lambda: not _lives(flusher), "the flush ends")
    assert not mark.exists()


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# A command that is killed as soon as it has asked for what it came for.
_KILLED_ASKING: Final = """
import json, os, socket
import overlayrun.absorb as a
real = a.ask
def ask(directory, name, request, **more):
    if request["op"] != "change":
        return real(directory, name, request, **more)
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"/proc/self/fd/{os.open(directory, os.O_PATH)}/{name}")
    client.sendall(json.dumps(request).encode() + b"\\n")
    os.kill(os.getpid(), 9)
a.ask = ask
"""


def test_a_merge_into_a_run_goes_on_without_the_command_that_asked_for_it(repo: UserRepo) -> None:
    repo.inside("echo 1 >one; echo 2 >two")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.inside("echo c >>one; echo c >>two", branch="c")
    with repo.started("-b", "b", "--every", "0", "--", "sh", "-c", "echo ready; read _") as run:
        run.expect("ready")
        wait_until((repo.workspace() / "sockets/outside").exists, "its socket")
        assert _call(repo, _patched(_KILLED_ASKING, "merge", "c", "--into", "b")) == -9
        wait_until(lambda: repo.git("log", "-1", "--format=%s", "b").strip() == "Merge c", "the merge")
        assert repo.show("b", "two") == "2\nc\n"
        again = repo.overlayrun("merge", "c", "--into", "b")
        assert (again.code, again.out) == (0, "branch c is in b already\n")
        run.type("end")
        assert run.end() == 0
    assert not (repo.workspace() / "absorbing").exists()


_DIES_MERGING: Final = """
import os
import overlayrun.transplant as t
def half(live, *_):
    live.run_inside(("sh", "-c", "rm one; echo half >two"), b"")
    os.kill(os.getpid(), 9)
t.change_files = half
"""


def test_a_merge_that_its_run_did_not_survive_is_taken_back(repo: UserRepo) -> None:
    repo.inside("echo 1 >one; echo 2 >two")
    repo.overlayrun("fork", "b", "-b", "c")
    repo.inside("echo c >>one; echo c >>two", branch="c")
    words = ("-b", "b", "--every", "0", "--", "sh", "-c", "echo late >late; echo ready; sleep 1000")
    log = repo.home.parent / "run.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            _patched(_DIES_MERGING, *words), cwd=repo.root, env=repo.env, stdout=output, stderr=output
        ) as run,
    ):
        wait_until(lambda: "ready" in log.read_text(), "the run")
        done = repo.overlayrun("merge", "c", "--into", "b")
        assert (done.code, run.wait()) == (3, -9), str(done)
    assert "Traceback" not in done.err
    told = _told(repo, "a merge into branch b was interrupted")
    assert told.endswith("it is as it was before")
    assert repo.inside("cat one two late") == "1\n2\nlate\n"
    assert repo.overlayrun("merge", "c", "--into", "b").code == 0
    assert repo.inside("cat one two late") == "1\nc\n2\nc\nlate\n"


def test_a_command_in_a_copy_leaves_the_other_repository_alone(repo: UserRepo, tmp_path: Path) -> None:
    """Whichever comes first; and so in one that was moved."""
    repo.inside("echo x >new; rm README")
    subprocess.run(["cp", "-a", str(repo.root), str(tmp_path / "copy")], check=True)
    before = repo.refs()
    copy = repo.at(tmp_path / "copy")
    done = copy.overlayrun("snapshot", "b", "-m", "in the copy")
    assert done.code == 0, str(done)
    assert copy.git("log", "-1", "--format=%s", "b").strip() == "in the copy"
    assert repo.refs() == before
    assert set(copy.files("b")) == set(repo.files("b"))
    repo.root.rename(tmp_path / "moved")
    moved = repo.at(tmp_path / "moved")
    for words in ("restore b @{0}", "sync b", "show b", "rm -f b"):
        assert moved.overlayrun(*words.split()).code == 0, words


def test_a_clock_that_was_set_back_makes_nothing_whole(tmp_path: Path) -> None:
    place, record = WorkspaceLayout(str(tmp_path)), Record("id", BranchName("b"), "/r", EMPTY_TREE)
    now = time.time()
    record.last_run = Run(2, ["x"], "boot", now - 100)
    Path(place.synced).write_text("boot 1")
    assert whole_before(place, record) == pytest.approx(now - 100, abs=1)
    Path(place.flushed).write_text(f"{now - 200} 1")
    assert whole_before(place, record) == pytest.approx(now - 100, abs=1)
    Path(place.flushed).write_text(f"{now - 200} 2")  # of this run, which began later
    assert whole_before(place, record) == pytest.approx(now - 200, abs=1)
    Path(place.flushed).write_text(f"{now + 3600} 2")
    assert whole_before(place, record) == 0


def test_a_clock_that_jumps_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when a machine wakes up."""
    relay = Relay(files=False, timed=False)
    later = time.time() + 100_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert relay.idle() < 50_000


def test_a_disk_that_takes_no_writes_is_looked_at_and_named(repo: UserRepo) -> None:
    repo.inside("echo x >new")
    script = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; cd "$0"; "$@"'
    wrapped = ["unshare", "-Urm", "sh", "-c", script, str(repo.root)]
    looks = "for each in ls status 'show b' 'diff b' 'log b'; do overlayrun $each >/dev/null || exit; done"
    works = "for each in 'snapshot b' 'sync b' 'restore b @{0}' 'rm -f b'; do overlayrun $each; echo $?; done"
    env = {**repo.env, "PATH": f"{Path(repo.command()[0]).parent}:{repo.env['PATH']}"}

    def outcome(commands: str) -> subprocess.CompletedProcess[str]:
        words = [*wrapped, "sh", "-c", commands]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    outcome(looks)
    done = outcome(works)
    assert done.stdout == "3\n3\n3\n3\n"
    assert done.stderr.count("overlayrun: Read-only file system: ") == 4, done.stderr
    assert done.stderr.count("hint: overlayrun doctor") == 4
    path = repo.records()["b"]["path"]
    data = json.loads(path.read_text())
    data["last_run"]["ended"] = None  # as a kill leaves it
    path.write_text(json.dumps(data))
    assert "can't be recovered now: [Errno 30] Read-only file system" in outcome("overlayrun ls").stderr
