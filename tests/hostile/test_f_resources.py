"""Cases 92 to 99: memory, disk, inodes, processors, output; the host goes on and the work is kept."""

from __future__ import annotations

import errno
import json
import re
import time
from pathlib import Path

import pytest
from conftest import Done, Running, wait_until

from hostile.world import Attack, World


def _peak_kib(pid: int) -> int:
    """Most memory that a process has had, in KiB; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", text)
    return int(found.group(1)) if found else 0


def _memory_until_end(run: Running) -> int:
    """Peak of the supervisor's own memory in MiB while a run goes on."""
    peak = 0
    while run.process.poll() is None:
        peak = max(peak, _peak_kib(run.process.pid))
        time.sleep(0.02)
    return peak >> 10


def test_case_092_memory(world: World) -> None:
    """All together, in children too; it ends inside and says so."""
    program = (
        "import os; open('work', 'w').write('w'); os.fork()\n"
        "kept = []\nwhile len(kept) < 600: kept.append(b'x' * (1 << 20))\nopen('had', 'w').write('all')"
    )
    attack = world.attack(["python3", "-c", program], "--memory", "200M", "--timeout", "50", branch="memory")
    attack.assert_sound()
    assert attack.done.code != 0, str(attack.done)
    assert "memory" in "\n".join(attack.done.ours), str(attack.done)
    assert world.repo.show("memory", "work") == "w"
    assert "had" not in world.repo.files("memory")


_FILL = """
import json, os
rooms, errors = {}, {}
for place in ("/tmp", "/dev/shm", "/run", "/var/tmp"):
    room = os.statvfs(place)
    rooms[place] = [room.f_blocks * room.f_frsize, room.f_files]
    if room.f_files > 100_000:
        continue
    try:
        os.mkdir(f"{place}/many")
        for number in range(room.f_files + 1):
            os.close(os.open(f"{place}/many/{number}", os.O_CREAT | os.O_WRONLY))
        errors[place] = 0
    except OSError as err:
        errors[place] = err.errno
print(json.dumps({"rooms": rooms, "errors": errors}))
"""


@pytest.fixture(scope="module")
def filled(world: World) -> Attack:
    return world.attack(["python3", "-c", _FILL], "--timeout", "50", "--memory", "256M", branch="filled")


def test_case_093_private_places_have_a_size_and_a_number_of_files(filled: Attack) -> None:
    for place, (size, files) in filled.part("rooms").items():
        assert 0 < size <= 256 << 20, place
        assert 0 < files <= 256 << 10, place


def test_case_093_an_endless_loop_of_empty_files_ends(filled: Attack) -> None:
    errors = filled.part("errors")
    assert errors
    assert set(errors.values()) <= {errno.ENOSPC, errno.EACCES}
    assert errno.ENOSPC in errors.values()


def test_case_094_the_upper_has_a_limit(world: World) -> None:
    program = (
        "import os, time\nopen('work', 'w').write('w')\n"
        "for n in range(40):\n    open(f'big{n}', 'wb').write(os.urandom(1 << 20) * 8)\n    time.sleep(0.2)\n"
    )
    attack = world.attack(["python3", "-c", program], "--disk", "40M", branch="disk")
    attack.assert_sound()
    assert attack.done.code != 0, str(attack.done)
    assert "disk" in "\n".join(attack.done.ours), str(attack.done)
    assert world.repo.show("disk", "work") == "w"
    assert "big39" not in world.repo.files("disk")


def test_case_096_priorities_can_not_be_raised(world: World) -> None:
    program = """
import json, os, resource
told = {}
for name, call in {
    "nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
    "fifo": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)),
    "limit": lambda: resource.setrlimit(resource.RLIMIT_NPROC, (1 << 30, 1 << 30)),
    "core": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)),
    "size": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)),
}.items():
    try:
        call()
        told[name] = "ok"
    except (OSError, ValueError) as err:
        told[name] = type(err).__name__
print(json.dumps(told))
"""
    attack = world.attack(["python3", "-c", program], branch="nice")
    attack.assert_sound()
    assert [name for name, how in attack.report.items() if how == "ok"] == []


@pytest.mark.parametrize("relayed", [False, True])
def test_case_097_a_flood_of_output_is_held_back(world: World, relayed: bool) -> None:  # noqa: FBT001  # a parameter
    """Nobody reads for a while: the agent waits, and nothing grows."""
    options = ["--idle-timeout", "60"] if relayed else []
    program = "import os\nfor _ in range(64): os.write(1, b'x' * (1 << 20))\nopen('wrote', 'w').write('all')"
    with (
        world.watched(f"flood-{relayed}") as watch,
        world.repo.started(*world.words(f"flood-{relayed}", *options), "--", "python3", "-c", program) as run,
    ):
        assert _memory_until_end(run) < 200
        run.end()
    assert watch.broken == []
    assert run.log.stat().st_size >= 64 << 20
    run.log.unlink()
    assert world.repo.show(f"flood-{relayed}", "wrote") == "all"


