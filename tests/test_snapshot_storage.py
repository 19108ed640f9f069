"""How objects reach the store, what is read again, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from snapshot_world import World, without_privileges

from overlayrun.collector import STREAMED
from overlayrun.errors import SnapshotError
from overlayrun.model import SnapshotReason
from overlayrun.store import hashes
from overlayrun.store.pack import LOOSE_LIMIT

pytestmark = pytest.mark.shared  # how objects lie in git's store


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path, {f"d{n}/f": f"{n}\n" for n in range(30)})


def packs(world: World) -> list[Path]:
    return sorted((world.repo / ".git/objects/pack").glob("*.pack"))


def loose(world: World) -> int:
    return int(world.git("count-objects").split()[0])


def test_few_objects_are_loose(world: World) -> None:
    before = loose(world)
    world.sh("echo new 1 > d1/f; echo new 2 > d2/f")
    world.snapshot()
    assert packs(world) == []
    assert loose(world) == before + 2 + 3 + 2  # blobs, trees, commits
    world.fsck()


def test_many_objects_are_one_pack(world: World) -> None:
    before = loose(world)
    world.sh(f"for n in $(seq {LOOSE_LIMIT}); do echo new $n > n$n; done")
    world.snapshot()
    assert (len(packs(world)), loose(world)) == (1, before)
    world.git("verify-pack", str(packs(world)[0]))
    world.fsck()


def test_large_files_are_streamed_and_equal_ones_stored_once(world: World) -> None:
    content = random.Random(1).randbytes(STREAMED + 12345)
    world.inside(lambda: [Path(name).write_bytes(content) for name in ("big", "same")])
    taken = world.snapshot()
    assert world.content(taken.tree, "big") == content
    assert world.files(taken.tree)[b"big"] == world.files(taken.tree)[b"same"]
    assert packs(world)[0].stat().st_size < len(content) * 1.5
    world.git("verify-pack", str(packs(world)[0]))
    world.fsck()


def test_what_was_stored_before_is_not_stored_again(world: World) -> None:
    world.sh(f"for n in $(seq {LOOSE_LIMIT}); do echo new $n > d3/n$n; ln -s $n d3/l$n; done")
    world.snapshot(SnapshotReason.REQUEST, "1")
    before = loose(world)
    world.sh("echo other > d4/f")
    world.snapshot(SnapshotReason.REQUEST, "2")
    assert (len(packs(world)), loose(world)) == (1, before + 1 + 2 + 2)


def test_a_file_that_did_not_change_is_not_opened_again(world: World) -> None:
    world.sh("echo 2 > d1/f")
    time.sleep(0.1)  # longer than the margin in which a stamp proves nothing
    world.snapshot(SnapshotReason.REQUEST, "1")
    stored = json.loads(Path(world.job.hashes).read_text())
    # Another id in the cache: taken over if the file is not read, corrected if it is.
    other = world.git("rev-parse", f"{world.job.base}:d7/f")
    stored["files"][0][2] = other
    Path(world.job.hashes).write_text(json.dumps(stored))
    assert world.git("rev-parse", f"{world.snapshot(SnapshotReason.REQUEST, '2').tree}:d1/f") == other


def _stamp(path: Path) -> hashes.Stamp:
    info = path.stat()
    return (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def test_a_store_through_an_old_mapping_is_seen_by_the_last_snapshot(world: World) -> None:
    stored_as = world.upper / "d1/f"
    world.sh("echo 2 > d1/f")
    time.sleep(0.1)
    world.snapshot(SnapshotReason.REQUEST, "1")
    stamp = _stamp(stored_as)
    cache = json.loads(Path(world.job.hashes).read_text())
    # The file as a store through a mapping leaves it: other bytes, the same stamp.
    stored_as.write_text("3\n")
    cache["files"][0][1] = list(_stamp(stored_as))
    Path(world.job.hashes).write_text(json.dumps(cache))
    assert stamp != _stamp(stored_as)
    assert world.content(world.snapshot(SnapshotReason.EXIT).tree, "d1/f") == b"3\n"


def test_same_size_and_same_mtime_do_not_hide_a_change(world: World) -> None:
    world.sh("echo old > d1/f; touch -d 2020-01-01 d1/f")
    time.sleep(0.1)
    world.snapshot(SnapshotReason.REQUEST, "1")
    world.sh("echo new > d1/f; touch -d 2020-01-01 d1/f")
    assert world.content(world.snapshot(SnapshotReason.REQUEST, "2").tree, "d1/f") == b"new\n"


def test_changes_right_after_a_snapshot_are_seen(world: World) -> None:
    for number in range(30):
        world.inside(lambda number=number: Path("d1/f").write_text(f"{number:03}\n"))  # type: ignore[misc]  # bound
        taken = world.snapshot(SnapshotReason.REQUEST, "x")
        assert world.content(taken.tree, "d1/f") == f"{number:03}\n".encode()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "rules": 1, "commit": 2}', "\xff"]
)
def test_a_broken_cache_is_an_empty_one(world: World, content: str) -> None:
    world.sh("echo 2 > d1/f")
    world.snapshot()
    Path(world.job.hashes).write_bytes(content.encode("latin-1"))
    world.sh("echo 3 > d1/f")
    assert world.content(world.snapshot().tree, "d1/f") == b"3\n"


def test_a_cache_of_lost_objects_is_not_believed(world: World) -> None:
    world.sh("echo 2 > d1/f")
    time.sleep(0.1)
    world.snapshot(SnapshotReason.REQUEST, "1")
    for ref in ("refs/overlayrun/snapshots/w1", "refs/heads/agent/one"):
        world.git("update-ref", "-d", ref)
    world.git("reflog", "expire", "--expire=now", "--all")
    world.git("gc", "-q", "--prune=now")
    world.snapshot(SnapshotReason.REQUEST, "2")
    world.fsck()


def test_changed_ignore_or_conversion_settings_drop_the_cache(world: World) -> None:
    world.sh("printf 'a\\r\\n' > d1/f")
    time.sleep(0.1)
    world.snapshot(SnapshotReason.REQUEST, "1")
    world.git("config", "core.autocrlf", "input")
    assert world.content(world.snapshot(SnapshotReason.REQUEST, "2").tree, "d1/f") == b"a\n"


def test_locks_of_a_killed_snapshot_are_cleared_and_the_users_are_not(world: World) -> None:
    refs = world.repo / ".git/refs"
    locks = [refs / "overlayrun/snapshots/w1.lock", refs / "heads/agent/one.lock"]
    for lock in locks:
        lock.parent.mkdir(parents=True)
    locks[1].touch()
    held = time.time() - 5  # since long before, but not since before the boot
    os.utime(locks[1], (held, held))
    Path(f"{world.job.hashes}.moving").touch()
    locks[0].touch()
    world.sh("echo 2 > d1/f")
    taken = world.snapshot()
    assert "was left where it is" in taken.notes[0]
    assert [lock.exists() for lock in locks] == [False, True]


def test_a_store_that_can_not_be_written_is_an_error_and_nothing_moves(world: World) -> None:
    world.sh(f"for n in $(seq {LOOSE_LIMIT}); do echo new $n > n$n; done")
    pack = world.repo / ".git/objects/pack"
    pack.chmod(0o500)

    def check() -> None:
        with pytest.raises(SnapshotError, match=r"written|stored"):
            world.snapshot()

    without_privileges(check)
    pack.chmod(0o700)
    assert world.git("for-each-ref", "refs/overlayrun") == ""
    assert len(world.names(world.snapshot().tree)) == 30 + LOOSE_LIMIT


_LOOP = """
import sys
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
from snapshot_world import World, without_privileges, _job
from overlayrun.model import CommitId, SnapshotReason
root = Path(sys.argv[2])
world = World(root, _job(root, CommitId(sys.argv[3])))
number = 0
while True:
    number += 1
    for name in range(1 + number % 2 * 30):
        (world.upper / f"k{name}").write_text(f"{number} {name}\\n")
    world.snapshot(SnapshotReason.REQUEST, "loop")
    if number == 1:
        print("begun", flush=True)
"""


def test_a_kill_at_any_time_leaves_the_old_snapshot_or_the_new_one(world: World) -> None:
    chance = random.Random(2)
    here = str(Path(__file__).parent)
    last = 0
    for _ in range(25):
        loop = subprocess.Popen(
            [sys.executable, "-c", _LOOP, here, str(world.root), str(world.job.base)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert loop.stdout is not None
        loop.stdout.readline()
        time.sleep(chance.random() * 0.1)
        loop.send_signal(signal.SIGKILL)
        _, errors = loop.communicate()
        assert not errors, errors.decode()
        taken = world.snapshot(SnapshotReason.RECOVERY)
        assert (taken.notes, world.git("rev-parse", "agent/one")) == ((), taken.tip)
        assert taken.number > last
        last = taken.number
        listed = {path.name: path.read_bytes() for path in world.upper.iterdir() if path.is_file()}
        assert {name: world.content(taken.tree, name) for name in listed} == listed
    assert last >= 50  # in each round one by the loop and one after the kill
    world.fsck()
