"""The power is cut at random moments, on a disk that really drops what was not flushed: nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from backends.images import mounted_image
from conftest import UserRepo
from power_world import Desk, Machine

CUTS: Final = 3
"""How often the power goes in each test, one life of a repository."""
_LIVES: Final = (
    *(("overlay", "ext4", story) for story in ("turns", "runs", "lands", "back")),
    *(("reflink", "xfs", story) for story in ("turns", "runs", "back")),
    *(("btrfs", "btrfs", story) for story in ("turns", "runs")),
    ("copy", "ext4", "runs"),
)
_LONGEST: Final = 0.9  # seconds from a story's first word to the cut

# Nothing is written by itself for a long time, or metadata is every second and content never.
_OPTIONS: Final = ("rw", "rw,commit=1", "rw,data=writeback", "rw,noauto_da_alloc,commit=1")

_TEMPLATE: Final = """
mkdir -p "$HOME" .; cp "$1" "$HOME/.gitconfig"
git init -qb main; rm .git/hooks/*.sample
mkdir -p src/deep node_modules/p; echo 0 >total; echo read >README; printf 'node_modules/\\n.env\\n' >.gitignore
for i in $(seq 30); do echo "$i" >"src/f$i"; done; seq 20000 >src/deep/long; printf '#!/bin/sh\\n' >tool; chmod +x tool
git add -A; git commit -qm first
echo staged >>src/f1; git add src/f1; echo edited >>src/f2; echo mine >untracked; rm src/f3
echo secret >.env; echo module >node_modules/p/index.js; seq 30000 >node_modules/p/long
sync -f .
"""

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

_STORIES: Final[dict[str, str]] = {
    # One branch: snapshots by interval and on request, then one on exit; again and again.
    "turns": 'while :; do overlayrun -b b --every 0.05 -- python3 -c "$TURNS" || sleep 0.1; done',
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
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Image of a disk with the user's repository on it, by the kind of its file system."""
    made: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:

        def image(kind: str) -> Path:
            if kind not in made:
                is_cloned = kind == "btrfs"
                outer = stack.enter_context(mounted_image("xfs", 2048)) if is_cloned else None
                made[kind] = make_image((outer or tmp_path_factory.mktemp(kind)) / "machine", kind)
            return made[kind]

        yield image


def make_image(place: Path, kind: str) -> Path:
    """A disk with the user's repository on it."""
    machine = Machine(place, kind)
    machine.format()
    machine.start()
    desk = Desk(machine, _environment())
    desk.seen.mkdir()
    desk.must("sh", "-ec", _TEMPLATE, "sh", str(Path.home() / ".gitconfig"))
    machine.off()
    return machine.image


def _environment() -> dict[str, str]:
    programs = Path(UserRepo(Path(), Path()).command()[0]).parent
    return {"PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "TURNS": _TURNS}


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
    tmp_path: Path, template: Callable[[str], Path], backend: str, kind: str, story: str
) -> None:
    image = template(kind)
    place = image.parent.parent if kind == "btrfs" else tmp_path
    live(Machine(place / f"{backend}-{story}", kind), image, backend, story)


def live(machine: Machine, image: Path, backend: str, story: str, life: str = "0") -> dict[str, int]:
    """One life of a repository; what was acknowledged in the end. A failure tells of the cut and what led to it."""
    dice = random.Random(f"{backend}{story}{life}")
    machine.copy_disk(image)
    told: dict[str, int] = {}
    machine.start()
    desk = Desk(machine, _environment())
    desk.must("sh", "-ec", f"git config overlayrun.backend {backend}; sync -f .")
    own = _own(desk)
    try:
        for cut in range(CUTS):
            with desk.at_work(f"START={cut * 1000}; {_STORIES[story]}") as work:
                work.expect(dice.choice(("overlayrun: ", "ack ")))
                time.sleep(dice.random() * _LONGEST)
                text = work.text()
                machine.cut()
            told |= _acknowledged(text)
            machine.start(dice.choice(_OPTIONS) if machine.kind == "ext4" else "rw")
            try:
                _judge(desk, story, told)
                assert _own(desk) == own
            except AssertionError as err:
                err.add_note(f"{backend} {story} {life}, cut {cut}, acknowledged {told}:\n{text[-3000:]}")
                raise
    finally:
        machine.off()
    return told


def _acknowledged(text: str) -> dict[str, int]:
    lines = [line.split() for line in text.splitlines() if line.startswith("ack ")]
    return {name: int(number) for _, name, number in lines}


def _own(desk: Desk) -> str:
    """What the user had and no run may touch: his changes, staged and not, and files that git does not know."""
    script = "git diff --cached HEAD; git diff; cat untracked .env node_modules/p/*; ls -A . node_modules"
    ours = ("m", "index ")
    return "\n".join(
        line for line in desk.must("sh", "-ec", script).splitlines() if not line.startswith(ours)
    )


def _judge(desk: Desk, story: str, told: Mapping[str, int]) -> None:
    _whole(desk)
    _JUDGES[story](desk, told)
    _whole(desk)


def _whole(desk: Desk) -> None:
    """Every ref is readable, and everything that it reaches is there."""
    done = desk.do("git", "fsck", "--full", "--strict", "--no-dangling")
    assert done.code == 0, str(done)
    assert done.out + done.err == ""


def _inside(desk: Desk, branch: str, script: str) -> str:
    """What a script shows in a branch, which still has what it took along, and goes on."""
    shown = [
        "src/f1",
        "src/f2",
        "untracked",
        "src/deep/long",
        ".env",
        "node_modules/p/index.js",
        "node_modules/p/long",
    ]
    began = "set -e; test ! -e src/f3; sha1sum $SHOWN; echo ==; set +e; date +%s.%N >goes-on"
    done = desk.do(
        "overlayrun", "-b", branch, "--", "env", f"SHOWN={' '.join(shown)}", "sh", "-c", f"{began}\n{script}"
    )
    assert done.code == 0, str(done)
    for path in re.findall(r"what was there is in (\S+)", done.err):
        assert desk.machine.see(Path(path)).is_dir(), str(done)
    sums, _, out = done.out.partition("==\n")
    assert sums == desk.must("sha1sum", *shown), str(done)
    # A branch that was left between two refs would never move again.
    assert desk.must("git", "show", f"{branch}:goes-on").strip()
    return out


def _turns(desk: Desk, told: Mapping[str, int]) -> None:
    floor = told.get("b", 0)
    script = "cat count 2>/dev/null || echo 0; cat d/*/f 2>/dev/null; git status >&2; git fsck >&2"
    if floor:
        assert int(desk.must("git", "show", "b:count")) >= floor
    count, *files = _inside(desk, "b", script).splitlines()
    assert int(count) >= floor
    assert all(re.fullmatch(r"(<\d+>)\1{4999}", line) for line in files), files


def _runs(desk: Desk, told: Mapping[str, int]) -> None:
    lines = "".join(f"{number}\n" for number in range(1, 5001))
    for branch in {"b1": 0, **told}:
        floor = told.get(branch, 0)
        if floor:
            assert int(desk.must("git", "show", f"{branch}:count")) >= floor
        script = f"cat count 2>/dev/null || echo 0; [ {floor} = 0 ] || cat d/{floor}"
        count, _, file = _inside(desk, branch, script).partition("\n")
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
        shown = _inside(desk, name, "cat one two 2>/dev/null | sha1sum; git status >&2")
        if "back" in told:
            lines = "".join(f"{number}\n" for number in range(1, 3001))
            whole = subprocess.run("sha1sum", input=lines.encode(), capture_output=True, check=True).stdout
            assert shown == whole.decode()


_JUDGES: Final = {"turns": _turns, "runs": _runs, "lands": _lands, "back": _back}
