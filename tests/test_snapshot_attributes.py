"""Conversions by attributes: the blob is what `git add` stores, by the base's rules; nothing runs here."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from snapshot_world import World

from overlayrun.collector import LeftOut, LeftOutReason
from overlayrun.model import CommitId, SnapshotReason

pytestmark = pytest.mark.shared

RULES = """\
*.txt text
*.auto text=auto
*.crlf text eol=crlf
*.id ident
*.utf16 text working-tree-encoding=UTF-16LE-BOM
*.bin -text
*.mac [attr]unused
sub/*.txt -text
*.unknown filter=nobody
"""
FILES = {
    "a.txt": b"one\r\ntwo\r\n",
    "b.txt": b"one\ntwo\n",
    "c.auto": b"one\r\ntwo\r\n",
    "d.auto": b"\0one\r\ntwo\r\n",
    "kept.auto": b"one\r\nmore\r\n",
    "e.crlf": b"one\r\ntwo\n",
    "f.id": b"$Id: 0123456789abcdef $ x\n",
    "g.utf16": "one\r\ntwo\r\n".encode("utf-16"),
    "h.bin": b"one\r\n",
    "sub/i.txt": b"one\r\n",
    "sub/deep/j.txt": b"one\r\n",
    "k.unknown": b"one\r\n",
    "plain": b"one\r\n",
    'odd "name"\n\\.txt': b"one\r\n",
}


def compare(world: World, files: dict[str, bytes], tmp_path: Path) -> None:
    """Write `files` in the workspace and in a plain copy; both must give one tree."""
    plain = tmp_path / "plain"
    shutil.copytree(world.root / "lower", plain)

    def write() -> None:
        for name, content in files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)

    world.inside(write)
    for name, content in files.items():
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_bytes(content)
    taken = world.snapshot()
    assert world.job.base
    assert world.files(taken.tree) == world.files(world.add_all(plain, world.job.base))
    assert taken.left_out == ()
    assert "clean" not in world.fsck()


def test_rules_of_the_base_convert_as_git_add_does(tmp_path: Path) -> None:
    base: dict[str, str | bytes] = {
        ".gitattributes": RULES,
        "kept.auto": b"one\n",
        "sub/deep/.gitattributes": "*.txt text\n",
    }
    world = World.make(tmp_path, base)
    # A CRLF file that was stored as such before the rule came: git leaves it alone.
    blob = world.git("hash-object", "-w", "--stdin", data=b"old\r\n")
    world.git("update-index", "--cacheinfo", f"100644,{blob},kept.auto")
    world.git("commit", "-qm", "raw CRLF")
    world.checkout(CommitId(world.git("rev-parse", "HEAD")))
    compare(world, FILES, tmp_path)


@pytest.mark.parametrize("value", ["true", "input", "false"])
def test_autocrlf_without_any_rule(tmp_path: Path, value: str) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.git("config", "core.autocrlf", value)
    compare(world, FILES, tmp_path)


def test_info_attributes_count(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    (world.repo / ".git/info/attributes").write_text(RULES)
    compare(world, FILES, tmp_path)


def test_attributes_that_the_agent_adds_are_data(tmp_path: Path) -> None:
    world = World.make(tmp_path, {"x": "1\n"})
    world.sh(r"printf '* text\n' > .gitattributes; printf 'a\r\n' > a.txt")
    taken = world.snapshot()
    assert world.content(taken.tree, "a.txt") == b"a\r\n"
    assert world.content(taken.tree, ".gitattributes") == b"* text\n"


def test_attributes_that_the_agent_removes_still_hold(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "*.txt text\n", "d/.gitattributes": "*.md text\n"})
    world.sh(r"rm -r .gitattributes d; mkdir d; printf 'a\r\n' > d/a.txt; printf 'a\r\n' > d/a.md")
    taken = world.snapshot()
    assert world.names(taken.tree) == {"d/a.txt", "d/a.md"}
    assert [world.content(taken.tree, name) for name in ("d/a.txt", "d/a.md")] == [b"a\n", b"a\n"]


def test_a_changed_attributes_file_is_converted_itself(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "* text=auto\n"})
    world.sh(
        r"printf '*.x text\r\n' > .gitattributes; mkdir -p sub/.gitattributes; echo 1 > sub/.gitattributes/f"
    )
    taken = world.snapshot()
    assert world.content(taken.tree, ".gitattributes") == b"*.x text\n"
    assert "sub/.gitattributes/f" in world.names(taken.tree)


def test_bytes_that_do_not_fit_their_encoding_are_kept_and_told(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "*.u16 text working-tree-encoding=UTF-16\n*.txt text\n"})
    world.sh(r"printf 'no byte order mark' > bad.u16; printf 'a\r\n' > good.txt")
    taken = world.snapshot()
    assert world.content(taken.tree, "bad.u16") == b"no byte order mark"
    assert world.content(taken.tree, "good.txt") == b"a\n"
    assert any("bad.u16" in note for note in taken.notes)


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="git-lfs is not installed")
def test_lfs_stores_what_git_lfs_stores(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "*.big filter=lfs diff=lfs merge=lfs -text\n"})
    world.git("lfs", "install", "--local")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n".encode()
    files = {
        "a.big": b"x\r\n" * 1000,
        "empty.big": b"",
        "pointer.big": pointer,
        "huge.big": b"12345678" * 5_000_000,
    }
    compare(world, files, tmp_path)
    digest = hashlib.sha256(files["huge.big"]).hexdigest()
    other = World.make(tmp_path / "other", {".gitattributes": "*.big filter=lfs\n"})
    other.git("lfs", "install", "--local")
    other.inside(lambda: Path("huge.big").write_bytes(files["huge.big"]))
    other.snapshot()
    stored = other.repo / ".git/lfs/objects" / digest[:2] / digest[2:4] / digest
    assert stored.read_bytes() == files["huge.big"]


def test_an_lfs_rule_without_the_driver_stores_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")  # where Debian's git-lfs configures its driver
    world = World.make(tmp_path, {".gitattributes": "*.big filter=lfs -text\n"})
    world.sh("echo content > a.big")
    assert world.content(world.snapshot().tree, "a.big") == b"content\n"


def secret(tmp_path: Path, **config: str) -> World:
    """Make a world whose base sends *.key through the user's filter `seal`."""
    world = World.make(tmp_path, {".gitattributes": "*.key filter=seal text\n", "old.key": "sealed\n"})
    for key, value in config.items():
        world.git("config", f"filter.seal.{key}", value)
    world.sh("echo open > new.key; echo open > old.key")
    return world


def test_a_filter_of_the_users_runs_in_the_sandbox(tmp_path: Path) -> None:
    world = secret(tmp_path, clean="tr a-z A-Z; printf '%%s\\r\\n' %f; ls -d ../merged >&2")
    world.job = replace(world.job, run_inside=world.run_inside)
    taken = world.snapshot()
    assert world.content(taken.tree, "new.key") == b"OPEN\nnew.key\n"
    assert taken.left_out == ()


@pytest.mark.parametrize("config", [{"clean": "touch {here}/ran"}, {"process": "touch {here}/ran"}])
def test_a_filter_without_sandbox_leaves_the_old_version_and_runs_nothing(
    tmp_path: Path, config: dict[str, str]
) -> None:
    world = secret(tmp_path, **{key: value.format(here=tmp_path) for key, value in config.items()})
    taken = world.snapshot()
    assert world.content(taken.tree, "old.key") == b"sealed\n"
    assert "new.key" not in world.names(taken.tree)
    assert taken.left_out == (
        LeftOut(b"new.key", LeftOutReason.FILTER),
        LeftOut(b"old.key", LeftOutReason.FILTER),
    )
    assert not (tmp_path / "ran").exists()
    assert b"open" not in subprocess.check_output(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=world.repo
    )


def test_a_filter_that_fails_leaves_the_old_version(tmp_path: Path) -> None:
    world = secret(tmp_path, clean="cat; exit 3")
    world.job = replace(world.job, run_inside=world.run_inside)
    taken = world.snapshot()
    assert world.content(taken.tree, "old.key") == b"sealed\n"
    assert [one.path for one in taken.left_out] == [b"new.key", b"old.key"]


def test_converted_files_come_from_the_cache_too(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "*.txt text\n"})
    world.sh(r"printf 'a\r\n' > a.txt; printf 'b\r\n' > b.txt; touch -d '1 hour ago' .")
    first = world.snapshot(SnapshotReason.REQUEST, "1")
    world.sh(r"printf 'c\r\n' > b.txt")
    second = world.snapshot(SnapshotReason.REQUEST, "2")
    assert world.content(first.tree, "b.txt") == b"b\n"
    assert [world.content(second.tree, name) for name in ("a.txt", "b.txt")] == [b"a\n", b"c\n"]


def test_no_scratch_files_are_left(tmp_path: Path) -> None:
    world = World.make(tmp_path, {".gitattributes": "*.txt text\n"})
    world.sh(r"printf 'a\r\n' > a.txt")
    world.snapshot()
    assert {path.name for path in Path(world.job.hashes).parent.iterdir()} == {"hashes.json"}
    assert not (world.repo / ".git/index.lock").exists()


def test_a_filtered_file_that_git_converts_too_is_not_filtered_again_here(tmp_path: Path) -> None:
    world = secret(tmp_path, clean=f"echo ran >> {tmp_path}/ran; printf 'x\\r\\n'")
    world.job = replace(world.job, run_inside=world.run_inside)
    assert world.content(world.snapshot().tree, "new.key") == b"x\n"
    assert (tmp_path / "ran").read_text().splitlines() == ["ran"] * 2  # once for each of two files
