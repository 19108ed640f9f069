"""Delivery: a branch moves with the files of its working trees, or nothing moves and what is in the way is named."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from conftest import UserRepo

from overlayrun.errors import RefMoved
from overlayrun.model import BranchName, CommitId
from overlayrun.reconcile.deliver import Held, deliver
from overlayrun.workspace.layout import open_state

pytestmark = pytest.mark.shared  # which files of the user's move

MAIN: Final = BranchName("main")
START: Final = {
    "a.py": "one\n",
    "b.py": "two\n",
    "gone": "to be deleted\n",
    "dir/file": "below\n",
    "other": "untouched\n",
    ".gitignore": "*.log\nbuild/\n",
}


class Place:
    """A repository with main checked out, and a commit on top of main that changes files."""

    def __init__(self, repo: UserRepo) -> None:
        self.repo = repo
        self.old = CommitId(repo.commit("start", **START))
        self.new = self.next({"a.py": "1\n", "b.py": "2\n", "gone": None, "made/new": "new\n"})

    def next(self, files: dict[str, str | None], mode: str = "100644") -> CommitId:
        """A commit on top of main that no ref shows; None deletes."""
        env = {"GIT_INDEX_FILE": str(self.repo.home / "index")}
        self.repo.raw_git("read-tree", "main", env=env)
        for name, text in files.items():
            self.repo.raw_git("update-index", "--force-remove", name, env=env)
            if text is not None:
                oid = self.repo.raw_git("hash-object", "-w", "--stdin", data=text.encode()).decode().strip()
                self.repo.raw_git(
                    "update-index", "--add", "--replace", "--cacheinfo", f"{mode},{oid},{name}", env=env
                )
        tree = self.repo.raw_git("write-tree", env=env).decode().strip()
        return CommitId(self.repo.git("commit-tree", tree, "-p", "main", "-m", "next"))

    def deliver(self, new: CommitId | None = None) -> tuple[Held, ...]:
        common_dir = str(self.repo.root / ".git")
        return deliver(common_dir, open_state(common_dir), MAIN, self.old, new or self.new)

    @property
    def main(self) -> str:
        return self.repo.git("rev-parse", "main")

    def state(self) -> tuple[object, ...]:
        """All that a held delivery may not change: files, git directory, refs, what git says."""
        return self.repo.picture(), self.repo.refs(), self.repo.git("stash", "list")

    def linked(self, name: str, *args: str) -> UserRepo:
        path = self.repo.home.parent / name
        self.repo.git("worktree", "add", "-q", *args[:-1], str(path), args[-1])
        return self.repo.at(path)


@pytest.fixture
def place(repo: UserRepo) -> Place:
    return Place(repo)


def test_a_clean_tree_gets_files_index_and_branch(place: Place) -> None:
    assert place.deliver() == ()
    assert place.main == place.new
    assert (place.repo.root / "a.py").read_text() == "1\n"
    assert (place.repo.root / "made/new").read_text() == "new\n"
    assert not (place.repo.root / "gone").exists()
    assert place.repo.git("status", "--porcelain") == ""


def _dirty(repo: UserRepo) -> None:
    repo.write("other", "my work\n")


def _staged(repo: UserRepo) -> None:
    repo.write("other", "my work\n")
    repo.git("add", "other")


def _untracked(repo: UserRepo) -> None:
    repo.write("mine/notes", "my work\n")


def _intended(repo: UserRepo) -> None:
    repo.write("notes", "my work\n")
    repo.git("add", "--intent-to-add", "notes")


def _flagged(repo: UserRepo) -> None:
    repo.write("other", "my work\n")
    repo.git("update-index", "--assume-unchanged", "other")
    repo.git("update-index", "--skip-worktree", "dir/file")


def _ignored(repo: UserRepo) -> None:
    repo.write("build/out.log", "my work\n")


@pytest.mark.parametrize("edit", [_dirty, _staged, _untracked, _intended, _flagged, _ignored])
def test_edits_elsewhere_are_kept_and_let_the_delivery_pass(
    place: Place, edit: Callable[[UserRepo], None]
) -> None:
    edit(place.repo)
    before, flags = (
        place.repo.git("status", "--porcelain", "--ignored"),
        place.repo.git("ls-files", "-v", "other", "dir"),
    )
    assert place.deliver() == ()
    assert place.main == place.new
    assert place.repo.git("status", "--porcelain", "--ignored") == before
    assert place.repo.git("ls-files", "-v", "other", "dir") == flags
    assert "my work" in place.repo.git("grep", "--no-index", "--no-exclude-standard", "my work")


def _edit(repo: UserRepo) -> None:
    repo.write("a.py", "my unsaved work\n")


def _edit_two(repo: UserRepo) -> None:
    repo.write("a.py", "my unsaved work\n")
    repo.write("b.py", "my unsaved work\n")


def _stage(repo: UserRepo) -> None:
    repo.write("a.py", "my work\n")
    repo.git("add", "a.py")
    repo.write("a.py", "one\n")


def _delete(repo: UserRepo) -> None:
    (repo.root / "a.py").unlink()


def _delete_what_is_deleted(repo: UserRepo) -> None:
    (repo.root / "gone").unlink()


def _stage_deletion(repo: UserRepo) -> None:
    repo.git("rm", "-q", "--cached", "a.py")


def _edit_what_is_deleted(repo: UserRepo) -> None:
    repo.write("gone", "still needed\n")


def _make_executable(repo: UserRepo) -> None:
    (repo.root / "a.py").chmod(0o755)


def _put_link(repo: UserRepo) -> None:
    (repo.root / "a.py").unlink()
    (repo.root / "a.py").symlink_to("b.py")


def _put_file(repo: UserRepo) -> None:
    repo.write("made/new", "mine\n")


def _put_equal_file(repo: UserRepo) -> None:
    repo.write("made/new", "new\n")


def _put_ignored(repo: UserRepo) -> None:
    repo.write(".git/info/exclude", "made/\n")
    repo.write("made/new", "secret\n")


def _put_directory(repo: UserRepo) -> None:
    repo.write("made/new/deep", "mine\n")


def _put_file_for_directory(repo: UserRepo) -> None:
    repo.write("made", "mine\n")


def _put_link_for_directory(repo: UserRepo) -> None:
    (repo.root / "made").symlink_to("dir")


def _assume_unchanged(repo: UserRepo) -> None:
    repo.git("update-index", "--assume-unchanged", "a.py")
    repo.write("a.py", "my local setting\n")


def _skip(repo: UserRepo) -> None:
    repo.git("update-index", "--skip-worktree", "a.py")
    repo.write("a.py", "my local setting\n")


def _racy(repo: UserRepo) -> None:
    """Same size, same time, within the grain of the clock: only the bytes tell."""
    info = (repo.root / "a.py").stat()
    (repo.root / "a.py").write_text("own\n")
    os.utime(repo.root / "a.py", ns=(info.st_atime_ns, info.st_mtime_ns))
    index = repo.root / ".git/index"
    os.utime(index, ns=(info.st_atime_ns, info.st_mtime_ns))


def _same_edit(repo: UserRepo) -> None:
    repo.write("a.py", "1\n")


def _same_edit_staged(repo: UserRepo) -> None:
    repo.write("a.py", "1\n")
    repo.git("add", "a.py")


def _intend_to_add(repo: UserRepo) -> None:
    repo.write("made/new", "mine\n")
    repo.git("add", "-N", "made/new")


def _lock_index(repo: UserRepo) -> None:
    repo.write(".git/index.lock")


def _stopped(repo: UserRepo, command: str) -> None:
    """As a command of git leaves it that waits for the user, in a tree without other changes."""
    repo.git("checkout", "-q", "-b", "side")
    repo.commit("side", other="side\n")
    repo.git("checkout", "-q", "main")
    repo.write(".git/" + command, repo.git("rev-parse", "side") + "\n")


def _merge(repo: UserRepo) -> None:
    _stopped(repo, "MERGE_HEAD")


def _cherry_pick(repo: UserRepo) -> None:
    _stopped(repo, "CHERRY_PICK_HEAD")


def _revert(repo: UserRepo) -> None:
    _stopped(repo, "REVERT_HEAD")


def _bisect(repo: UserRepo) -> None:
    repo.git("bisect", "start")


def _rebase(repo: UserRepo) -> None:
    repo.raw_git("rebase", "-q", "-i", "HEAD~1", env={"GIT_SEQUENCE_EDITOR": "sed -i s/pick/edit/"})


HELD: Final = [
    (_edit, "a.py is dirty", [b"a.py"]),
    (_edit_two, "a.py and 1 more are dirty", [b"a.py", b"b.py"]),
    (_stage, "a.py is staged", [b"a.py"]),
    (_delete, "a.py is dirty", [b"a.py"]),
    (_delete_what_is_deleted, "gone is dirty", [b"gone"]),
    (_stage_deletion, "a.py is staged", [b"a.py"]),
    (_edit_what_is_deleted, "gone is dirty", [b"gone"]),
    (_make_executable, "a.py is dirty", [b"a.py"]),
    (_put_link, "a.py is dirty", [b"a.py"]),
    (_put_file, "made/new is untracked and in the way", [b"made/new"]),
    (_put_equal_file, "made/new is untracked and in the way", [b"made/new"]),
    (_put_ignored, "made/new is ignored and in the way", [b"made/new"]),
    (_put_directory, "made/new/deep is untracked and in the way", [b"made/new/deep"]),
    (_put_file_for_directory, "made is untracked and in the way", [b"made"]),
    (_put_link_for_directory, "made is untracked and in the way", [b"made"]),
    (_assume_unchanged, "a.py is dirty", [b"a.py"]),
    (_skip, "a.py is dirty", [b"a.py"]),
    (_racy, "a.py is dirty", [b"a.py"]),
    (_same_edit, "a.py is dirty", [b"a.py"]),
    (_same_edit_staged, "a.py is staged", [b"a.py"]),
    (_intend_to_add, "made/new is staged", [b"made/new"]),
    (_lock_index, "another git process holds index.lock", []),
    (_merge, "a merge is under way", []),
    (_cherry_pick, "a cherry-pick is under way", []),
    (_revert, "a revert is under way", []),
    (_bisect, "a bisect is under way", []),
    (_rebase, "a rebase is under way", []),
]


@pytest.mark.parametrize(("edit", "why", "paths"), HELD, ids=[row[0].__name__.lstrip("_") for row in HELD])
def test_what_is_in_the_way_is_named_and_nothing_changes(
    place: Place, edit: Callable[[UserRepo], None], why: str, paths: list[bytes]
) -> None:
    edit(place.repo)
    open_state(str(place.repo.root / ".git"))
    before = place.state()
    held = place.deliver()
    assert held == (Held(str(place.repo.root), why, tuple(paths)),)
    assert place.state() == before


@pytest.mark.parametrize(
    "setting",
    [
        "merge.autoStash=true",
        "branch.main.mergeOptions=--squash --autostash",
        "merge.ff=false",
        "core.splitIndex=true",
        "core.untrackedCache=true",
        "core.autocrlf=true",
        "core.fileMode=false",
        "core.hooksPath=/nowhere",
        "index.version=4",
    ],
)
def test_no_setting_of_the_users_turns_a_delivery_round(place: Place, setting: str) -> None:
    place.repo.git("config", *setting.split("=", 1))
    place.repo.write("other", "my work\n")
    place.repo.git("add", "other")
    place.repo.write("other", "my later work\n")
    assert place.deliver() == ()
    assert place.main == place.new
    assert (place.repo.root / "other").read_text() == "my later work\n"
    assert place.repo.git("status", "--porcelain") == "MM other"
    assert place.repo.git("stash", "list") == ""


def test_a_branch_that_is_checked_out_nowhere_moves_alone(place: Place) -> None:
    place.repo.git("checkout", "-q", "-b", "elsewhere")
    before = place.repo.picture()
    assert place.deliver() == ()
    assert place.main == place.new
    assert place.repo.picture().keys() == before.keys()


@pytest.mark.parametrize("where", ["checked out", "elsewhere"])
def test_a_branch_that_somebody_else_moved_is_an_error(place: Place, where: str) -> None:
    place.repo.commit("the user's own", other="mine\n")
    if where == "elsewhere":
        place.repo.git("checkout", "-q", "-b", "elsewhere")
    before = place.state()
    with pytest.raises(RefMoved):
        place.deliver()
    assert place.state() == before


def test_a_linked_working_tree_gets_the_files(place: Place) -> None:
    place.repo.git("checkout", "-q", "-b", "elsewhere")
    linked = place.linked("linked", "main")
    assert place.deliver() == ()
    assert (linked.root / "made/new").read_text() == "new\n"
    assert linked.git("status", "--porcelain") == ""
    assert not (place.repo.root / "made").exists()


def test_two_trees_of_one_branch_both_get_files_and_index(place: Place) -> None:
    linked = place.linked("linked", "--force", "main")
    assert place.deliver() == ()
    for each in (place.repo, linked):
        assert (each.root / "made/new").read_text() == "new\n"
        assert each.git("status", "--porcelain") == ""


def test_one_tree_that_is_held_holds_the_other(place: Place) -> None:
    linked = place.linked("linked", "--force", "main")
    linked.write("a.py", "my unsaved work\n")
    before = place.state(), linked.picture()
    assert place.deliver() == (Held(str(linked.root), "a.py is dirty", (b"a.py",)),)
    assert (place.state(), linked.picture()) == before


def test_a_tree_whose_directory_is_gone_does_not_count(place: Place) -> None:
    linked = place.linked("linked", "--force", "main")
    linked.root.rename(linked.root.with_name("away"))
    assert place.deliver() == ()
    assert place.main == place.new


def test_a_branch_that_is_being_rebased_elsewhere_is_held(place: Place) -> None:
    place.repo.git("checkout", "-q", "-b", "elsewhere")
    linked = place.linked("linked", "main")
    _rebase(linked)
    before = place.state(), linked.picture()
    assert place.deliver() == (Held(str(linked.root), "a rebase is under way"),)
    assert (place.state(), linked.picture()) == before


def test_a_bare_repository_moves_the_ref_alone(place: Place, tmp_path: Path) -> None:
    place.repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    bare = place.repo.at(tmp_path / "bare")
    bare.git("fetch", "-q", str(place.repo.root), place.new)
    layout = open_state(str(bare.root))
    assert deliver(str(bare.root), layout, MAIN, place.old, place.new) == ()
    assert bare.git("rev-parse", "main") == place.new


def test_a_git_directory_that_lies_elsewhere_is_followed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.repo.git("init", "-q", "--separate-git-dir", str(tmp_path / "store"))
    common_dir = str(tmp_path / "store")
    layout = open_state(common_dir)
    assert deliver(common_dir, layout, MAIN, place.old, place.new) == (
        Held(common_dir, "git can't say where its working tree is"),
    )
    monkeypatch.chdir(place.repo.root / "dir")
    assert deliver(common_dir, layout, MAIN, place.old, place.new) == ()
    assert place.repo.git("status", "--porcelain") == ""


def test_a_submodule_as_repository_gets_its_files(place: Place, tmp_path: Path) -> None:
    outer = place.repo.at(tmp_path / "outer")
    outer.root.mkdir()
    outer.git("init", "-q")
    outer.git("submodule", "add", "-q", str(place.repo.root), "sub")
    sub = place.repo.at(outer.root / "sub")
    common_dir = str(outer.root / ".git/modules/sub")
    sub.git("fetch", "-q", str(place.repo.root), place.new)
    assert deliver(common_dir, open_state(common_dir), MAIN, place.old, place.new) == ()
    assert (sub.root / "made/new").read_text() == "new\n"
    assert sub.git("status", "--porcelain") == ""


def test_a_files_directory_and_a_directorys_file_change_places(place: Place) -> None:
    new = place.next(
        {"dir/file": None, "dir": "a file now\n", "gone": None, "gone/file": "a directory now\n"}
    )
    assert place.deliver(new) == ()
    assert (place.repo.root / "dir").read_text() == "a file now\n"
    assert (place.repo.root / "gone/file").read_text() == "a directory now\n"
    assert place.repo.git("status", "--porcelain") == ""


def test_an_untracked_file_in_a_directory_that_becomes_a_file_holds(place: Place) -> None:
    place.repo.write("dir/mine", "my work\n")
    new = place.next({"dir/file": None, "dir": "a file now\n"})
    before = place.state()
    (held,) = place.deliver(new)
    assert held.paths == (b"dir/mine",)
    assert place.state() == before


def test_a_file_outside_a_sparse_checkout_is_not_in_the_way(place: Place) -> None:
    place.repo.git("sparse-checkout", "set", "--no-cone", "other", "gone")
    assert not (place.repo.root / "a.py").exists()
    assert place.deliver() == ()
    assert not (place.repo.root / "a.py").exists()
    assert place.repo.git("status", "--porcelain") == ""


def test_a_submodules_pointer_moves_and_its_files_stay(place: Place, tmp_path: Path) -> None:
    inner = place.repo.at(tmp_path / "inner")
    inner.root.mkdir()
    inner.git("init", "-q")
    inner.commit("one", x="1\n")
    place.repo.git("submodule", "add", "-q", str(inner.root), "sub")
    place.old = CommitId(place.repo.commit("with a submodule"))
    two = inner.commit("two", x="2\n")
    env = {"GIT_INDEX_FILE": str(place.repo.home / "index")}
    place.repo.raw_git("read-tree", "main", env=env)
    place.repo.raw_git("update-index", "--cacheinfo", f"160000,{two},sub", env=env)
    tree = place.repo.raw_git("write-tree", env=env).decode().strip()
    new = CommitId(place.repo.git("commit-tree", tree, "-p", "main", "-m", "next"))
    assert place.deliver(new) == ()
    assert place.repo.git("ls-files", "-s", "sub").split()[1] == two
    assert (place.repo.root / "sub/x").read_text() == "1\n"


def test_line_ends_and_filters_are_the_users(place: Place) -> None:
    place.repo.git("config", "filter.up.smudge", "tr a-z A-Z")
    place.repo.git("config", "filter.up.clean", "tr A-Z a-z")
    place.old = CommitId(
        place.repo.commit(
            "rules",
            **{".gitattributes": "*.txt text eol=crlf\n*.up filter=up\n", "x.txt": "1\n2\n", "y.up": "y\n"},
        )
    )
    place.repo.git("rm", "-q", "--cached", "x.txt", "y.up")
    place.repo.git("reset", "-q", "--hard")
    assert (place.repo.root / "x.txt").read_bytes() == b"1\r\n2\r\n"
    new = place.next({"x.txt": "3\n4\n", "y.up": "z\n"})
    assert place.deliver(new) == ()
    assert (place.repo.root / "x.txt").read_bytes() == b"3\r\n4\r\n"
    assert (place.repo.root / "y.up").read_text() == "Z\n"
    assert place.repo.git("status", "--porcelain") == ""


def test_a_file_that_was_committed_against_its_attributes_is_not_dirty(place: Place) -> None:
    os.utime(place.repo.write("x.txt", "1\r\n2\r\n"), (1, 1))
    place.repo.commit("carriage returns")
    place.repo.write(".gitattributes", "*.txt text\n")
    place.repo.git("add", ".gitattributes")
    place.repo.git("commit", "-q", "-m", "rules")
    place.old = CommitId(place.main)
    assert place.repo.git("status", "--porcelain") == ""
    assert place.deliver(place.next({"x.txt": "3\n"})) == ()
    assert (place.repo.root / "x.txt").read_text() == "3\n"


def test_names_with_odd_bytes_are_shown_escaped(place: Place) -> None:
    place.old = CommitId(place.repo.commit("odd", **{"a\n\x1b[31m*": "1\n", ":(top)b": "1\n"}))
    place.repo.write("a\n\x1b[31m*", "edited\n")
    (held,) = place.deliver(place.next({"a\n\x1b[31m*": "2\n", ":(top)b": "2\n"}))
    assert held.why == "a\\n\\x1b[31m* is dirty"
    place.repo.write("a\n\x1b[31m*", "1\n")
    assert place.deliver(place.next({"a\n\x1b[31m*": "2\n", ":(top)b": "2\n"})) == ()
    assert place.repo.git("status", "--porcelain") == ""


def test_deliveries_come_one_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlayrun.reconcile.works.PATIENCE", 0.1)
    layout = open_state(str(place.repo.root / ".git"))
    with open(f"{layout.root}/deliver.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (held,) = place.deliver()
    assert held.why == "another delivery is under way"
    assert place.deliver() == ()
