"""What every backend keeps: the same view, the same commits, the same commands; a plain directory is the oracle."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE, Done, UserRepo, wait_until

from overlayrun.alone import alone
from overlayrun.bases.index import read_stamps, stamp_of
from overlayrun.kernel import btrfs
from overlayrun.workspace.layout import WorkspaceLayout
from overlayrun.workspace.lock import is_locked
from overlayrun.workspace.record import Record

from . import edits
from .images import OWNER, OwnedRepo, make_repo, mounted_image, open_directory

pytestmark = pytest.mark.shared  # what a tree holds and what commands make of it

_PYTHON: Final = "/usr/bin/python3"
_EDITS: Final = Path(edits.__file__).read_text()
_DIRTY: Final = {"src/app.py": "answer = 42\n", "untracked/new": "mine\n", "staged": "staged\n"}

# Of every file: mode, time, content of a link. Git keeps no directories.
_SHOW: Final = """
import os, stat
for directory, names, files in os.walk("."):
    names[:] = sorted(name for name in names if name != ".git")
    for name in [*files, *names]:
        path = os.path.join(directory, name)
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            print(ascii(path), oct(info.st_mode), info.st_mtime_ns, info.st_size)
"""


class Bench:
    """One user's repository, and the backend that his branches get."""

    def __init__(self, repo: UserRepo, backend: str) -> None:
        self.repo = repo
        self.backend = backend

    def run(self, branch: str, *argv: str) -> str:
        """What a command prints in a branch of this backend; it must not fail."""
        done = self.repo.overlayrun("--backend", self.backend, "-b", branch, "--", *argv)
        assert done.code == 0, str(done)
        assert f"{self.backend} at " in done.err
        return done.out

    def sh(self, branch: str, script: str) -> str:
        return self.run(branch, "sh", "-ec", script)

    def must(self, *args: str) -> Done:
        done = self.repo.overlayrun(*args)
        assert done.code == 0, str(done)
        return done

    def plain(self, name: str) -> Path:
        """A copy of the user's tree, without git."""
        place = self.repo.root.parent / name
        subprocess.run(["cp", "-a", str(self.repo.root), str(place)], check=True)
        subprocess.run(["rm", "-rf", str(place / ".git")], check=True)
        return place


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Directories on each kind of file system; loop images are root's alone."""
    with contextlib.ExitStack() as stack:
        found = {"here": tmp_path_factory.mktemp("here")}
        if os.geteuid() == 0:
            found |= {kind: stack.enter_context(mounted_image(kind)) for kind in ("btrfs", "xfs")}
        yield found


_CASES: Final = (
    *(pytest.param((name, "here", False), id=name) for name in ("overlay", "copy")),
    *(
        pytest.param((name, kind, is_owned), id=f"{name}-{who}", marks=pytest.mark.root)
        for name, kind in (("btrfs", "btrfs"), ("reflink", "xfs"))
        for who, is_owned in (("of-root", False), ("of-a-user", True))
    ),
)


@pytest.fixture(scope="module", params=_CASES)
def bench(request: pytest.FixtureRequest, disks: dict[str, Path], _repo_to_copy: Path) -> Bench:
    """A repository with odd names, uncommitted changes and ignored files, shared by this module's tests."""
    backend, disk, is_owned = request.param
    place = disks[disk] / ("owned" if is_owned else backend)
    repo = make_repo(_repo_to_copy, place, is_owned=is_owned)
    for name, text in {".gitignore": "node_modules/\n.env\n", "odd\nname": "1\n", "-dash": "2\n"}.items():
        repo.write(name, text)
    for number in range(20):
        repo.write(f"deep/er/f{number}", f"{number}\n")
    Path(os.fsdecode(os.fsencode(repo.root) + b"/\xff\xfe")).write_bytes(b"3\n")
    if is_owned:
        subprocess.run(["chown", "-R", f"{OWNER}:{OWNER}", str(repo.root)], check=True)
    repo.commit("odd names")
    for name, text in _DIRTY.items():
        repo.write(name, text)
    repo.git("add", "staged")
    for name in ("tool.sh", "deep/er/f3"):
        (repo.root / name).unlink()
    repo.write(".env", "SECRET=1\n", 0o600)
    repo.write("node_modules/p/index.js", "module\n")
    (repo.root / "node_modules/p/link").symlink_to("index.js")
    os.utime(repo.root / "deep/er/f5", (1_000_000_000, 1_000_000_000))
    return Bench(repo, backend)