def test_case_098_a_file_rewritten_all_the_time(world: World) -> None:
    """Interval snapshots are at most a tenth of the time: a big file does not fill the store."""
    program = (
        "import os, time\nend = time.monotonic() + 1.5\n"
        "while time.monotonic() < end:\n    open('big', 'wb').write(os.urandom(2 << 20))\n"
    )
    before = _stored_kib(world)
    attack = world.attack(["python3", "-c", program], "--every", "0.1", branch="rewritten")
    attack.assert_sound()
    assert _stored_kib(world) - before < 30 << 10


def _stored_kib(world: World) -> int:
    lines = world.repo.git("count-objects", "-v").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("size"))


def test_case_099_two_files_of_one_line_each(world: World) -> None:
    program = "open('a', 'w').write('x' * (20 << 20)); open('README', 'w').write('y' * (20 << 20))"
    attack = world.attack(["python3", "-c", program], branch="line")
    attack.assert_sound()
    began = time.monotonic()
    done = world.repo.overlayrun("diff", "line")
    assert done.code == 0
    assert time.monotonic() - began < 30


def test_requests_without_end_do_not_grow_the_supervisor(world: World) -> None:
    """The inner control socket: endless lines, slow clients, sent descriptors, deep JSON, forged words."""
    if "other" not in world.repo.records():
        world.other_branch()
    refs = world.repo.refs()
    with (
        world.watched("flooded") as watch,
        world.repo.started(
            *world.words("flooded"), "--", "python3", f"{world.payloads}/flood_control.py"
        ) as run,
    ):
        assert _memory_until_end(run) < 200
        assert run.end() == 0, run.text()
    attack = Attack("flooded", Done(0, "", run.text()), broken=watch.broken)
    world.examine(attack)
    attack.assert_sound()
    text = run.text()
    assert '"joined"' not in text
    assert "keeper" not in text
    assert world.repo.show("flooded", "work") == "w"
    body = world.repo.git("log", "-1", "--format=%B", "flooded")
    assert "\x1b" not in body
    assert "\x9b" not in body
    trailers = world.repo.git("log", "-1", "--format=%(trailers:key=Overlayrun-Number,valueonly)", "flooded")
    assert "77" not in trailers, "a message forged a trailer"
    assert not world.repo.git("log", "-1", "--format=%(trailers:key=Signed-off-by)", "flooded").strip()
    told = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert all('"error"' in answer for answer in told["names"]), told["names"]
    assert "Traceback" not in text
    assert told["dripping"], "a line that never ends held the supervisor"
    assert json.loads(told["many"])["notes"][-1].startswith("left out: "), "the answer did not fit"
    _assert_printable(world, "flooded")
    ours = ("refs/heads/flooded", "refs/overlayrun/")
    now = {name: commit for name, commit in world.repo.refs().items() if not name.startswith(ours)}
    assert now == {name: commit for name, commit in refs.items() if not name.startswith(ours)}


def _assert_printable(world: World, branch: str) -> None:
    """What an agent told of its session reaches no terminal raw, nor the commits."""
    commands = [["ls"], ["log", branch], ["show", branch], ["show", f"{branch}@{{0}}"]]
    shown = [done.out for done in world.ours(commands)]
    assert "title evil" in shown[0]
    for said in (*shown, world.repo.git("log", "--format=%B", branch)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\U000e0000-\U000e007f]", said)


def test_a_client_that_says_nothing_does_not_stop_the_clock(world: World) -> None:
    """The supervisor waits for one client at a time, but not for ever: the time limit holds."""
    program = r"""
import os, socket, time
path = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(path):
    time.sleep(0.02)
kept = []
print("ready", flush=True)
while True:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(1)
    try:
        client.connect(path)
        client.send(b"{")
        kept.append(client)
    except OSError:
        time.sleep(0.01)
"""
    with world.repo.started(*world.words("silent", "--timeout", "3"), "--", "python3", "-c", program) as run:
        run.expect("ready")
        began = time.monotonic()
        wait_until(lambda: run.process.poll() is not None, "the end", 30)
        assert run.process.returncode == 124, run.text()
        assert time.monotonic() - began < 20
