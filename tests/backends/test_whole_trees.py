"""Trees that are made whole: layers joined by copying, and what a snapshot of one reads and finds."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import UserRepo

from overlayrun.backends.joining import copy_bottom, join, join_carried
from overlayrun.bases.index import read_stamps, stamp_of
from overlayrun.layers.marks import set_opaque, write_whiteout

pytestmark = pytest.mark.shared  # what a whole tree holds


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shape(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content by path."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(root))] = (info.st_mode, info.st_mtime_ns, text)
    return found


@pytest.mark.by_both
@pytest.mark.parametrize("wide", [True, False], ids=["many-subtrees", "one-file"])
def test_a_copy_is_equal_in_modes_times_and_links(tmp_path: Path, *, wide: bool) -> None:
    source = tmp_path / "source"
    write(source / "-odd\nname", "1").chmod(0o640)
    for number in range(40 if wide else 0):
        write(source / f"d{number % 3}/e{number}/f", str(number)).chmod(0o600 + number % 8)
    (source / "link").symlink_to("nowhere")
    (source / "empty").mkdir()
    for directory in [*source.rglob("*"), source]:
        if directory.is_dir():
            directory.chmod(0o751)
            os.utime(directory, ns=(5, 1_000_000_007))
    copy_bottom(str(source), str(tmp_path / "copy"), "auto")
    assert shape(tmp_path / "copy") == shape(source)
    assert (tmp_path / "copy").stat().st_mode == source.stat().st_mode


@pytest.mark.by_both
def test_a_layer_changes_hides_and_replaces(tmp_path: Path) -> None:
    tree, layer = tmp_path / "tree", tmp_path / "layer"
    for name in (
        "gone",
        "kept",
        "changed",
        "opaque/below",
        "gone-directory/f",
        "was-directory/f",
        "was-file",
    ):
        write(tree / name, "old")
    write(layer / "changed", "new").chmod(0o755)
    write(layer / "opaque/above", "new")
    write(layer / "was-directory", "new")
    write(layer / "was-file/f", "new")
    (layer / "kept-link").symlink_to("kept")
    set_opaque(str(layer / "opaque"))
    for name in ("gone", "gone-directory", "never-there"):
        write_whiteout(None, str(layer / name))
    inode = (tree / "changed").stat().st_ino
    join(str(layer), str(tree))
    assert {name: text for name, (mode, _, text) in shape(tree).items() if not stat.S_ISDIR(mode)} == {
        "changed": "new",
        "kept": "old",
        "kept-link": "kept",
        "opaque/above": "new",
        "was-directory": "new",
        "was-file/f": "new",
    }
    assert (tree / "changed").stat().st_mode & 0o777 == 0o755
    assert (tree / "changed").stat().st_ino != inode  # else its stamp could be that of the old one


def test_ignored_files_join_directories_that_are_there(tmp_path: Path) -> None:
    tree, layer = tmp_path / "tree", tmp_path / "layer"
    write(tree / "pkg/code", "code")
    write(layer / "pkg/__pycache__/code.pyc", "bytes")
    write(layer / "node_modules/p/index", "module")
    (layer / "node_modules/p/link").symlink_to("index")
    assert join_carried(str(layer), str(tree), "never") > 0
    assert (tree / "pkg/code").read_text() == "code"
    assert (tree / "pkg/__pycache__/code.pyc").read_text() == "bytes"
    assert (tree / "node_modules/p/link").read_text() == "module"


@pytest.mark.by_both
def test_what_a_tree_was_made_of_is_known_by_its_stamps(repo: UserRepo) -> None:
    repo.inside("echo more >>src/app.py", "--backend", "copy")
    place = repo.workspace()
    stamps = read_stamps(str(place / "whole/index"))
    assert stamps.keys() == {os.fsencode(name) for name in repo.files("main")}
    for name, stamp in stamps.items():
        info = os.lstat(os.fsencode(place / "upper") + b"/" + name)
        now = stamp_of(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        assert (now == stamp) == (name != b"src/app.py")


def test_torn_stamps_are_none(tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert read_stamps(str(index)) == {}
    for data in (b"", b"DIRC\0\0\0\2\0\0\0\1" + b"x" * 80):
        index.write_bytes(data)
        assert read_stamps(str(index)) == {}


@pytest.mark.by_both
def test_a_snapshot_reads_what_changed_alone_and_without_stamps_everything(repo: UserRepo) -> None:
    """A file that no reader could open is no trouble as long as its stamp is known."""
    repo.commit("more", **{f"d/f{number}": f"{number}\n" for number in range(30)})
    repo.inside("rm d/f1; echo 2 >>d/f2; chmod +x d/f3; mkdir e; mv d/f4 e", "--backend", "copy")
    expected = {**repo.files("main")}
    blob = expected.pop("d/f4")
    del expected["d/f1"]
    expected |= {"e/f4": blob, "d/f3": expected["d/f3"].replace("100644", "100755")}
    found = repo.files("b")
    assert {**found, "d/f2": ""} == {**expected, "d/f2": ""}
    (repo.workspace() / "whole/index").unlink()
    (repo.workspace() / "hashes.json").unlink()
    repo.inside("echo new >new")
    assert {**repo.files("b"), "d/f2": ""} == {**expected, "d/f2": "", "new": repo.files("b")["new"]}
    assert repo.show("b", "d/f2") == "2\n2\n"


def test_what_the_user_added_and_the_command_removed_is_gone(repo: UserRepo) -> None:
    """Its directories are as the frozen tree has them, and not as the branch began."""
    repo.write("src/more", "uncommitted\n")
    repo.write("new/deep/file", "uncommitted\n")
    repo.write("tool.sh", "uncommitted\n")
    repo.inside("rm -r src/more new", "--backend", "copy")
    now = repo.files("b")
    assert now.keys() == repo.files("main").keys()
    assert repo.show("b", "tool.sh") == "uncommitted\n"


def test_where_nobody_tells_what_is_as_it_was_everything_is_looked_at(repo: UserRepo) -> None:
    repo.commit("more", **{"d/e/f": "1\n", "d/g": "2\n"})
    patched = (
        "import os, sys, overlayrun.survey as s; from overlayrun.cli.main import run_cli;"
        "s._tell = lambda *_: None; run_cli(sys.argv[1:])"
    )
    words = ["run", "--backend", "copy", "-b", "b", "--", "sh", "-c", "rm d/g; echo 3 >>d/e/f; mv src lib"]
    command = [sys.executable, "-c", patched, *words]
    done = subprocess.run(command, cwd=repo.root, env=repo.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert repo.show("b", "d/e/f") == "1\n3\n"
    expected = {*repo.files("main"), "lib/app.py"} - {"d/g", "src/app.py"}
    assert repo.files("b").keys() == expected


def _killed_before_the_record(repo: UserRepo, branch: str) -> None:
    patched = (
        "import os, sys, overlayrun.prepare as p; from overlayrun.cli.main import run_cli;"
        "p.write_git_directory = lambda *_: os.kill(os.getpid(), 9); run_cli(sys.argv[1:])"
    )
    words = [sys.executable, "-c", patched, "run", "--backend", "copy", "-b", branch, "--", "true"]
    done = subprocess.run(words, cwd=repo.root, env=repo.env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done


def test_a_tree_without_a_record_is_cleared_unless_something_ran_in_it(repo: UserRepo) -> None:
    _killed_before_the_record(repo, "b")
    places = repo.state / "workspaces"
    assert [path.name for path in places.glob("*/upper/*.sh")] == ["tool.sh"]
    assert repo.inside("echo x >new; cat new", "--backend", "copy") == "x\n"
    assert len(list(places.iterdir())) == 1
    _killed_before_the_record(repo, "c")
    assert repo.overlayrun("gc").code == 0
    assert [path.name for path in places.iterdir()] == [repo.workspace().name]
    assert "refs/heads/c" not in repo.refs()
    repo.records()["b"]["path"].unlink()
    assert repo.overlayrun("gc").code == 0
    assert repo.sh("true", "--backend", "copy").code == 125
    assert [path.read_text() for path in places.glob("*/upper/new")] == ["x\n"]


@pytest.mark.by_both
def test_an_attribute_of_overlays_hides_no_file_of_a_whole_tree(repo: UserRepo) -> None:
    mark = "import os; os.close(os.open('hidden', os.O_CREAT)); os.setxattr('hidden', 'user.overlay.whiteout', b'')"
    more = "os.mkdir('d'); open('d/f', 'w').close(); os.setxattr('d', 'user.overlay.opaque', b'y')"
    repo.inside(f'/usr/bin/python3 -c "{mark}; {more}"', "--backend", "copy")
    assert {"hidden", "d/f"} <= repo.files("b").keys()


def test_a_submodule_keeps_its_commit(repo: UserRepo) -> None:
    head = repo.git("rev-parse", "HEAD")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{head},sub")
    repo.git("commit", "-qm", "submodule")
    done = repo.sh("echo 1 >one", "--backend", "copy")
    assert "left out" not in done.err, done
    assert repo.files("b")["sub"] == f"160000 commit {head}"
    done = repo.sh("echo 1 >sub/inside", "--backend", "copy")
    assert "inside a submodule" in done.err
    assert repo.files("b")["sub"] == f"160000 commit {head}"


def test_nothing_changed_leaves_no_snapshot(repo: UserRepo) -> None:
    done = repo.overlayrun("--backend", "copy", "-b", "b", "--", "cat", "src/app.py")
    assert done.ours[-1] == "nothing changed"
    assert repo.git("for-each-ref", "refs/overlayrun/snapshots") == ""
    assert repo.overlayrun("--backend", "copy", "--rm", "--", "true").ours[-1] == "nothing changed"
    assert repo.overlayrun("--backend", "copy", "-b", "c", "--", "no-such-command").code == 127
    assert repo.records().keys() == {"b"}


@pytest.mark.by_both
def test_the_limit_of_the_disk_counts_changes_alone(repo: UserRepo) -> None:
    repo.write("big", os.urandom(4 << 20))
    repo.commit("big")
    repo.inside("sleep 1.3; echo 1 >one", "--backend", "copy", "--disk", "2M")
    ended = repo.sh("head -c 8M /dev/zero >more; sleep 20", "--disk", "2M", "--timeout", "15")
    assert "its changes take more than 2" in ended.err, ended
