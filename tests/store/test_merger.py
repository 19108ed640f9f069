from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlayrun.model import CommitId
from overlayrun.store.merger import Conflict, merge_trees


class Place:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", "-b", "main")

    @property
    def git_dir(self) -> str:
        return str(self.path / ".git")

    def git(self, *args: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@x"]
        return subprocess.check_output(["git", *identity, *args], cwd=self.path).decode().strip()

    def commit(self, files: dict[str, str], *parents: CommitId) -> CommitId:
        self.git("read-tree", "--empty")
        for name, content in files.items():
            done = subprocess.run(
                ["git", "hash-object", "-w", "--stdin"],
                cwd=self.path,
                input=content.encode(),
                capture_output=True,
                check=True,
            )
            self.git("update-index", "--add", "--cacheinfo", f"100644,{done.stdout.decode().strip()},{name}")
        tree = self.git("write-tree")
        above = [word for parent in parents for word in ("-p", parent)]
        return CommitId(self.git("commit-tree", tree, *above, "-m", "x"))

    def show(self, tree: str | None, name: str) -> str:
        assert tree
        return self.git("show", f"{tree}:{name}")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


LINES = "".join(f"{n}\n" for n in range(20))


def test_disjoint_changes_merge(place: Place) -> None:
    base = place.commit({"a": LINES, "b": "1\n"})
    target = place.commit({"a": "top\n" + LINES, "b": "1\n"}, base)
    source = place.commit({"a": LINES + "end\n", "b": "2\n", "c": "3\n"}, base)
    merged = merge_trees(place.git_dir, base, target, source)
    assert merged.conflicts == ()
    assert place.show(merged.tree, "a") == f"top\n{LINES}end"
    assert (place.show(merged.tree, "b"), place.show(merged.tree, "c")) == ("2", "3")


def test_conflicts_are_named_by_path_and_kind(place: Place) -> None:
    base = place.commit({"a": "1\n", "b": "1\n", "odd name": "1\n"})
    target = place.commit({"a": "2\n", "odd name": "t\n", "new": "t\n"}, base)
    source = place.commit({"a": "3\n", "b": "2\n", "odd name": "1\n", "new": "s\n"}, base)
    merged = merge_trees(place.git_dir, base, target, source)
    assert merged.tree is None
    assert merged.conflicts == (
        Conflict(b"a", "contents"),
        Conflict(b"b", "modify/delete"),
        Conflict(b"new", "add/add"),
    )
    assert any("CONFLICT" in message for message in merged.messages)


def test_renames_follow(place: Place) -> None:
    base = place.commit({"old": LINES})
    target = place.commit({"new": LINES}, base)
    source = place.commit({"old": LINES + "end\n"}, base)
    merged = merge_trees(place.git_dir, base, target, source)
    assert place.show(merged.tree, "new").endswith("end")


def test_the_wanted_base_need_not_be_the_natural_one(place: Place) -> None:
    base = place.commit({"a": "1\n", "b": "1\n"})
    dirty = place.commit({"a": "dirty\n", "b": "1\n"}, base)
    source = place.commit({"a": "dirty\n", "b": "2\n"}, dirty)
    merged = merge_trees(place.git_dir, dirty, base, source)
    assert (place.show(merged.tree, "a"), place.show(merged.tree, "b")) == ("1", "2")
    assert place.git("for-each-ref") == ""


def test_attributes_come_from_the_target_alone(place: Place) -> None:
    (place.path / ".gitattributes").write_text("* -merge\n")  # the user's own, uncommitted
    rule = {"d/.gitattributes": "u merge=union\n"}
    base = place.commit({**rule, "d/u": "0\n"})
    target = place.commit({**rule, "d/u": "0\nt\n"}, base)
    source = place.commit({"d/.gitattributes": "u -merge\n", "d/u": "0\ns\n"}, base)
    merged = merge_trees(place.git_dir, base, target, source)
    assert place.show(merged.tree, "d/u") == "0\nt\ns"
    other = merge_trees(place.git_dir, base, source, target)
    assert other.conflicts == (Conflict(b"d/u", "binary"),)


def test_a_source_chooses_no_driver_of_the_users(place: Place) -> None:
    place.git("config", "merge.run.driver", f"touch {place.path}/ran; cat %A >/dev/null")
    base = place.commit({"a": "1\n"})
    target = place.commit({"a": "2\n"}, base)
    source = place.commit({"a": "3\n", ".gitattributes": "a merge=run\n"}, base)
    assert merge_trees(place.git_dir, base, target, source).conflicts == (Conflict(b"a", "contents"),)
    assert not (place.path / "ran").exists()
    target = place.commit({"a": "2\n", ".gitattributes": "a merge=run\n"}, base)
    assert merge_trees(place.git_dir, base, target, source).conflicts == ()
    assert (place.path / "ran").exists()


def test_the_users_files_index_and_refs_stay(place: Place) -> None:
    base = place.commit({"a": "1\n"})
    index = (place.path / ".git/index").read_bytes()
    source = place.commit({"a": "1\n", "b": "2\n"}, base)
    place.git("read-tree", base)
    index = (place.path / ".git/index").read_bytes()
    merge_trees(place.git_dir, base, base, source)
    assert (place.path / ".git/index").read_bytes() == index
    assert [path.name for path in place.path.iterdir()] == [".git"]


def test_attributes_in_the_users_index_do_not_count(place: Place) -> None:
    base = place.commit({"u": "0\n"})
    target = place.commit({"u": "0\nt\n"}, base)
    source = place.commit({"u": "0\ns\n"}, base)
    place.commit({".gitattributes": "u merge=union\n"})  # leaves its tree in the index
    assert merge_trees(place.git_dir, base, target, source).conflicts == (Conflict(b"u", "contents"),)
