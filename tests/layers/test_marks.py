from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayrun.layers.marks import is_opaque, is_whiteout, is_xattr_whiteout, set_opaque, write_whiteout


def test_a_whiteout_is_told_from_other_entries(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    write_whiteout(fd, "gone")
    os.close(fd)
    write_whiteout(None, os.fsencode(tmp_path / "gone too"))
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    found = {path.name for path in tmp_path.iterdir() if is_whiteout(path.lstat())}
    assert found == {"gone", "gone too"}
    assert not is_whiteout(Path("/dev/null").stat())


def test_only_an_empty_file_with_the_attribute_is_a_whiteout(tmp_path: Path) -> None:
    for name, content in {"marked": "", "full": "x", "plain": ""}.items():
        (tmp_path / name).write_text(content)
        if name != "plain":
            os.setxattr(tmp_path / name, "user.overlay.whiteout", b"")
    found = {path.name for path in tmp_path.iterdir() if is_xattr_whiteout(str(path), path.lstat())}
    assert found == {"marked"}


@pytest.mark.parametrize(("value", "opaque"), [(b"y", True), (b"x", False), (b"", False), (None, False)])
def test_only_y_is_opaque(tmp_path: Path, value: bytes | None, *, opaque: bool) -> None:
    if value is not None:
        os.setxattr(tmp_path, "user.overlay.opaque", value)
    assert is_opaque(str(tmp_path)) is opaque


def test_a_directory_is_made_opaque(tmp_path: Path) -> None:
    set_opaque(str(tmp_path))
    fd = os.open(tmp_path, os.O_RDONLY)
    assert is_opaque(fd)
    os.close(fd)
