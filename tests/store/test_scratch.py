"""Directories for a moment: what a killed process left goes, what somebody works in stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overlayrun.store.merger import merge_once
from overlayrun.store.scratch import Scratch

from .history import History

_KILLED = """
import os, sys
from overlayrun.store.merger import MergeEngine
engine = MergeEngine(*sys.argv[1:3])
engine.merge(*sys.argv[2:])
os.kill(os.getpid(), 9)
"""


def _age(*places: Path) -> None:
    for place in places:
        os.utime(place, (time.time() - 600,) * 2)


@pytest.mark.shared
def test_the_next_merge_clears_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "repo")
    base = history.commit({"a": "1\n", ".gitattributes": "* text\n"})
    source = history.commit({"a": "2\n", ".gitattributes": "* text\n"}, base)
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places))
    argv = [sys.executable, "-c", _KILLED, history.git_dir, base, source]
    killed = subprocess.run(argv, env={**os.environ, "TMPDIR": str(places)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = places.iterdir()
    assert (left / "tree/.gitattributes").exists()
    another = places / "another"
    another.mkdir()
    with Scratch() as held:
        _age(left, another, Path(held.path))
        merge_once(history.git_dir, base, source)
        assert {str(path) for path in places.iterdir()} == {held.path, str(another)}
    assert list(places.iterdir()) == [another]


def test_what_is_young_or_a_link_is_left_alone(tmp_path: Path) -> None:
    """One that was made this moment may not be locked yet."""
    left = Path(Scratch(str(tmp_path)).path)  # it goes out of sight, and its descriptor stays
    young, link = left.with_name(f"{left.name}y"), left.with_name(f"{left.name}z")
    young.mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far/file").touch()
    link.symlink_to("far")
    _age(tmp_path / "far")
    Scratch(str(tmp_path)).remove()
    assert {left, young, link} < set(tmp_path.iterdir())
    assert (tmp_path / "far/file").exists()