def _lines(text: str) -> list[str]:
    return sorted(text.splitlines())


def _outside(directory: Path, *words: str) -> str:
    done = subprocess.run([_PYTHON, "-c", *words], cwd=directory, capture_output=True, check=True)
    return os.fsdecode(done.stdout)


@pytest.mark.by_both
def test_a_workspace_shows_what_the_user_has(bench: Bench) -> None:
    """Modes, times, odd names, ignored files; git finds the uncommitted changes and reads nothing else."""
    repo = bench.repo
    before = repo.picture()
    assert _lines(bench.run("view", _PYTHON, "-c", _SHOW)) == _lines(_outside(repo.root, _SHOW))
    assert repo.picture() == before
    script = (
        "git diff-files --name-only; git status --porcelain; git fsck --no-dangling; git log -1 --format=%s"
    )
    shown = bench.sh("view", script).splitlines()
    changed = ["deep/er/f3", "src/app.py", "tool.sh"]
    status = [" D deep/er/f3", " M src/app.py", " D tool.sh", "?? staged", "?? untracked/"]
    assert sorted(shown) == sorted([*changed, *status, "odd names"])
    assert repo.picture() == before


def test_the_index_knows_a_clean_tree(bench: Bench) -> None:
    """Stat data alone: diff-files would tell of every file whose inode or change time is another."""
    options = ["--backend", bench.backend, "--dirty", "ignore", "-b", "clean"]
    done = bench.must(*options, "--", "sh", "-c", "git diff-files --name-only; git status --porcelain")
    assert done.out == ""
    assert "nothing changed" in done.err


@pytest.mark.by_both
@pytest.mark.parametrize("seed", [f"one{SHARE}", f"two{SHARE}"])
def test_random_edits_leave_the_same_tree_and_commit(bench: Bench, seed: str) -> None:
    repo, plain = bench.repo, bench.plain(seed)
    for step in ("first", "then"):
        words = (_EDITS, "edit", f"{seed}{step}", "25")
        assert _lines(bench.run(seed, _PYTHON, "-c", *words)) == _lines(_outside(plain, *words))
        assert _lines(bench.run(seed, _PYTHON, "-c", _EDITS, "show")) == _lines(
            _outside(plain, _EDITS, "show")
        )
        env = {"GIT_INDEX_FILE": f"{repo.root.parent}/index-{seed}", "GIT_WORK_TREE": str(plain)}
        repo.raw_git("read-tree", "main", env=env)
        repo.raw_git("add", "-A", env=env)
        assert (
            repo.git("rev-parse", f"{seed}^{{tree}}") == repo.raw_git("write-tree", env=env).decode().strip()
        )
    assert not [name for name in repo.files(seed) if name.startswith(("node_modules", ".env"))]


# Told by a branch and by its fork: everything but the name of the branch.
_TELL: Final = r"""
find . -path ./.git -prune -o ! -type d -printf '%p %y %m %n %T@ %l\n' | sort
cat one node_modules/p/index.js .env src/app.py; git status --short --ignored; git stash list; git diff --cached
git for-each-ref --format='%(objectname)' | sort; git config user.nick; cat ~/.tool/state; git fsck 2>&1 | sed /dangling/d
"""
_STATE: Final = """
git commit -q --allow-empty -m own; echo kept >kept; git add kept; git stash push -q -- kept; git branch idea
echo 1 >one; ln one two; chmod 640 one; touch -d @1000000000 one; mkdir -p shut node_modules/new
echo js >>node_modules/p/index.js; echo n >node_modules/new/n; echo agent >.env; echo in >shut/in; chmod 500 shut
mv deep/er deep/renamed; rm README; echo new >src/new; ln -s new src/app; git add src
git config user.nick me; mkdir -p ~/.tool; echo state >~/.tool/state
"""


