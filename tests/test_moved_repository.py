"""A repository at an odd path, or moved or copied with its state."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # paths that have moved

ODD = (
    b"a:b",
    b"a,b",
    b"a\\b",
    b"a b",
    b"a'\"b",
    b"a\xff\xfeb",
    b"a\tb",
    b"\xc3\xa9",
    b"a%b",
    b"-a",
    b"$x",
    b"a\\",
    b":",
    b"a\\:b,c",
)


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_repository_at_an_odd_path_works(repo: UserRepo, tmp_path: Path, name: bytes) -> None:
    moved = tmp_path / os.fsdecode(name)
    repo.root.rename(moved)
    odd = repo.at(moved)
    (moved / ".gitignore").write_text(".env\nmodules/\n")
    (moved / ".env").write_text("E\n")
    (moved / "modules").mkdir()
    (moved / "modules/m").write_text("M\n")
    (moved / "README").write_text("changed\n")
    done = odd.sh("cat README .env modules/m; git status --porcelain; echo x >new")
    assert done.code == 0, str(done)
    assert done.out == "changed\nE\nM\n"[: len(done.out)] or done.out.startswith("changed\nE\nM\n")
    assert odd.show("b", "new") == "x\n"
    odd.git("checkout", "-q", "--", "README")
    odd.commit("next", README="third\n")
    assert odd.inside("cat README", branch="c") == "third\n"
    assert odd.inside("cat new") == "x\n"


def test_repository_whose_path_has_a_line_break_gets_a_clear_line(repo: UserRepo, tmp_path: Path) -> None:
    moved = tmp_path / "a\nb"
    repo.root.rename(moved)
    done = repo.at(moved).overlayrun("--", "true")
    assert "Traceback" not in done.err, str(done)
    assert done.code == 0 or (done.code == 125 and "hint: " in done.err), str(done)


def test_a_moved_repository_goes_on(repo: UserRepo, tmp_path: Path) -> None:
    repo.inside("echo x >new; git add new; git commit -qm mine; echo y >more")
    repo.root.rename(tmp_path / "moved")
    moved = repo.at(tmp_path / "moved")
    assert (
        moved.inside("pwd; cat new more; git status --porcelain; echo z >last")
        == f"{moved.root}\nx\ny\n?? more\n"
    )
    assert moved.show("b", "last") == "z\n"


def test_a_copied_repository_is_independent(repo: UserRepo, tmp_path: Path) -> None:
    repo.inside(
        "echo x >new; rm README; mkdir -p src2; echo y >src2/f; rm -r src; mkdir src; echo z >src/only"
    )
    subprocess.run(["cp", "-a", str(repo.root), str(tmp_path / "copy")], check=True)
    copy = repo.at(tmp_path / "copy")
    done = copy.sh("cat new; ls . src; echo copy >where")
    assert done.code == 0, str(done)
    assert done.out.split() == ["x", ".:", "link", "new", "src", "src2", "tool.sh", "src:", "only"]
    repo.inside("echo original >where")
    assert (copy.show("b", "where"), repo.show("b", "where")) == ("copy\n", "original\n")
    assert set(copy.files("b")) == {"link", "new", "src/only", "src2/f", "tool.sh", "where"}


def _devices(place: str, names: list[str]) -> list[str]:
    modes = {name: os.lstat(f"{place}/{name}").st_mode for name in names}
    return [name for name, mode in modes.items() if stat.S_ISCHR(mode)]


def test_a_repository_copied_without_marks_is_not_taken_for_whole(repo: UserRepo, tmp_path: Path) -> None:
    """A copy by a tool that drops devices and attributes: deleted files may not come back in silence."""
    repo.inside("rm README; rm -r src; mkdir src; echo z >src/only")
    shutil.copytree(
        repo.root, tmp_path / "copy", symlinks=True, ignore=_devices, copy_function=shutil.copyfile
    )
    for path in [tmp_path / "copy/.git/overlayrun", *(tmp_path / "copy/.git/overlayrun").rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
    copy = repo.at(tmp_path / "copy")
    done = copy.sh("ls . src")
    if done.code == 0:
        assert set(copy.files("b")) == {"link", "src/only", "tool.sh"}, str(done)
