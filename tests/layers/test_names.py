from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlayrun.layers.names import is_dotgit, is_dotgitmodules

BARRED = [
    *(
        ".git",
        ".GIT",
        ".Git",
        ".git ",
        ".git.",
        ".git . .",
        "git~1",
        "GIT~1",
        ".git::$INDEX_ALLOCATION",
        ".git:x",
    ),
    *(
        ".gi\u200ct",
        ".g\u200dit",
        "\ufeff.git",
        ".git\u202e",
        ".g\u206fit",
        "x\\.git",
        ".git\\x",
    ),
]
FINE = [
    *(
        "git",
        ".gitx",
        ".gitignore",
        "git~2",
        "..git",
        ".git-",
        "a.git",
        ".g\u0131t",
        ".gïT",
        "x:.git",
        ".",
        "x",
    ),
]


def _fsck(path: Path, name: bytes) -> str:
    blob = subprocess.check_output(["git", "hash-object", "-w", "--stdin"], cwd=path, input=b"x").strip()
    tree = b"100644 %b\0%b" % (name, bytes.fromhex(blob.decode()))
    command = ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"]
    subprocess.run(command, cwd=path, input=tree, check=True, capture_output=True)
    done = subprocess.run(
        ["git", "fsck", "--strict", "--dangling"], cwd=path, capture_output=True, check=False
    )
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("name", BARRED)
def test_what_fsck_calls_dotgit_is_barred(tmp_path: Path, name: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "hasDotgit" in _fsck(tmp_path, name.encode())
    assert is_dotgit(name.encode())


@pytest.mark.parametrize("name", FINE)
def test_what_fsck_lets_pass_is_not_barred(tmp_path: Path, name: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "hasDotgit" not in _fsck(tmp_path, name.encode())
    assert not is_dotgit(name.encode())


def test_bytes_that_are_no_text() -> None:
    assert not is_dotgit(b".g\xffit")
    assert is_dotgit(b"\xff\\.git")


@pytest.mark.parametrize("name", [".gitmodules", ".GitModules ", "gitmod~1", "GI7EBA~1", ".gitmod\u200cules"])
def test_spellings_of_gitmodules(name: str) -> None:
    assert is_dotgitmodules(name.encode())


@pytest.mark.parametrize("name", ["gitmodules", ".gitmodule", "gitmod~5", ".gitmodulesx", ".gitignore"])
def test_other_names_are_no_gitmodules(name: str) -> None:
    assert not is_dotgitmodules(name.encode())
