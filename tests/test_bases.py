"""Frozen trees: what a command sees is what a checkout would hold, whatever commit, repository or name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import SHARE
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from conftest import UserRepo

pytestmark = pytest.mark.shared  # what a tree of a commit holds

Until = Callable[..., None]

# Every entry below the current directory but .git: kind, executable bit, content.
DUMP: Final = r"""
import hashlib, json, os
found = {}
for place, dirs, names in os.walk(b'.'):
    if b'.git' in dirs: dirs.remove(b'.git')
    if b'.git' in names: names.remove(b'.git')
    for name in dirs + names:
        path = place + b'/' + name
        if os.path.islink(path): what = ['link', os.readlink(path).hex()]
        elif os.path.isdir(path): what = ['directory']
        else:
            content = hashlib.sha1(open(path, 'rb').read()).hexdigest()
            what = ['file', bool(os.stat(path).st_mode & 0o100), content]
        found[path.hex()] = what
print(json.dumps(found, sort_keys=True))
"""


def _outside(place: Path) -> object:
    return json.loads(subprocess.check_output(["python3", "-c", DUMP], cwd=place))


def _inside(repo: UserRepo, *options: str) -> object:
    done = repo.overlayrun(
        "--rm", "-q", *options, "--", "sh", "-c", 'git status --porcelain && exec python3 -c "$0"', DUMP
    )
    assert done.code == 0, str(done)
    return json.loads(done.out)  # a line of status before it is no JSON: clean means empty


NAMES: Final = ["a", "b", "a/x", "a/x/z", "a/y", "b/é", "b/sp ace", "c/d/e", "c/nl\n", "c/\udcff", "c/d:,\\"]
EDIT: Final = st.tuples(
    st.sampled_from(["file", "exec", "link", "delete"]), st.sampled_from(NAMES), st.integers(0, 3)
)


def _edit(root: Path, edit: tuple[str, str, int]) -> None:
    kind, name, number = edit
    path = root / name
    for parent in reversed(path.relative_to(root).parents):
        above = root / parent
        if above != root and (above.is_symlink() or above.is_file()):
            above.unlink()
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if kind == "delete":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(f"target{number}")
    else:
        path.write_text(f"content {number}\n" * number)
        path.chmod(0o755 if kind == "exec" else 0o644)


@pytest.mark.by_both
@seed(SHARE)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.lists(EDIT, min_size=1, max_size=6), min_size=2, max_size=4))
def test_random_commits_look_like_their_checkouts(
    repo: UserRepo, history: list[list[tuple[str, str, int]]]
) -> None:
    here = repo.at(repo.root.parent / uuid.uuid4().hex)
    here.root.mkdir()
    here.git("init", "-q")
    commits = []
    for edits in history:
        for edit in edits:
            _edit(here.root, edit)
        commits.append(here.commit())
    for commit in [*commits, *reversed(commits)]:
        plain = here.root.parent / uuid.uuid4().hex
        here.git("worktree", "add", "-q", "--detach", str(plain), commit)
        assert _inside(here, "--dirty", "ignore", "--base", commit) == _outside(plain)


def test_many_commits_in_a_row_are_right_to_the_end(repo: UserRepo) -> None:
    """Past the longest chain of layers, where they are squashed."""
    for number in range(12):
        repo.write(f"f{number % 5}", f"{number}\n")
        repo.write(f"d{number % 3}/x", f"{number}\n")
        (repo.root / "f0").unlink(missing_ok=number % 2 == 0) if number % 4 == 3 else None
        if number == 6:
            shutil.rmtree(repo.root / "d1")
        repo.commit(f"c{number}")
        assert _inside(repo) == _outside(repo.root), number
    repo.inside("true")
    assert len(repo.records()["b"]["stack"]) <= 9
    assert _inside(repo, "--base", "HEAD~11") != _outside(repo.root)


CHANGES: Final = {
    "directory becomes file": ("d/x", "d"),
    "file becomes directory": ("d", "d/x"),
    "deep directory becomes file": ("d/e/f/x", "d/e"),
    "file becomes deep directory": ("d", "d/e/f/x"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("link", [False, True])
def test_kinds_change_between_commits(repo: UserRepo, name: str, link: bool) -> None:  # noqa: FBT001  # a parameter
    before, after = CHANGES[name]
    _edit(repo.root, ("file", before, 1))
    repo.commit("before")
    assert _inside(repo) == _outside(repo.root)
    _edit(repo.root, ("delete", before.split("/")[0], 1))
    _edit(repo.root, ("link" if link else "file", after, 2))
    repo.commit("after")
    assert _inside(repo) == _outside(repo.root)
    repo.git("checkout", "-q", "HEAD~1")
    assert _inside(repo) == _outside(repo.root)


@pytest.mark.by_both
def test_a_directory_that_comes_back_with_other_files(repo: UserRepo) -> None:
    for names in (["d/a", "d/b", "d/s/c"], [], ["d/z"], ["d/s"], ["d/s/q", "d/a"]):
        shutil.rmtree(repo.root / "d", ignore_errors=True)
        for name in names:
            repo.write(name, f"{names}\n")
        repo.commit(str(names))
        assert _inside(repo) == _outside(repo.root), names


@pytest.mark.by_both
def test_times_are_those_of_the_checkout(repo: UserRepo) -> None:
    os.utime(repo.root / "README", ns=(10**18, 1_234_567_890_123_456_789))
    os.utime(repo.root / "src/app.py", ns=(10**18, 1_300_000_000_000_000_001))
    assert repo.inside("stat -c %.9Y README src/app.py").split() == [
        "1234567890.123456789",
        "1300000000.000000001",
    ]
    repo.commit("next", other="x")
    os.utime(repo.root / "other", ns=(10**18, 1_400_000_000_000_000_002))
    out = repo.inside("stat -c %.9Y README src/app.py other; git status --porcelain", branch="c").split()
    assert out == ["1234567890.123456789", "1300000000.000000001", "1400000000.000000002"]


def test_an_incremental_build_stays_warm(repo: UserRepo) -> None:
    repo.write("Makefile", "out: src/app.py\n\tcp src/app.py out\n\t@echo built\n")
    repo.write(".gitignore", "out\n")
    repo.commit("make")
    subprocess.run(["make", "-s"], cwd=repo.root, env=repo.env, check=True, capture_output=True)
    assert "up to date" in repo.inside("make")


def test_a_base_elsewhere_leaves_uncommitted_changes_at_home(repo: UserRepo) -> None:
    repo.write("README", "changed\n")
    assert repo.inside("cat README; git status --porcelain", "--base", "HEAD~1") == "read me\n"


def test_big_files_and_empty_files(repo: UserRepo) -> None:
    repo.write("big", os.urandom(9 << 20))
    repo.write("empty", "")
    repo.commit("big")
    assert _inside(repo) == _outside(repo.root)


def test_a_submodule_keeps_its_commit(repo: UserRepo, tmp_path: Path) -> None:
    library = repo.at(tmp_path / "library")
    library.root.mkdir()
    library.git("init", "-q")
    pinned = library.commit("x", lib="lib\n")
    repo.git("submodule", "--quiet", "add", str(library.root), "deps/lib")
    repo.commit("submodule")
    done = repo.sh("git status --porcelain; ls deps; echo x >new; mkdir -p deps/lib; echo y >deps/lib/more")
    assert done.code == 0, str(done)
    assert repo.files("b")["deps/lib"] == f"160000 commit {pinned}"
    assert repo.show("b", "new") == "x\n"
    assert "deps/lib/more" not in repo.files("b")
    assert "deps/lib" in done.err, "what is left out of a submodule is said"
    assert "submodules come as empty directories" in done.err
    assert repo.git("fsck", "--strict") == ""


def test_a_submodule_that_is_dirty_is_no_trouble(repo: UserRepo, tmp_path: Path) -> None:
    library = repo.at(tmp_path / "library")
    library.root.mkdir()
    library.git("init", "-q")
    library.commit("x", lib="lib\n")
    repo.git("submodule", "--quiet", "add", str(library.root), "lib")
    repo.commit("submodule")
    inner = repo.at(repo.root / "lib")
    inner.commit("moved on", lib="2\n")
    inner.write("untracked", "u")
    before = repo.picture()
    repo.inside("echo x >new")
    assert repo.show("b", "new") == "x\n"
    assert repo.picture() == before


@pytest.mark.by_both
def test_lfs_files_come_as_content_and_go_as_pointers(repo: UserRepo) -> None:
    repo.git("lfs", "install", "--skip-repo")
    repo.git("lfs", "install", "--local")
    repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
    repo.write("a.bin", "first content\n" * 50)
    repo.commit("lfs")
    assert repo.show("HEAD", "a.bin").startswith("version https://git-lfs")
    done = repo.sh(
        "cat a.bin | head -1; git status --porcelain; echo new content >b.bin; echo changed >>a.bin"
    )
    assert done.out == "first content\n", str(done)
    for name in ("a.bin", "b.bin"):
        if name in repo.files("b") and repo.files("b")[name] != repo.files("main").get(name):
            assert repo.show("b", name).startswith("version https://git-lfs"), str(done)
        else:
            assert name in done.err, f"left out without a word: {done}"
    if repo.files("b").get("a.bin") != repo.files("main")["a.bin"]:
        repo.git("checkout", "-q", "b")
        assert (repo.root / "a.bin").read_text().endswith("changed\n")


def test_line_endings_by_attribute(repo: UserRepo) -> None:
    repo.write(".gitattributes", "*.txt text eol=crlf\n*.u16 working-tree-encoding=UTF-16LE eol=lf\n")
    repo.write("a.txt", "one\r\ntwo\r\n")
    repo.write("b.u16", "wide\n".encode("utf-16-le"))
    repo.commit("attributes")
    assert repo.show("HEAD", "a.txt") == "one\ntwo\n"
    assert _inside(repo) == _outside(repo.root)
    repo.inside(
        "printf 'three\\r\\n' >>a.txt; printf 'n\\r\\n' >n.txt; test -z \"$(git diff --stat -- b.u16)\""
    )
    assert (repo.show("b", "a.txt"), repo.show("b", "n.txt")) == ("one\ntwo\nthree\n", "n\n")


def test_autocrlf_of_the_user(repo: UserRepo) -> None:
    repo.git("config", "core.autocrlf", "true")
    repo.write("a.txt", "one\r\n")
    repo.commit("crlf")
    assert repo.show("HEAD", "a.txt") == "one\n"
    assert repo.inside("git status --porcelain; printf 'two\\r\\n' >>a.txt; git diff --stat | wc -l") == "2\n"
    assert repo.show("b", "a.txt") == "one\ntwo\n"


def test_sparse_checkout_loses_nothing(repo: UserRepo) -> None:
    repo.write("big/far", "far\n")
    repo.commit("big")
    repo.git("sparse-checkout", "set", "src")
    assert not (repo.root / "big").exists()
    done = repo.sh("git status --porcelain; echo x >src/new; rm -f README")
    assert done.code == 0, str(done)
    assert done.out == "", str(done)
    assert "big/far" in repo.files("b")
    assert repo.show("b", "src/new") == "x\n"


@pytest.mark.by_both
def test_linked_worktree(repo: UserRepo, tmp_path: Path) -> None:
    linked = repo.at(tmp_path / "linked")
    repo.git("worktree", "add", "-q", "-b", "side", str(linked.root))
    linked.commit("side", only="side\n")
    linked.write("README", "dirty here\n")
    done = linked.sh("pwd; cat only README; git log -1 --format=%s; echo x >new")
    assert done.code == 0, str(done)
    assert done.out == f"{linked.root}\nside\ndirty here\nside\n"
    assert repo.show("b", "new") == "x\n"
    assert repo.records()["b"]["target"] == "side"
    assert linked.git("status", "--porcelain") == "M README"
    assert linked.sh("cat new").out == "x\n"


def test_workspace_of_a_worktree_can_be_resumed_from_the_main_one(repo: UserRepo, tmp_path: Path) -> None:
    linked = repo.at(tmp_path / "linked")
    repo.git("worktree", "add", "-q", "-b", "side", str(linked.root))
    linked.inside("echo x >new")
    out = repo.inside("cat new; echo y >>new")
    assert out == "x\n"
    assert repo.show("b", "new") == "x\ny\n"


def test_detached_head(repo: UserRepo) -> None:
    repo.git("checkout", "-q", "--detach", "HEAD~1")
    done = repo.overlayrun("-b", "b", "--", "sh", "-c", "git log --oneline | wc -l; echo x >new")
    assert " | merge b --into BRANCH | " in done.err
    assert repo.show("b", "new") == "x\n"
    assert repo.records()["b"]["target"] is None
    assert repo.git("rev-parse", "b~1") == repo.git("rev-parse", "HEAD")


def test_shallow_clone(repo: UserRepo, tmp_path: Path) -> None:
    shallow = repo.at(tmp_path / "shallow")
    repo.git("clone", "-q", "--depth=1", f"file://{repo.root}", str(shallow.root))
    out = shallow.inside(
        "git log --oneline | wc -l; git status --porcelain; echo x >new; git add new; git commit -qm mine"
    )
    assert out == "1\n"
    assert shallow.show("b", "new") == "x\n"
    assert shallow.git("log", "-1", "--format=%s", "b") == "mine"


def test_partial_clone(repo: UserRepo, tmp_path: Path) -> None:
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.commit("later", README="later\n")
    partial = repo.at(tmp_path / "partial")
    repo.git("clone", "-q", "--filter=blob:none", f"file://{repo.root}", str(partial.root))
    assert partial.inside("cat README; git status --porcelain; echo x >new") == "later\n"
    assert partial.show("b", "new") == "x\n"
    done = partial.sh("cat README", "--base", "HEAD~1", branch="old")
    assert done.out == "read me\n" or (
        done.code == 125 and "hint: " in done.err and "Traceback" not in done.err
    ), str(done)


@pytest.mark.by_both
def test_alternates_of_the_user(repo: UserRepo) -> None:
    source, shared = repo.home / "source", repo.at(repo.home / "shared")  # /tmp is private inside
    repo.git("clone", "-q", "--bare", str(repo.root), str(source))
    repo.git("clone", "-q", "--shared", str(source), str(shared.root))
    done = shared.sh(
        "git log --oneline | wc -l; git status --porcelain; "
        "cat README; echo x >new; git add new; git commit -qm m"
    )
    assert done.code == 0, str(done)
    assert done.out == "2\nread me\n"
    assert shared.show("b", "new") == "x\n"


def test_a_replaced_object_is_seen_as_the_commit_says(repo: UserRepo) -> None:
    repo.git("replace", "HEAD", "HEAD~1")
    done = repo.sh("ls src; echo x >new", "--dirty", "ignore")
    assert done.out == "app.py\n", str(done)
    assert repo.git("--no-replace-objects", "ls-tree", "--name-only", "b", "src/") == "src/app.py"


def test_split_index_and_untracked_cache_of_the_user_stay_his(repo: UserRepo) -> None:
    repo.git("update-index", "--split-index", "--untracked-cache")
    repo.write("README", "changed\n")
    before = {
        path: facts[-1] for path, facts in repo.picture().items()
    }  # git itself touches a shared index's time
    assert repo.inside("cat README; git status --porcelain") == "changed\n M README\n"
    assert {path: facts[-1] for path, facts in repo.picture().items()} == before


def test_index_version_four(repo: UserRepo) -> None:
    repo.git("update-index", "--index-version", "4")
    repo.git("config", "index.version", "4")
    repo.git("config", "feature.manyFiles", "true")
    repo.write("README", "changed\n")
    assert repo.inside("cat README; git status --porcelain") == "changed\n M README\n"


def test_sha1_collisions_of_names_by_case(repo: UserRepo) -> None:
    repo.write("readme", "lower\n")
    repo.commit("both")
    assert repo.inside("cat README readme; git status --porcelain") == "read me\nlower\n"


@pytest.mark.by_both
def test_user_freezes_while_another_runs(repo: UserRepo) -> None:
    """Two first runs at once on the same tree, and one on another."""
    with (
        repo.started("-b", "one", "--", "sh", "-c", "cat README; echo 1 >n") as one,
        repo.started("-b", "two", "--", "sh", "-c", "cat README; echo 2 >n") as two,
        repo.started("-b", "three", "--base", "HEAD~1", "--", "sh", "-c", "cat README; echo 3 >n") as three,
    ):
        for run in (one, two, three):
            assert run.end() == 0, run.text()
            assert "read me" in run.text()
    assert [repo.show(name, "n") for name in ("one", "two", "three")] == ["1\n", "2\n", "3\n"]
