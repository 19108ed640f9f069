"""`overlayrun open` against names that somebody else chose, an agent that moves his tree, and a daemon that is stopped."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import UserRepo, copy_repo, wait_until

from hostile.world import _CONTROL
from overlayrun.folders.place import mountpoint_of, status_of
from overlayrun.workspace.layout import Layout

# name, and what it is made as: nothing where it is refused
_NAMES = {
    "-x": "",
    "--help": "",
    "..x": "",
    ".x": "",
    "@": "",
    "@{-1}": "",
    "HEAD": "",
    "refs~heads~main": "",
    "a.lock": "",
    "new\nline": "",
    "red\x1b[31m": "",
    "bidi\u202egpj": "",
    "e\u0301": "",
    "byte\udcff": "",
    "$(touch pwned)": "",
    "l" * 255: "",
    "r1@-x": "",
    "r2@--upload-pack=touch pwned": "",
    "r3@$(touch pwned)": "",
    "r4@\x1b[2J": "",
    "r5@no@such": "",
    "r6@^{": "",
    "r7@HEAD": "r7",
    "r8@{upstream}": "",
    "stash": "stash",
    "l" * 200: "l" * 200,
}
_MOVE = """
cd "$HOME/work" && mv repo/README . && cd .. && python3 -c 'import os; os.rename("work", "moved")' &&
mkdir -p work/repo && echo planted >work/repo/README; echo ready; read line
"""


@pytest.fixture(scope="module")
def opened(_repo_to_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserRepo]:
    """Folders of a repository below HOME."""
    made = copy_repo(_repo_to_copy, tmp_path_factory.mktemp("opened"))
    (made.home / "work").mkdir()
    repo = made.at(made.root.rename(made.home / "work/repo"))
    done = repo.overlayrun("open")
    assert done.code == 0, str(done)
    yield repo
    repo.overlayrun("open", "--stop")


def _branches(repo: UserRepo) -> Path:
    return repo.root / ".overlay/branches"


def test_names_are_no_options_no_paths_and_no_control_sequences(opened: UserRepo) -> None:
    for name, made in _NAMES.items():
        path = os.fsencode(_branches(opened)) + b"/" + os.fsencode(name)
        if made:
            os.mkdir(path)
        else:
            with pytest.raises(OSError, match=r"Invalid argument|No such file|File exists|too long"):
                os.mkdir(path)
    listed = set(os.listdir(_branches(opened)))
    assert listed - {"moves", "kept", "halted"} == {made for made in _NAMES.values() if made}
    assert {name for name in opened.refs() if name.startswith("refs/heads/")} >= {
        f"refs/heads/{name}" for name in listed
    }
    assert not list(opened.root.rglob("pwned"))
    said = [opened.overlayrun(*words) for words in (("status",), ("ls",), ("doctor",))]
    log = Path(Layout(str(opened.state)).folders) / "log"
    for text in [*(done.out + done.err for done in said), log.read_text()]:
        assert not _CONTROL.search(text.replace("\n", " ").replace("\t", " "))
    assert "not a usable branch name" in log.read_text()
    info = log.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o600, os.geteuid())


def test_a_tree_that_its_command_moved_away_is_not_taken_for_another(opened: UserRepo) -> None:
    """In a HOME of its own a command may rename the directory above its repository."""
    place = _branches(opened) / "moves"
    with opened.started("-b", "moves", "--home", "private", "--", "sh", "-c", _MOVE) as run:
        run.expect("ready")
        with pytest.raises(OSError, match="busy"):
            (place / "README").read_text()
        run.type("")
        assert run.process.wait(60) == 0, run.text()
    wait_until(lambda: not os.path.lexists(place / "README"), "the tree itself: the command moved that file")
    assert (place / "src/app.py").read_text() == "answer = 41\n"


def test_a_shell_keeps_its_directory_when_a_run_takes_the_branch(opened: UserRepo) -> None:
    place = _branches(opened) / "kept"
    place.mkdir()
    here = os.open(place, os.O_PATH)
    known = os.readlink(f"/proc/self/fd/{here}")
    opened.inside("echo in >inside", branch="kept")
    wait_until(lambda: os.readlink(f"/proc/self/fd/{here}") == known, "that it counts as removed no more")
    assert "inside" in os.listdir(f"/proc/self/fd/{here}")
    os.close(here)


def test_commands_do_not_wait_for_a_daemon_that_is_stopped(opened: UserRepo) -> None:
    (_branches(opened) / "halted").mkdir()
    told = status_of(Layout(str(opened.state)))
    assert told is not None
    os.kill(told["pid"], signal.SIGSTOP)
    try:
        done = opened.overlayrun("status")
        assert done.code == 0
        assert f"kill -CONT {told['pid']}" in done.err
        assert "does not answer" in opened.overlayrun("doctor").out
        refused = opened.overlayrun("-b", "halted", "--", "true")
        assert refused.code == 125
        assert "is stopped" in refused.err
    finally:
        os.kill(told["pid"], signal.SIGCONT)
    wait_until(lambda: status_of(Layout(str(opened.state))), "its answer")


def test_folders_are_mounted_in_nobody_else_s_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner could put another one in their place; and no run begins with a mount below HOME."""
    layout = Layout(str(tmp_path))

    def chosen(runtime: Path) -> bool:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        return mountpoint_of(layout).startswith(f"{runtime}/")

    own = tmp_path / "own"
    own.mkdir(0o700)
    assert chosen(own)
    assert not chosen(tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not chosen(own)
    monkeypatch.setenv("HOME", "/nowhere")
    own.chmod(0o770)
    assert not chosen(own)
    own.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(own, 65534, -1)
        assert not chosen(own)


@pytest.mark.root
def test_folders_that_lie_in_sight_of_a_run_are_covered(repo: UserRepo, until: Callable[..., None]) -> None:
    """With root's own identity inside, and a runtime directory that no private mount of the sandbox hides."""
    runtime = Path("/var/lib") / f"overlayrun-test-{repo.marker}"
    runtime.mkdir(0o700)
    repo.env["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        assert repo.overlayrun("open").code == 0
        (_branches(repo) / "secret").mkdir()
        (_branches(repo) / "secret/file").write_text("secret")
        mount = os.readlink(repo.root / ".overlay")
        assert mount.startswith(str(runtime))
        look = f"ls -lA {mount} {mount}/branches/*; cat {mount}/branches/secret/file; mkdir {mount}/branches/x; find {runtime}"
        done = repo.sh(f"{look}; true", "--allow-root-uid")
        assert done.code == 0, str(done)
        assert "secret" not in done.out
        assert done.out.split("\n")[-3:-1] == [f"{runtime}/overlayrun", mount]
        assert sorted(os.listdir(_branches(repo))) == ["b", "secret"]
    finally:
        repo.overlayrun("open", "--stop")
        for directory in (*sorted(runtime.rglob("*"), reverse=True), runtime):
            directory.rmdir()