def _unread(bench: Bench, branch: str) -> set[str]:
    """Tracked files that a snapshot of a whole tree does not read: their stamps are known."""
    place = bench.repo.workspace(branch)
    found = set()
    for name, stamp in read_stamps(str(place / "whole/index")).items():
        path = os.fsencode(place / "upper") + b"/" + name
        if os.path.lexists(path):
            info = os.lstat(path)
            if stamp == stamp_of(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns):
                found.add(os.fsdecode(name))
    return found


@pytest.mark.by_both
def test_forks_begin_from_the_present_state(bench: Bench) -> None:
    """Of a branch at work, from inside and outside, and of one at rest; uncommitted and ignored files come along."""
    repo = bench.repo
    script = f"set -e\n{_STATE}\noverlayrun fork -b forks-in >/dev/null; echo ready; read _"
    with repo.started(
        "--backend", bench.backend, "-b", "forks", "--every", "0", "--", "sh", "-c", script
    ) as run:
        run.expect("ready")
        out = bench.must("fork", "forks", "-b", "forks-out")
        assert "left out" not in out.out + out.err, str(out)
        run.type("go on")
        assert run.end() == 0, run.text()
    bench.must("fork", "forks", "-b", "forks-idle")
    seen = bench.sh("forks", _TELL)
    assert "module\njs\nagent\nanswer = 42\n" in seen
    unread = _unread(bench, "forks")
    assert ("odd\nname" in unread) == (bench.backend != "overlay")
    forks = ["forks-in", "forks-out", "forks-idle"]
    for fork in forks:
        assert repo.git("rev-parse", fork) == repo.git("rev-parse", "forks")
        assert _unread(bench, fork) == unread
        # Git's own index knows the files, too.
        assert bench.sh(fork, f"git diff-files --name-only | grep -c odd || :; {_TELL}") == f"0\n{seen}", fork
        assert repo.files(fork) == repo.files("forks")
    # What is done in one stays in it, and its next snapshot has it.
    bench.sh("forks-idle", "echo 2 >>two; echo 2 >>deep/renamed/f0; rm src/new; mv deep/renamed/f1 f1")
    changed = repo.git("diff", "--name-only", "--no-renames", "forks", "forks-idle").split()
    assert changed == ["deep/renamed/f0", "deep/renamed/f1", "f1", "one", "src/new", "two"]
    assert [(repo.workspace(fork) / "upper/one").read_text() for fork in forks] == ["1\n", "1\n", "1\n2\n"]


