"""One life of a repository on a machine whose power is cut again and again, and what is to hold after each."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.images import mounted_image
from conftest import UserRepo
from power_world import Desk, Machine

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
seq 3000 >"$HOME/own"; echo user >"$HOME/replaced"
sync -f .
"""

Told = Mapping[str, int]
"""By name, the last number that was acknowledged."""


@dataclass(frozen=True, slots=True)
class Story:
    """What goes on until the power goes, and what is judged afterwards.

    script: of the shell; says `ack NAME NUMBER` for what was acknowledged, and begins at $START. judge: raises
    AssertionError. own: directories whose list of names the story leaves as the user made it. cuts: how often
    the power goes in one life.
    """

    script: str
    judge: Callable[[Desk, Told], None]
    own: str = ". node_modules"
    cuts: int = 3


@contextmanager
def disk_images(place: Callable[[str], Path]) -> Iterator[Callable[[str, int], Path]]:
    """Images of a disk with the user's repository on it, by the kind of its file system, and who he is.

    place: makes a directory. One of btrfs lies on a disk that can clone it.
    """
    made: dict[tuple[str, int], Path] = {}
    outer: list[Path] = []
    with contextlib.ExitStack() as stack:

        def image(kind: str, owner: int = 0) -> Path:
            if kind == "btrfs" and not outer:
                outer.append(stack.enter_context(mounted_image("xfs", 2048)))
            if (kind, owner) not in made:
                above = outer[0] if kind == "btrfs" else place(kind)
                made[kind, owner] = _make_image(above / f"machine-{kind}-{owner}", kind, owner)
            return made[kind, owner]

        yield image


def _make_image(place: Path, kind: str, owner: int) -> Path:
    machine = Machine(place, kind)
    machine.format()
    machine.start()
    desk = own_desk(machine, owner)
    for directory in (desk.seen, machine.see(machine.disk / "home")):
        directory.mkdir()
        os.chown(directory, desk.owner, desk.owner)
    config = machine.see(machine.disk / "gitconfig")
    config.write_bytes((Path.home() / ".gitconfig").read_bytes())
    desk.must("sh", "-ec", _TEMPLATE, "sh", str(machine.disk / "gitconfig"))
    machine.off()
    return machine.image


def own_desk(machine: Machine, owner: int = 0) -> Desk:
    """The repository on a running machine, of root or of an ordinary user."""
    programs = Path(UserRepo(Path(), Path()).command()[0]).parent
    environment = {"PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    return Desk(machine, environment, owner)


def live(
    machine: Machine, image: Path, backend: str, story: Story, life: str = "0", *, owner: int = 0
) -> dict[str, int]:
    """One life of a repository; what was acknowledged in the end. A failure tells of the cut and what led to it."""
    dice = random.Random(f"{backend}{story.script}{life}")
    machine.copy_disk(image)
    told: dict[str, int] = {}
    machine.start()
    desk = own_desk(machine, owner)
    desk.must("sh", "-ec", f"git config overlayrun.backend {backend}; sync -f .")
    own = _own(desk, story)
    try:
        for cut in range(story.cuts):
            with desk.at_work(f"START={cut * 1000}; {story.script}") as work:
                work.expect(dice.choice(("overlayrun: ", "ack ")))
                time.sleep(dice.random() * _LONGEST)
                text = work.text()
                machine.cut()
            told |= _acknowledged(text)
            machine.start(dice.choice(_OPTIONS) if machine.kind == "ext4" else "rw")
            try:
                # What comes first after a boot looks after the store, be it a command or a run.
                desk.must("overlayrun", *dice.choice((["ls"], ["--rm", "--", "true"])))
                whole(desk)
                story.judge(desk, told)
                whole(desk)
                assert _own(desk, story) == own
            except AssertionError as err:
                err.add_note(f"{backend} {life}, cut {cut}, acknowledged {told}:\n{text[-3000:]}")
                raise
    finally:
        machine.off()
    return told


def _acknowledged(text: str) -> dict[str, int]:
    lines = [line.split() for line in text.splitlines() if line.startswith("ack ")]
    return {line[1]: int(line[2]) for line in lines if len(line) == 3}


def _own(desk: Desk, story: Story) -> str:
    """What the user had and no run may touch: his changes, staged and not, and files that git does not know."""
    files = "src tool README"
    script = f"git diff --cached HEAD -- {files}; git diff -- {files}; cat untracked .env node_modules/p/*"
    ours = ("m", "index ")
    shown = desk.must("sh", "-ec", f"{script}; ls -A {story.own}").splitlines()
    return "\n".join(line for line in shown if not line.startswith(ours))


def whole(desk: Desk) -> None:
    """Every ref is readable, and everything that it reaches is there."""
    done = desk.do("git", "fsck", "--full", "--strict", "--no-dangling")
    assert done.code == 0, str(done)
    assert done.out + done.err == ""


def inside(desk: Desk, branch: str, script: str) -> str:
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
