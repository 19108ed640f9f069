"""The power is cut at random moments, on a disk that really drops what was not flushed: nothing acknowledged is lost."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from conftest import UserRepo
from power_life import Story, disk_images, inside, live
from power_world import Desk, Machine

_LIVES: Final = (
    *(("overlay", "ext4", story) for story in ("turns", "runs", "lands", "back")),
    *(("reflink", "xfs", story) for story in ("turns", "runs", "back")),
    *(("btrfs", "btrfs", story) for story in ("turns", "runs")),
    ("copy", "ext4", "runs"),
)
# Counts up; after each turn asks for a snapshot and, once that is acknowledged, says so on standard output.
_TURNS: Final = r"""
import json, os, socket, sys, time
number = int(open("count").read()) if os.path.exists("count") else 0
last = number + 25
while number < last:
    number += 1
    for name, text in (("count", f"{number}\n"), (f"d/{number % 7}/f", f"<{number}>" * 5000 + "\n")):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name + ".new", "w") as file: file.write(text)
        os.rename(name + ".new", name)
    if number % 5 == 0: os.system("git add -A && git commit -qm turn >/dev/null 2>&1")
    if number % 3: continue
    while not os.path.exists(os.environ["OVERLAYRUN_SOCKET"]): time.sleep(0.01)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["OVERLAYRUN_SOCKET"])
        client.sendall(b'{"op": "snapshot"}\n')
        answer = client.makefile().readline()
    if answer and "error" not in json.loads(answer): print("ack b", number, flush=True)
"""

_SCRIPTS: Final[dict[str, str]] = {
    # One branch: snapshots by interval and on request, then one on exit; again and again.
    "turns": f"TURNS={shlex.quote(_TURNS)}"
    '; while :; do overlayrun -b b --every 0.05 -- python3 -c "$TURNS" || sleep 0.1; done',
    # Short runs in branches of their own, with and without a commit of the command's.
    "runs": """
        i=$START; while :; do i=$((i+1)); b=b$((i%3))
        overlayrun -b $b -- sh -c "echo $i >count; mkdir -p d; seq 1 5000 >d/$i; mv README R 2>/dev/null
            [ $((i%2)) = 0 ] || { git add -A; git commit -qm $i; echo late >>d/$i; }" && echo ack $b $i
        done""",
    # Each branch counts the target's total up, and lands.
    "lands": """
        i=$START; while :; do i=$((i+1))
        overlayrun -b m$i --dirty ignore -- sh -c 'echo $(($(cat total)+1)) >total; seq 1 4000 >m'$i || continue
        [ $((i%3)) = 0 ] && set -- reconcile || set -- merge m$i
        overlayrun "$@" && echo ack main $(git show main:total)
        [ $((i%4)) = 0 ] && overlayrun rm m$((i-1))
        done""",
    # Back and forth between two snapshots; branches from what is there.
    "back": """
        i=$START; overlayrun -b b -- sh -c 'seq 1 3000 >one; rm two'; overlayrun -b b -- sh -c 'seq 1 3000 >two; rm one'
        while :; do i=$((i+1))
        overlayrun restore b @{1} && echo ack back $i
        overlayrun fork b -b f$i && echo ack fork $i
        overlayrun restore b @{2} && echo ack back $i
        overlayrun sync b
        done""",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, int], Path]]:
    """Image of a disk with the user's repository on it, by the kind of its file system."""
    with disk_images(tmp_path_factory.mktemp) as image:
        yield image


def test_locks_from_before_the_boot_are_no_obstacle(repo: UserRepo) -> None:
    """Of the branch by git's own command at the start, of branch and snapshot by libgit2 at the end."""
    repo.inside("true", branch="other")
    heads = repo.root / ".git/refs/heads"
    for name in ("b.lock", "other.lock"):
        (heads / name).write_text("")
        os.utime(heads / name, (1, 1))
    assert repo.inside("echo x >new; cat new") == "x\n"
    assert repo.inside("echo y >new; cat new", branch="other") == "y\n"
    assert (repo.show("b", "new"), repo.show("other", "new")) == ("x\n", "y\n")
    (heads / "c.lock").write_text("")
    assert repo.sh("true", branch="c").code == 125, "somebody holds it"


@pytest.mark.root
@pytest.mark.parametrize(("backend", "kind", "story"), _LIVES)
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    tmp_path: Path, template: Callable[[str, int], Path], backend: str, kind: str, story: str
) -> None:
    image = template(kind, 0)
    place = image.parent.parent if kind == "btrfs" else tmp_path
    live(Machine(place / f"{backend}-{story}", kind), image, backend, Story(_SCRIPTS[story], _JUDGES[story]))


def _turns(desk: Desk, told: Mapping[str, int]) -> None:
    floor = told.get("b", 0)
    script = "cat count 2>/dev/null || echo 0; cat d/*/f 2>/dev/null; git status >&2; git fsck >&2"
    if floor:
        assert int(desk.must("git", "show", "b:count")) >= floor
    count, *files = inside(desk, "b", script).splitlines()
    assert int(count) >= floor
    assert all(re.fullmatch(r"(<\d+>)\1{4999}", line) for line in files), files


def _runs(desk: Desk, told: Mapping[str, int]) -> None:
    lines = "".join(f"{number}\n" for number in range(1, 5001))
    for branch in {"b1": 0, **told}:
        floor = told.get(branch, 0)
        if floor:
            assert int(desk.must("git", "show", f"{branch}:count")) >= floor
        script = f"cat count 2>/dev/null || echo 0; [ {floor} = 0 ] || cat d/{floor}"
        count, _, file = inside(desk, branch, script).partition("\n")
        assert int(count) >= floor
        assert file in ((lines, f"{lines}late\n") if floor else ("",))


def _lands(desk: Desk, told: Mapping[str, int]) -> None:
    done = desk.do("overlayrun", "reconcile")
    assert done.code == 0, str(done)
    total = int(desk.must("git", "show", "main:total"))
    assert total >= told.get("main", 0)
    assert int((desk.seen / "total").read_text()) == total, desk.must("git", "status")
    lines = "".join(f"{number}\n" for number in range(1, 4001))
    files = list(desk.seen.glob("m[0-9]*"))
    assert len(files) == total
    assert all(path.read_text() == lines for path in files)


def _back(desk: Desk, told: Mapping[str, int]) -> None:
    names = [name for name in ("b", f"f{told['fork']}" if "fork" in told else "") if name]
    for name in names:
        shown = inside(desk, name, "cat one two 2>/dev/null | sha1sum; git status >&2")
        if "back" in told:
            lines = "".join(f"{number}\n" for number in range(1, 3001))
            whole = subprocess.run("sha1sum", input=lines.encode(), capture_output=True, check=True).stdout
            assert shown == whole.decode()


_JUDGES: Final = {"turns": _turns, "runs": _runs, "lands": _lands, "back": _back}