def test_the_disk_that_a_branch_has_alone_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that was cloned shares what its source wrote; what it writes itself is its own."""
    bench.sh("large", "head -c 3000000 /dev/urandom >large; sync large")
    bench.must("fork", "large", "-b", "larger")
    bench.sh("larger", "head -c 1000000 /dev/urandom >own; sync own")
    listed = json.loads(bench.must("ls", "--json").out)["workspaces"]
    taken = {item["branch"]: item["bytes"] for item in listed}
    is_cloned = bench.backend in ("btrfs", "reflink")
    assert 0 <= taken["large"] - (0 if is_cloned else 3_000_000) < 500_000
    assert 1_000_000 <= taken["larger"] - (0 if is_cloned else 3_000_000) < 1_500_000
    place = WorkspaceLayout(str(bench.repo.workspace("larger")))
    record = Record.load(place.record)
    assert not alone(place, record).is_bound
    monkeypatch.setattr("overlayrun.alone._MOST", 0)
    assert alone(place, record).is_bound == is_cloned
    assert alone(place, record).size >= 4_000_000


@pytest.mark.by_both
def test_directories_are_renamed(bench: Bench) -> None:
    script = (
        "mv src lib; mkdir x; mv deep x/deep; rm -r untracked; echo file >untracked; ls x/deep/er | wc -l"
    )
    if bench.backend != "overlay":
        script = f'{_PYTHON} -c \'import os; os.rename("src", "s"); os.rename("s", "src")\'; {script}'
    assert bench.sh("mv", script) == "19\n"
    names = bench.repo.files("mv")
    assert {"lib/app.py", "x/deep/er/f0", "untracked"} <= names.keys()
    assert not [name for name in names if name.startswith(("src", "deep", "untracked/"))]
    assert bench.sh("mv", "cat lib/app.py; git status --porcelain | grep -c f0") == "answer = 42\n1\n"


@pytest.mark.by_both
def test_a_branch_is_resumed_and_put_back(bench: Bench) -> None:
    bench.sh(
        "back", "echo one >n; rm -r deep; mkdir deep; echo o >deep/only; echo mod >>node_modules/p/index.js"
    )
    bench.sh(
        "back",
        "echo two >n; ln -s n l; chmod +x ./-dash; rm -r deep; git add -A; git commit -qm mine; echo late >n",
    )
    assert bench.repo.git("log", "--format=%s", "main..back").splitlines()[1:2] == ["mine"]
    bench.must("restore", "back", "@{1}")
    shown = bench.sh(
        "back", "cat n; ls -A deep; test ! -e l; cat node_modules/p/index.js; git status >/dev/null"
    )
    assert shown == "one\nonly\nmodule\nmod\n"
    assert bench.repo.show("back", "n") == "one\n"
    assert len(bench.repo.snapshots("back")) >= 3


def test_a_branch_lands_and_is_synced(bench: Bench) -> None:
    repo = bench.repo
    bench.sh("later", "echo l >later")
    options = ["--backend", bench.backend, "--dirty", "ignore", "-b", "lands"]
    bench.must(*options, "--", "sh", "-c", "echo m >merged; rm deep/er/f9")
    bench.must("merge", "lands")
    assert (repo.root / "merged").read_text() == "m\n"
    assert not (repo.root / "deep/er/f9").exists()
    assert "?? untracked/" in repo.git("status", "--porcelain")
    bench.must("sync", "later")
    assert bench.sh("later", "cat merged later src/app.py; ls deep/er | wc -l") == "m\nl\nanswer = 42\n18\n"
    repo.git("fsck", "--strict", "--no-dangling")


def test_a_throwaway_keeps_nothing_or_what_was_asked(bench: Bench) -> None:
    repo, throwaway = bench.repo, ("--backend", bench.backend, "--rm")
    bench.sh("stays", "true")
    before, refs, places = repo.picture(), repo.refs(), len(list((repo.state / "workspaces").iterdir()))
    done = bench.must(*throwaway, "--", "sh", "-c", "echo x >thrown; rm README")
    assert "1 added, 0 modified, 1 deleted" in done.err, str(done)
    assert (repo.picture(), repo.refs()) == (before, refs)
    bench.must(*throwaway, "--apply", "--", "sh", "-c", "echo x >applied")
    assert (repo.root / "applied").read_text() == "x\n"
    (repo.root / "applied").unlink()
    assert len(list((repo.state / "workspaces").iterdir())) == places
    bench.must(*throwaway, "--keep", "--", "sh", "-c", "echo x >kept")
    (branch,) = [
        name.removeprefix("refs/heads/") for name in repo.refs().keys() - refs.keys() if "heads" in name
    ]
    assert bench.sh(branch, "cat kept") == "x\n"
    bench.must("rm", "--force", branch)


def test_a_killed_run_is_taken_in(bench: Bench) -> None:
    repo = bench.repo
    script = "echo x >new; rm README; echo ready; exec sleep 1000"
    with repo.started(
        "--backend", bench.backend, "-b", "kill", "--every", "0", "--", "sh", "-c", script
    ) as run:
        run.expect("ready")
        done = repo.sh("true", branch="kill")
        assert done.code == 125
        assert "running already" in done.err
        run.process.kill()
        run.process.wait()
    wait_until(lambda: not is_locked(str(repo.workspace("kill") / "lock")), "lock free")
    done = repo.sh("cat new; test ! -e README", branch="kill")
    assert (done.code, done.out) == (0, "x\n"), str(done)
    assert "interrupted" in done.err
    assert repo.show("kill", "new") == "x\n"


def test_a_branch_stays_with_its_backend(bench: Bench) -> None:
    bench.sh("stays", "true")
    other = "copy" if bench.backend == "overlay" else "overlay"
    done = bench.repo.overlayrun("-b", "stays", "--backend", other, "--", "true")
    assert done.code == 125
    assert bench.backend in done.ours[0], str(done)
    assert "--backend" in done.ours[1]
    assert f"{bench.backend} at " in bench.must("-b", "stays", "--", "true").err


def test_what_is_removed_leaves_nothing(bench: Bench) -> None:
    repo = bench.repo
    bench.sh("gone", "echo x >gone")
    bench.sh("stays", "true")
    place = repo.workspace("gone")
    assert "gone" in bench.must("ls").out
    assert repo.overlayrun("rm", "gone").code != 0
    bench.must("rm", "--force", "gone")
    assert not place.exists()
    assert not [name for name in repo.refs() if place.name in name]
    bench.must("gc")
    assert bench.sh("stays", "cat src/app.py node_modules/p/index.js") == "answer = 42\nmodule\n"


def test_auto_takes_overlay_where_it_works(bench: Bench) -> None:
    done = bench.must("--rm", "--backend", "auto", "--", "true")
    assert "overlay at " in done.err
    assert not re.search(r"backend \w+: no", done.err)


@pytest.fixture(scope="module")
def btrfs_repo(disks: dict[str, Path], _repo_to_copy: Path) -> UserRepo:
    """A repository of root's on btrfs."""
    return make_repo(_repo_to_copy, disks["btrfs"] / "nested", is_owned=False)


