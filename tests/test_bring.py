"""`merge` and `apply`: a branch's change comes home, or nothing changes and the conflicts are listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import UserRepo

pytestmark = pytest.mark.shared  # what comes home


def test_a_merge_fast_forwards_the_checked_out_target_with_its_files(repo: UserRepo) -> None:
    repo.inside("echo agent >new")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert repo.git("rev-parse", "main") == repo.git("rev-parse", "b")
    assert (repo.root / "new").read_text() == "agent\n"
    assert repo.git("status", "--porcelain") == ""


def test_a_merge_with_a_moved_target_makes_a_commit_with_both_parents(repo: UserRepo) -> None:
    repo.inside("echo agent >new")
    mine = repo.commit("mine", other="user\n")
    tip = repo.git("rev-parse", "b")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert repo.git("rev-list", "--parents", "-1", "main").split()[1:] == [mine, tip]
    assert {"new", "other"} <= set(os.listdir(repo.root))


def test_a_conflict_changes_nothing_and_names_path_and_kind(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    repo.inside("echo agent >text")
    repo.commit("mine", text="user\n")
    before, refs = repo.picture(), repo.refs()
    done = repo.overlayrun("merge", "b")
    assert done.code == 1, str(done)
    assert "text" in done.out + done.err
    assert "content" in done.out + done.err
    assert (repo.picture(), _but_notes(repo)) == (before, refs)


def _but_notes(repo: UserRepo) -> dict[str, str]:
    """Refs, less what the reconciler notes for itself."""
    return {name: at for name, at in repo.refs().items() if not name.startswith("refs/overlayrun/queue/")}


def test_a_dirty_file_in_the_way_holds_the_delivery(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    repo.inside("echo agent >text", "--dirty", "ignore")
    repo.write("text", "my unsaved work\n")
    staged, refs = repo.git("ls-files", "-s"), repo.refs()
    done = repo.overlayrun("merge", "b")
    assert done.code == 1, str(done)
    assert "text is dirty" in done.out
    assert (repo.git("ls-files", "-s"), _but_notes(repo)) == (staged, refs)
    assert (repo.root / "text").read_text() == "my unsaved work\n"


def test_an_ignored_file_in_the_way_is_not_overwritten(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": ".env\n"})
    repo.inside("rm .gitignore; echo agent >.env", "--carry", "none")
    repo.write(".env", "my secret\n")
    done = repo.overlayrun("merge", "b")
    assert (repo.root / ".env").read_text() == "my secret\n", str(done)


def test_a_target_that_is_not_checked_out_moves_alone(repo: UserRepo) -> None:
    repo.inside("echo agent >new")
    repo.git("checkout", "-q", "-b", "elsewhere")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert repo.git("rev-parse", "main") == repo.git("rev-parse", "b")
    assert not (repo.root / "new").exists()


def test_a_target_in_a_linked_worktree_is_merged_there(repo: UserRepo, tmp_path: Path) -> None:
    repo.inside("echo agent >new")
    repo.git("checkout", "-q", "-b", "elsewhere")
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"), "main")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert (tmp_path / "linked/new").read_text() == "agent\n"


def test_a_branch_from_uncommitted_changes_lands_as_its_own_change_only(repo: UserRepo) -> None:
    repo.commit("start", mine="one\n", theirs="one\n")
    repo.write("mine", "uncommitted\n")
    repo.inside("echo agent >theirs")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert repo.show("main", "theirs") == "agent\n"
    assert repo.show("main", "mine") == "one\n"
    assert (repo.root / "mine").read_text() == "uncommitted\n"
    assert len(repo.git("rev-list", "--parents", "-1", "main").split()) == 2


def test_merging_again_says_that_it_is_in(repo: UserRepo) -> None:
    repo.inside("echo agent >new")
    repo.overlayrun("merge", "b")
    head = repo.git("rev-parse", "main")
    done = repo.overlayrun("merge", "b")
    assert done.code == 0, str(done)
    assert repo.git("rev-parse", "main") == head


def test_apply_brings_the_change_as_uncommitted_and_keeps_head_and_index(repo: UserRepo) -> None:
    repo.commit("start", text="one\n", mine="one\n", gone="x\n")
    repo.inside("echo agent >text; rm gone; printf 'a\\0b' >binary; chmod +x text; ln -s text alias")
    repo.write("mine", "my work\n")
    head, index = repo.git("rev-parse", "HEAD"), repo.git("ls-files", "-s")
    done = repo.overlayrun("apply", "b")
    assert done.code == 0, str(done)
    assert (repo.root / "text").read_text() == "agent\n"
    assert os.access(repo.root / "text", os.X_OK)
    assert not (repo.root / "gone").exists()
    assert (repo.root / "binary").read_bytes() == b"a\0b"
    assert os.readlink(repo.root / "alias") == "text"
    assert (repo.root / "mine").read_text() == "my work\n"
    assert (repo.git("rev-parse", "HEAD"), repo.git("ls-files", "-s")) == (head, index)


def test_apply_merges_with_uncommitted_changes_of_the_same_file(repo: UserRepo) -> None:
    lines = [f"line {number}\n" for number in range(30)]
    repo.commit("start", text="".join(lines))
    repo.inside("sed -i '1s/.*/agent/' text")
    repo.write("text", "".join([*lines[:-1], "user\n"]))
    done = repo.overlayrun("apply", "b")
    assert done.code == 0, str(done)
    assert (repo.root / "text").read_text() == "".join(["agent\n", *lines[1:-1], "user\n"])


def test_a_conflict_of_apply_changes_nothing(repo: UserRepo) -> None:
    repo.commit("start", text="one\n")
    repo.inside("echo agent >text")
    repo.write("text", "user\n")
    before = repo.picture()
    done = repo.overlayrun("apply", "b")
    assert done.code == 1, str(done)
    assert repo.picture() == before


def test_apply_is_held_by_a_file_in_the_way(repo: UserRepo) -> None:
    repo.commit("start", **{".gitignore": ".env\n"})
    repo.inside("rm .gitignore; echo agent >.env; echo agent >new", "--carry", "none")
    repo.write(".env", "my secret\n")
    done = repo.overlayrun("apply", "b")
    assert (done.code, (repo.root / ".env").read_text()) == (1, "my secret\n"), str(done)
    assert ".env is in the way" in done.out
    assert not (repo.root / "new").exists()


def test_apply_where_files_cant_change_places(repo: UserRepo) -> None:
    """Git does it, and what it writes over is kept until then."""
    repo.write("mine", "one\n")
    repo.inside("echo agent >>README; echo two >>mine")
    repo.git("config", "core.sparseCheckout", "true")
    done = repo.overlayrun("apply", "b")
    assert done.code == 0, str(done)
    assert (repo.root / "mine").read_text() == "one\ntwo\n"
    assert not [name for name in repo.refs() if "user-backup" in name]


def test_applying_what_is_there_says_so(repo: UserRepo) -> None:
    repo.inside("echo agent >new")
    assert repo.overlayrun("apply", "b").code == 0
    before = repo.picture()
    assert repo.overlayrun("apply", "b").code == 0
    assert repo.picture() == before
