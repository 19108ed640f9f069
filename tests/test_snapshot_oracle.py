"""The same edits in a workspace and in a plain directory: the snapshot is what `git add -A` records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from snapshot_world import World, run_git

from overlayrun.model import CommitId, SnapshotReason

Edit = tuple[str, bytes, bytes]

_PARTS: Final = [b"a", b"b c", b"d", b"\xff\xfe", b"n\nl", b'q"\\', b"x.o", b"build", b"-e", b"*", b"f"]
_CONTENTS: Final = [b"", b"1\n", b"two\r\n", b"\0bin", b"long" * 500, b"1\n2\n"]
_PATTERNS: Final = [
    *(b"*.o", b"build/", b"/a", b"!x.o", b"a/**", b"**/d", b"!*", b"b*", b"f", b"!f/", b"*", b"/*/d"),
    *(b"[a-d]", b"#c", b"\\*", b"n?l", b"d/f", b"!d/f", b"a/*", b"!a/d", b"  ", b"-e ", b"**/build/**"),
]
_paths = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=3).map(b"/".join)
_ignore_paths = st.lists(st.sampled_from(_PARTS[:3]), max_size=2).map(
    lambda p: b"/".join([*p, b".gitignore"])
)
_contents = st.sampled_from(_CONTENTS)
_patterns = st.lists(st.sampled_from(_PATTERNS), min_size=1, max_size=4).map(b"\n".join)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "write", "append"]), _paths, _contents),
        st.tuples(st.just("write"), _ignore_paths, _patterns),
        st.tuples(st.sampled_from(["run", "norun", "remove", "remove", "mkdir"]), _paths, st.just(b"")),
        st.tuples(st.just("remove"), _ignore_paths, st.just(b"")),
        st.tuples(st.just("link"), _paths, st.sampled_from([b"a", b"../nowhere", b"/etc/passwd", b"\xff"])),
        st.tuples(st.just("rename"), _paths, _paths),
    ),
    max_size=14,
)


def apply(edits: Sequence[Edit]) -> None:
    """Do `edits` in the current directory; whatever stands in the way is replaced."""
    for verb, path, argument in edits:
        _VERBS[verb](path, argument)


def _clear(path: bytes) -> None:
    parts = path.split(b"/")
    for end in range(1, len(parts)):
        above = b"/".join(parts[:end])
        if os.path.islink(above) or os.path.isfile(above):
            os.unlink(above)
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)


def _remove(path: bytes, _: bytes = b"") -> None:
    _clear(path)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _write(path: bytes, content: bytes) -> None:
    _clear(path)
    if not os.path.isfile(path) or os.path.islink(path):
        _remove(path)
    with open(path, "wb") as file:
        file.write(content)


def _append(path: bytes, content: bytes) -> None:
    if os.path.isfile(path) and not os.path.islink(path):
        with open(path, "ab") as file:
            file.write(content)


def _link(path: bytes, text: bytes) -> None:
    _remove(path)
    os.symlink(text, path)


def _mkdir(path: bytes, _: bytes) -> None:
    _remove(path)
    os.mkdir(path)


def _chmod(mode: int) -> Callable[[bytes, bytes], None]:
    def change(path: bytes, _: bytes) -> None:
        with suppress(OSError):
            if os.path.isfile(path) and not os.path.islink(path):
                os.chmod(path, mode)

    return change


def _rename(path: bytes, new: bytes) -> None:
    if os.path.isfile(path) and not os.path.islink(path) and path != new and not new.startswith(path + b"/"):
        content = Path(os.fsdecode(path)).read_bytes()
        _remove(new)
        if os.path.isfile(path):
            os.rename(path, new)
        else:
            _write(new, content)


_VERBS: Final[dict[str, Callable[[bytes, bytes], None]]] = {
    **{"write": _write, "append": _append, "link": _link, "mkdir": _mkdir, "remove": _remove},
    **{"run": _chmod(0o755), "norun": _chmod(0o644), "rename": _rename},
}


def _in_directory(directory: Path, edits: Sequence[Edit]) -> None:
    before = Path.cwd()
    os.chdir(directory)
    try:
        apply(edits)
    finally:
        os.chdir(before)


def _commit(world: World, edits: Sequence[Edit], *, ignored_too: bool) -> CommitId:
    """Commit what `edits` make of nothing."""
    start = world.root / "start"
    shutil.rmtree(start, ignore_errors=True)
    start.mkdir()
    _in_directory(start, edits)
    env = {"GIT_INDEX_FILE": str(world.root / "index"), "GIT_DIR": str(world.repo / ".git")}
    run_git("read-tree", "--empty", cwd=start, env=env)
    run_git("add", "-A", *["-f"] * ignored_too, cwd=start, env=env | {"GIT_WORK_TREE": str(start)})
    tree = run_git("write-tree", cwd=start, env=env).decode().strip()
    return CommitId(world.git("commit-tree", tree, "-m", "start"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("oracle"))


@seed(SHARE)
@settings(
    max_examples=40,  # each of both users others
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(start=EDITS, ignored_too=st.booleans(), first=EDITS, second=EDITS)
def test_a_snapshot_is_what_git_add_records(
    world: World, *, start: list[Edit], ignored_too: bool, first: list[Edit], second: list[Edit]
) -> None:
    base = _commit(world, start, ignored_too=ignored_too)
    world.checkout(base)
    for ref in ("refs/overlayrun/snapshots/w1", "refs/heads/agent/one"):
        world.git("update-ref", "-d", ref)
    plain = world.root / "plain"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(world.root / "lower", plain, symlinks=True)
    for edits in (first, second):
        world.inside(lambda edits=edits: apply(edits))  # type: ignore[misc]  # bound to this round
        _in_directory(plain, edits)
        taken = world.snapshot(SnapshotReason.REQUEST, "round")
        assert world.files(taken.tree) == world.files(world.add_all(plain, base))
        assert taken.left_out == ()
        assert taken.tip is not None
        assert world.git("rev-parse", f"{taken.tip}^{{tree}}") == taken.tree
        changed = world.git("diff-tree", "-r", "--no-renames", "--name-status", base, taken.tree).splitlines()
        counts = [sum(line[0] in kinds for line in changed) for kinds in ("A", "MT", "D")]
        assert counts == [taken.changes.added, taken.changes.modified, taken.changes.deleted]
