"""The power is cut while somebody writes in a folder: what a snapshot holds is there, and its git works on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import UserRepo
from power_world import Desk, Machine

_TEMPLATE = """
mkdir -p "$HOME" .; cp "$1" "$HOME/.gitconfig"
git init -qb main; mkdir src; for i in 1 2 3; do seq 5000 >src/f$i; done; git add -A; git commit -qm first; sync -f .
"""
# Acknowledged is what git shows in the branch; the stash is nowhere else.
_FIRST = """
set -e; R=$PWD; overlayrun open; mkdir .overlay/branches/b; cd .overlay/branches/b
seq 9000 >src/f1; git add -A; git commit -qm inside; echo stashed >src/f2; git stash -q
seq 7000 >src/f3; mkdir d; seq 8000 >d/new; echo all >last
until git -C "$R" cat-file -e b:last; do sleep 0.05; done 2>/dev/null
seq 10 >src/f3; echo ready; sleep 100
"""
_AFTER = """
set -e; R=$PWD; overlayrun ls; overlayrun open; cd .overlay/branches/b
seq 9000 | cmp - src/f1; seq 8000 | cmp - d/new; seq 5000 | cmp - src/f2; cat last
test "$(wc -l <src/f3)" = 7000 || test "$(wc -l <src/f3)" = 10
git log --format=%s -1; git show stash:src/f2; git fsck --no-dangling
echo more >more; git add -A; git commit -qm after; cd "$R"; overlayrun open --stop
git show b:more; git fsck --no-dangling
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "machine", "ext4")
    made.format()
    yield made
    made.off()


@pytest.mark.root
def test_a_folder_goes_on_after_a_power_cut(machine: Machine, repo: UserRepo) -> None:
    desk = Desk(machine, repo.env)
    machine.start()
    machine.see(desk.root).mkdir()
    desk.must("sh", "-ec", _TEMPLATE, "sh", str(repo.home / ".gitconfig"))
    with desk.at_work(_FIRST) as work:
        work.expect("ready")
        machine.cut()
    machine.start()
    told = desk.do("sh", "-c", _AFTER)
    assert told.code == 0, str(told)
    assert "went through a power cut" in told.err
    said = told.out.split("\n")
    assert [line for line in said if line in ("all", "inside", "stashed", "more")] == [
        *("all", "inside", "stashed", "more"),
    ]
