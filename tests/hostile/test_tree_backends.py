"""Workspaces whose tree is a directory or subvolume of its own: what its owner, inside, can do to the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends.images import OWNER, make_repo, mounted_image
from conftest import UserRepo

from hostile.world import PAYLOADS

pytestmark = pytest.mark.root
_READ_ONLY = """
import fcntl, os, struct, sys
for path, request, name in ((".", 0x5000940E, b"made"), ("made", 0x5000940E, b"deep"), (".", 0x50009417, b"kept")):
    fd = os.open(path, os.O_RDONLY)
    made = struct.pack("=qQQ32x4040s", os.open("made", os.O_RDONLY), 0, 2, name) if request & 0x10 else struct.pack("=q4088s", 0, name)
    fcntl.ioctl(fd, request, bytearray(made))
    if request == 0x5000940E:
        open(path + "/" + name.decode() + "/file", "w").write("x")
for path in ("made/deep", "made", "."):
    fcntl.ioctl(os.open(path, os.O_RDONLY), 0x4008941A, struct.pack("=Q", 2))
"""


@pytest.fixture(scope="module")
def repo(_repo_to_copy: Path) -> Iterator[UserRepo]:
    """An ordinary user's, on a btrfs that lets users remove their subvolumes."""
    with mounted_image("btrfs") as disk:
        subprocess.run(["mount", "-o", "remount,user_subvol_rm_allowed", str(disk)], check=True)
        yield make_repo(_repo_to_copy, disk / "user", is_owned=True)


def _tree(repo: UserRepo, branch: str) -> Path:
    return repo.workspace(branch) / "upper"


@pytest.mark.parametrize(
    "options", [("--backend", "btrfs"), ("--home", "private")], ids=lambda words: words[1]
)
def test_nobody_inside_reaches_a_subvolume(repo: UserRepo, options: tuple[str, ...]) -> None:
    """The kernel asks who owns it alone: by its number it could be removed from anywhere."""
    victim, name = f"victim-{options[1]}", f"evil-{options[1]}"
    repo.inside("echo work >work", "--backend", "btrfs", branch=victim)
    program = (PAYLOADS / "change_volumes.py").read_text()
    there = "cd ~" if "private" in options else "true"
    told = json.loads(repo.inside(f"{there}; python3 - <<'end'\n{program}\nend", *options, branch=name))
    flags = {told.pop("immutable"), told.pop("append-only")}
    assert flags == {"EPERM"}
    assert told.pop("no copy-on-write") == "done"
    assert told.pop("clone") == "100000"
    assert told.pop("destroy") == told.pop("destroy, with more bits") == ["ENOTTY"]
    assert set(told.values()) == {"ENOTTY"}
    assert (_tree(repo, victim) / "work").read_text() == "work\n"
    if "btrfs" in options:
        assert {"immutable/file", "no copy-on-write/file", "clone"} <= repo.files(name).keys()
        assert repo.overlayrun("fork", name, "-b", "fork").code == 0
        assert repo.inside("wc -c <'no copy-on-write/file'", branch="fork") == "100000\n"
        _is_gone(repo, "fork")
    _is_gone(repo, name)
    _is_gone(repo, victim)


def test_a_read_only_subvolume_is_removed_with_its_branch(repo: UserRepo) -> None:
    """As somebody with the filter switched off, or the user on the host, can leave it."""
    repo.inside("echo work >work", "--backend", "btrfs", branch="shut")
    become = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups", sys.executable]
    made = subprocess.run(
        [*become, "-c", _READ_ONLY], cwd=_tree(repo, "shut"), check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    with pytest.raises(OSError, match="Read-only"):
        (_tree(repo, "shut") / "more").touch()
    _is_gone(repo, "shut")


def _is_gone(repo: UserRepo, branch: str) -> None:
    place = repo.workspace(branch)
    done = repo.overlayrun("rm", "--force", branch)
    assert done.code == 0, str(done)
    assert "rm:" not in done.err, done.err
    assert not place.exists()
    assert not [name for name in os.listdir(place.parent) if name.startswith(".")]
