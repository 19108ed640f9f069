from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from overlayrun.store import pack
from overlayrun.store.pack import LOOSE_LIMIT, PENDING_BYTES, ObjectWriter, ShortRead, object_id, pieces_of

pytestmark = pytest.mark.shared  # bytes of a pack


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def _git(repo: Path, *args: str) -> bytes:
    return subprocess.check_output(["git", *args], cwd=repo)


def _objects(repo: Path) -> str:
    return str(repo / ".git/objects")


@pytest.mark.parametrize("count", [1, LOOSE_LIMIT, LOOSE_LIMIT + 1, 1000])
def test_git_reads_what_was_written(repo: Path, count: int) -> None:
    chance = random.Random(count)
    blobs = [chance.randbytes(chance.choice([0, 1, 15, 16, 127, 128, 3000, 40_000])) for _ in range(count)]
    with ObjectWriter(_objects(repo)) as writer:
        ids = [writer.add(b"blob", data) for data in blobs]
        writer.finish()
    _git(repo, "fsck", "--strict", "--full")
    for oid, data in list(zip(ids, blobs, strict=True))[:50]:
        assert _git(repo, "cat-file", "blob", oid.hex()) == data
    assert bool(list(Path(_objects(repo), "pack").glob("*.idx"))) == (len(set(ids)) > LOOSE_LIMIT)
    assert not list(Path(_objects(repo)).rglob("tmp_*"))


def test_much_data_is_not_kept_in_memory_until_the_end(repo: Path) -> None:
    with ObjectWriter(_objects(repo)) as writer:
        for number in range(3):
            writer.add(b"blob", random.Random(number).randbytes(PENDING_BYTES // 2))
        assert list(Path(_objects(repo), "pack").glob("tmp_pack_*"))
        writer.finish()
    _git(repo, "fsck", "--strict", "--full")


def test_one_writer_finishes_more_than_once(repo: Path) -> None:
    with ObjectWriter(_objects(repo)) as writer:
        first = writer.add(b"blob", b"1")
        writer.finish()
        second = writer.add(b"blob", b"2")
        assert writer.add(b"blob", b"1") == first
        writer.finish()
    assert _git(repo, "cat-file", "blob", second.hex()) == b"2"


def test_what_is_known_is_not_written(repo: Path) -> None:
    with ObjectWriter(_objects(repo), known=frozenset({object_id(b"blob", b"1")})) as writer:
        writer.trust(object_id(b"blob", b"2"))
        assert writer.add(b"blob", b"1") == object_id(b"blob", b"1")
        writer.add(b"blob", b"2")
        writer.finish()
    assert _git(repo, "count-objects") == b"0 objects, 0 kilobytes\n"


def test_a_file_that_shrinks_is_cut_off_again(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    with open(tmp_path / "f", "rb") as file, ObjectWriter(_objects(repo)) as writer:
        with pytest.raises(ShortRead):
            writer.add_file(pieces_of(file), 101)
        file.seek(0)
        oid = writer.add_file(pieces_of(file), 100)
        file.seek(0)
        assert writer.add_file(pieces_of(file), 100) == oid
        writer.finish()
    _git(repo, "fsck", "--strict", "--full")
    assert _git(repo, "cat-file", "blob", oid.hex()) == b"x" * 100


def test_an_error_leaves_no_files(repo: Path) -> None:
    def fail() -> None:
        with ObjectWriter(_objects(repo)) as writer:
            for number in range(LOOSE_LIMIT + 5):
                writer.add(b"blob", str(number).encode())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [path for path in Path(_objects(repo)).rglob("*") if path.is_file()]


def test_offsets_beyond_two_gigabytes_go_to_the_second_table() -> None:
    entries = [
        (bytes([n]) * 20, n, offset) for n, offset in enumerate((12, 0x7FFFFFFF, 0x80000000, 0x123456789A))
    ]
    index = pack._index(entries, b"c" * 20)
    count = len(entries)
    at = 8 + 1024 + count * 24
    small = struct.unpack(f">{count}I", index[at : at + 4 * count])
    large = struct.unpack(">2Q", index[at + 4 * count : at + 4 * count + 16])
    assert small == (12, 0x7FFFFFFF, 0x80000000, 0x80000001)
    assert large == (0x80000000, 0x123456789A)
