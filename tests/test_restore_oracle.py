"""Random edits through two runs and a restore, carried files beside them: the trees are those of a plain clone."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE, UserRepo
from hypothesis import HealthCheck, assume, given, seed, settings
from test_snapshot_oracle import EDITS, Edit

_NAMES: Final = (f"round-{number}" for number in itertools.count())
_APPLY: Final = (
    "import ast, sys; sys.path.insert(0, sys.argv[1]); "
    "from test_snapshot_oracle import apply; apply(ast.literal_eval(sys.stdin.read()))"
)


@pytest.fixture
def carrying(repo: UserRepo) -> UserRepo:
    """A repository with an ignored directory beside its files."""
    repo.commit("ignore", **{".gitignore": "cache/\n"})
    repo.write("cache/x", "host\n")
    return repo


def _apply(repo: UserRepo, branch: str, edits: list[Edit]) -> None:
    tests = str(Path(__file__).parent)  # which root's nobody may not be able to read
    words = [sys.executable, "-c", _APPLY, tests]
    done = repo.overlayrun("-b", branch, "--bind-ro", tests, "--", *words, data=repr(edits))
    assert done.code == 0, str(done)


def _plain_tree(repo: UserRepo, place: Path, edits: list[Edit]) -> str:
    """Tree of what `git add -A` records after the same edits in a clone."""
    repo.git("clone", "--quiet", str(repo.root), str(place))
    clone = repo.at(place)
    words = [sys.executable, "-c", _APPLY, str(Path(__file__).parent)]
    clone.write(".git/edits", repr(edits))
    clone.git("-c", f"alias.edit=!{' '.join(map(repr, words))} <.git/edits", "edit")
    clone.git("add", "-A")
    return clone.git("write-tree")


@seed(SHARE)
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(first=EDITS, second=EDITS)
def test_a_restore_gives_the_tree_of_that_moment(
    carrying: UserRepo, first: list[Edit], second: list[Edit]
) -> None:
    branch = next(_NAMES)
    _apply(carrying, branch, first)
    tree = carrying.git("rev-parse", f"{branch}^{{tree}}")
    assert tree == _plain_tree(carrying, carrying.home.parent / branch, first)
    assume(carrying.git("rev-parse", branch) != carrying.git("rev-parse", "main"))
    taken = len(carrying.snapshots(branch))
    carrying.inside("echo branch >cache/x", branch=branch)
    _apply(carrying, branch, second)
    back = len(carrying.snapshots(branch)) - taken
    done = carrying.overlayrun("restore", branch, f"@{{{back}}}")
    assert done.code == 0, str(done)
    assert carrying.git("rev-parse", f"{branch}^{{tree}}") == tree
    assert carrying.inside("cat cache/x", branch=branch) == "branch\n"
    assert (carrying.root / "cache/x").read_text() == "host\n"
