"""Random work of an agent and of the user: a sync gives what stash, merge and stash pop give in a plain clone."""

from __future__ import annotations

import itertools
import random
import shlex
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE, UserRepo
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

_NAMES: Final = (f"round-{number}" for number in itertools.count())
_FILES: Final = tuple(f"{directory}{number}" for directory in ("", "d/", "e/f/") for number in range(6))


def _script(seed: int, who: str) -> str:
    """Shell lines of a few random changes, each to a file of its own; the two sides meet in some."""
    chance = random.Random(f"{seed} {who}")
    lines = []
    for path in chance.sample(_FILES, 4):
        place = "1" if who == "agent" else "$"
        changes = [
            f"sed -i '{place}s/.*/{who}/' {path}",
            f"rm -f {path}",
            f"chmod +x {path}",
            f"ln -sf {who} {path}",
            f"mkdir -p new-{who}; mv {path} new-{who}/",
            f"printf '{who}\\0{chance.random()}' >{path}",
            f"rm -f {path}; mkdir -p {path}; echo {who} >{path}/{who}",
        ]
        change = chance.choices(changes, [8, 2, 2, 1, 2, 1, 1])[0]
        lines.append(f"if [ -f {path} ] && [ ! -L {path} ]; then {change}; fi")
    lines.append(f"mkdir -p d; echo {seed} >d/only-{who}-{seed}")
    return "; ".join(lines)


def _merged_by_git(repo: UserRepo, place: Path, base: str, commits: str, work: str) -> str | None:
    """Tree of HEAD and tree of the files, after stash, merge and stash pop; None where any of it conflicts."""
    repo.git("clone", "--quiet", str(repo.root), str(place))
    clone = repo.at(place)
    clone.git("checkout", "-q", "-B", "work", base)
    script = [
        "set -e",
        f"{commits}; git add -A; git commit -q --allow-empty -m agent" if commits else ":",
        f"{work}; git add -A",
        "git stash -q; git merge -q -m merge origin/main >/dev/null 2>&1 || exit 7",
        "git stash pop -q >/dev/null 2>&1 || exit 7",
        "git add -A",
    ]
    clone.write(".git/script", "\n".join(script))
    answer = clone.git("-c", "alias.play=!sh .git/script && echo done || test $? = 7", "play")
    return clone.git("rev-parse", "HEAD^{tree}") + clone.git("write-tree") if answer else None


@pytest.fixture
def wide(repo: UserRepo) -> UserRepo:
    """A repository whose files have lines enough for both sides."""
    for path in _FILES:
        repo.write(path, "".join(f"{path} {number}\n" for number in range(12)))
    repo.commit("wide")
    return repo


@seeded(SHARE)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10_000), has_commits=st.booleans())
def test_a_sync_gives_what_git_gives(wide: UserRepo, seed: int, has_commits: bool) -> None:  # noqa: FBT001
    branch = next(_NAMES)
    base = wide.git("rev-parse", "main")
    commits = _script(seed, "agent") if has_commits else ""
    work = _script(seed + 1, "agent")
    begin = f"{commits}; git add -A; git commit -q --allow-empty -m agent" if has_commits else ":"
    wide.sh(f"{begin}; {work}", branch=branch)
    tree = wide.git("rev-parse", f"{branch}^{{tree}}")
    wide.git("config", f"alias.play{seed}", f"!sh -c {shlex.quote(_script(seed, 'user'))}")
    wide.git(f"play{seed}")
    wide.commit("user")
    expected = _merged_by_git(wide, wide.home.parent / branch, base, commits, work)
    done = wide.overlayrun("sync", branch)
    assert done.code == (0 if expected else 1), (expected, str(done))
    inside = wide.inside("git rev-parse HEAD^{tree}; git add -A; git write-tree; git reset -q", branch=branch)
    if expected is None:
        assert wide.git("rev-parse", f"{branch}^{{tree}}") == tree
    else:
        assert inside.replace("\n", "") == expected
        assert wide.git("rev-parse", f"{branch}^{{tree}}") == expected[40:]
    wide.git("reset", "-q", "--hard", base)
    wide.git("clean", "-fdq")