@pytest.mark.root
def test_a_fork_has_what_lies_in_subvolumes_of_the_commands(btrfs_repo: UserRepo) -> None:
    """A snapshot of the tree's subvolume has empty directories in their place."""
    repo = btrfs_repo
    repo.inside("echo 1 >one", "--backend", "btrfs")
    place = repo.workspace() / "upper/inner"
    btrfs.create_subvolume(str(place))
    (place / "file").write_text("in it\n")
    os.chown(place, 65534, 65534)
    done = repo.overlayrun("fork", "b", "-b", "c")
    assert done.code == 0, str(done)
    assert (repo.workspace("c") / "upper/inner/file").read_text() == "in it\n"
    assert repo.inside("cat inner/file one", branch="c") == "in it\n1\n"
    assert repo.overlayrun("fork", "c", "-b", "d").code == 0
    assert repo.inside("cat inner/file one", branch="d") == "in it\n1\n"
    assert repo.overlayrun("rm", "--force", "b", "c", "d").code == 0


@pytest.mark.root
def test_auto_says_why_it_copies(repo: UserRepo) -> None:
    """On an overlay, as in a container, no upper can lie."""
    with open_directory() as place:
        for name in ("lower", "upper", "work", "joined"):
            (place / name).mkdir()
        made = make_repo(repo.root, place / "lower/user", is_owned=True)
        there = OwnedRepo(place / "joined/user/repo", place / "joined/user/home", made.env)
        env = {**made.env, "HOME": str(there.home), "XDG_STATE_HOME": f"{there.home}/state"}
        layers = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        script = f'mount -t overlay overlay -o {layers} {place}/joined; cd {there.root}; "$@"; "$@"'
        run = there.command("-b", "b", "--", "sh", "-c", "echo x >new; git status --porcelain")
        words = ["unshare", "--mount", "sh", "-ec", script, "sh", *run]
        done = subprocess.run(words, env=env, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "?? new\n?? new\n"
    assert "copy at " in done.stderr
    assert "backend copy: no overlay" in done.stderr
