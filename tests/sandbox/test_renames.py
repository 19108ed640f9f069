"""Directories of the base are renamed as anywhere else, by whoever asks; nobody gains a right by it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from conftest import SHARE, UserRepo, copy_repo

from overlayrun.sandbox import aside, renaming
from overlayrun.sandbox.seccomp import assemble

from .rename_oracle import differing, fill, renamed, wanted
from .test_seccomp import ALLOW, ERRNO, MACHINES, interpret

if TYPE_CHECKING:
    from collections.abc import Callable

_HERE: Final = Path(__file__).parent
_SEQUENCES: Final = 60
_LARGE: Final = 1500


def _fill(repo: UserRepo, directory: str, count: int = 3) -> None:
    for number in range(count):
        repo.write(f"{directory}/f{number}", f"{directory} {number}")
        repo.write(f"{directory}/sub/g{number}", f"{directory} {number}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path) -> UserRepo:
    """A repository full of directories to rename, and its scripts."""
    repo = copy_repo(_repo_to_copy, tmp_path_factory.mktemp("renames"))
    for name in ("tracked", "plain", "over", "over2", "stays", "full", "one", "landlocked", "signals"):
        _fill(repo, name)
    _fill(repo, "two", 1)
    for number in range(10):
        _fill(repo, f"many/d{number}", 1)
        _fill(repo, f"threads/t{number}", 1)
    for name in ("again", "again2"):
        _fill(repo, f"{name}/sub/deep")
    for name in "xy":
        _fill(repo, f"swap/{name}/d")
    for name in ("inner/none", "closed/file", "open"):
        repo.write(f"kept/{name}", "early\n")
    (repo.root / "kept/link").symlink_to("open")
    for number in range(_LARGE):
        repo.write(f"large/d{number % 15}/f{number}", f"{number}")
    fill(repo, _SEQUENCES)
    for script in ("rename_fuzz.py", "rename_stories.py"):
        repo.write(script, (_HERE / script).read_text())
    repo.commit()
    (repo.root / "kept/closed/empty").mkdir()
    (repo.root / "emptied").mkdir()
    (repo.home / "settings/sub").mkdir(parents=True)
    (repo.home / "settings/sub/file").write_text("mine")
    return repo


@pytest.fixture(scope="module")
def told(world: UserRepo) -> dict[str, Any]:
    """What the stories saw in one run of branch b."""
    out = world.inside("mkdir -p kept/closed/empty emptied; exec python3 rename_stories.py")
    stories: dict[str, Any] = json.loads(out)
    return stories


def test_without_help_the_kernel_refuses(told: dict[str, Any]) -> None:
    """The mark lets a call pass unheard: it gives nobody more than the kernel does."""
    assert told["marked_calls_get_the_kernels_answer"] == "EXDEV"


def test_git_and_mv_and_python_rename_directories(told: dict[str, Any]) -> None:
    assert told["git_mv"] == ["", ["R "], 6]
    assert told["python_and_mv"] == [6, False, False]


def test_everything_about_it_is_kept(told: dict[str, Any]) -> None:
    kept = ["", "yes", "0o40555", 2000, True, "early\nlate\n", "open", True]
    assert told["what_it_was_like_is_kept"] == kept


def test_an_empty_directory_is_replaced(told: dict[str, Any]) -> None:
    assert told["over_an_empty_directory"] == ["", 6, "", 6]


def test_refusals_are_those_of_any_file_system(told: dict[str, Any]) -> None:
    assert told["refused"] == {
        "no replace": "EEXIST",
        "not empty": "ENOTEMPTY",
        "a file": "ENOTDIR",
        "over a directory": "EISDIR",
        "into itself": "EINVAL",
        "over what holds it": "ENOTEMPTY",
        "dot": "EBUSY",
        "no such": "ENOENT",
        "parent": "ENOENT",
        "git": "EBUSY",
        "itself": "",
        "whole": 12,
    }


def test_flags_that_are_refused_prepare_nothing(told: dict[str, Any]) -> None:
    assert told["flags_that_no_overlay_takes"] == [*["EINVAL"] * 5, "EXDEV"]


def test_directories_change_places(told: dict[str, Any]) -> None:
    assert told["exchange"] == ["", 2, 6, "", "single", 2]


def test_threads_descriptors_and_signals(told: dict[str, Any]) -> None:
    names = sorted([*(f"r{number}" for number in range(6)), *(f"t{number}" for number in range(6, 10))])
    assert told["from_a_thread_with_descriptors"] == [names, 20]
    assert told["signals_repeat_nothing"] == ["", 6, True]


def test_the_view_of_the_home_is_no_exception(world: UserRepo, told: dict[str, Any]) -> None:
    assert told["in_the_home"] == "mine"
    assert (world.home / "settings/sub/file").read_text() == "mine"


def test_nothing_leaves_the_workspace(told: dict[str, Any]) -> None:
    assert set(told["out_of_the_workspace"]) <= {"EROFS", "EXDEV", "EACCES"}


def test_bad_arguments(told: dict[str, Any]) -> None:
    assert told["bad_arguments"] == [["EFAULT"] * 5, *["ENAMETOOLONG"] * 3, 6]


def test_who_gave_up_more_gets_no_more(told: dict[str, Any]) -> None:
    refusal, count, is_moved = told["a_sandbox_of_its_own_is_not_widened"]
    assert refusal in {"EXDEV", "EACCES"}
    assert (count, is_moved) == (6, False)


def test_races_lose_nothing(told: dict[str, Any]) -> None:
    moved, count = told["many_wait_at_once"]
    assert moved == 10
    assert count == 20
    assert told["paths_that_change_meanwhile"] == 12


def test_a_helper_that_is_killed_loses_nothing(world: UserRepo, told: dict[str, Any]) -> None:
    """What it was doing is put right when the run ends, and the snapshot has every file in its place."""
    error, count, is_killed = told["the_helper_is_killed"]
    assert is_killed
    assert error in {"", "EIO", "EXDEV"}
    assert count >= _LARGE  # with the notes of what lies aside
    paths = [path for path in world.files("b") if path.startswith(("large", ".overlayrun"))]
    assert {path.partition("/")[0] for path in paths} == {"large2" if not error else "large"}
    assert len(paths) == _LARGE


def test_the_snapshot_is_what_was_renamed(world: UserRepo, told: dict[str, Any]) -> None:
    before, after = world.files("main"), world.files("b")
    moved = {path.replace("tracked/", "moved/"): what for path, what in before.items() if "tracked/" in path}
    assert moved
    assert moved.items() <= after.items()
    assert not [path for path in after if path.startswith(("tracked/", "plain/", "over/", ".overlayrun"))]
    assert after["kept2/open"] != before["kept/open"]
    assert told["made_again"] == 2
    again = sorted(path for path in after if path.startswith(("again", "away")))
    assert again == ["again/sub/deep/new", "again2/sub/deep/new"]


def test_random_operations_are_those_of_a_plain_directory(world: UserRepo, tmp_path: Path) -> None:
    """Errno by errno, and the trees at the end; each of root and the user tries other sequences."""
    first = random.randrange(10**6) * 2 * _SEQUENCES + SHARE * _SEQUENCES
    script = f"python3 rename_fuzz.py {first} {_SEQUENCES}; test ! -e .overlayrun-moving"
    told = json.loads(world.inside(script, branch="fuzz"))
    assert differing(told, wanted(world, tmp_path, first, _SEQUENCES, as_nobody=True)) == []
    assert renamed(told) > _SEQUENCES


def test_who_joins_renames_too_and_what_he_left_behind(world: UserRepo) -> None:
    script = "echo ready; read line; cat later"
    late = "git mv tracked renamed; (read x <wait; mv -T plain later.d; ls later.d >later) >out 2>&1 & exit 7"
    with world.started("-b", "joined", "--", "sh", "-c", f"mkfifo wait; {script}") as run:
        run.expect("ready")
        done = world.overlayrun("exec", "joined", "--", "sh", "-c", late)
        assert (done.code, done.err) == (7, "")
        done = world.overlayrun(
            "exec", "joined", "--", "sh", "-c", "echo go >wait; until [ -s later ]; do sleep .1; done"
        )
        assert done.code == 0, str(done)
        run.type("")
        assert run.end() == 0
        assert "sub" in run.text()
    paths = world.files("joined")
    assert "renamed/f0" in paths
    assert "later.d/f0" in paths


_GUESTS: Final = """
import json, os, socket, time
while not os.path.exists(os.environ["OVERLAYRUN_SOCKET"]):
    time.sleep(0.01)
def ask(**words):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["OVERLAYRUN_SOCKET"])
        s.sendall(json.dumps(words).encode() + b"\\n")
        return json.loads(s.makefile().readline())
os.rename("plain", "plain2")
for name in ("first", "second"):
    opened = ask(op="open", branch=name)
    os.rename(opened["path"] + "/plain", opened["path"] + "/" + name)
    assert "error" not in ask(op="close", branch=name)
"""


def test_further_branches_that_a_run_opens(world: UserRepo) -> None:
    """Their mounts come later than the first rename, and the second may have the number that the first had."""
    done = world.overlayrun("-b", "host", "--", "python3", "-c", _GUESTS)
    assert done.code == 0, str(done)
    for branch, place in (("host", "plain2"), ("first", "first"), ("second", "second")):
        paths = world.files(branch)
        assert f"{place}/sub/g0" in paths
        assert "plain/sub/g0" not in paths


def test_in_a_sandbox_of_an_agents_own_all_is_as_before(world: UserRepo) -> None:
    """Other mounts are not ours to prepare: EXDEV, and mv copies."""
    python = 'import os; os.rename("plain", "p2")'
    inner = f"python3 -c '{python}' 2>&1 | grep -o 'Invalid cross-device link'; mv plain p3; ls p3"
    world.write("inner.sh", inner)
    out = world.inside("unshare -rm sh inner.sh", "--allow-userns", branch="nested")
    assert out.split() == ["Invalid", "cross-device", "link", "f0", "f1", "f2", "sub"]


def test_the_help_can_be_switched_off(world: UserRepo) -> None:
    done = world.sh("git mv tracked moved", "--rm", "--without", "renames", branch=None)
    assert done.code != 0
    assert "cross-device" in done.err


@pytest.mark.parametrize("attempt", range(2))
def test_a_kill_at_any_moment_loses_nothing(
    world: UserRepo, until: Callable[..., None], attempt: int
) -> None:
    """The directory is as it was, or renamed: never in between, once the next command has looked."""
    dice = random.Random(time.time_ns())
    branch = f"killed{attempt}"
    script = f"echo {world.marker} ready; exec python3 -c \"import os; os.rename('large', 'huge'); input()\""
    with world.started("-b", branch, "--dirty", "ignore", "--", "sh", "-c", script) as run:
        run.expect("ready")
        time.sleep(dice.random() * 0.4)
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
    until(lambda: not world.marked(), "death")
    done = world.overlayrun("snapshot", branch)
    assert done.code == 0, str(done)
    assert done.ours, "nothing was recovered"
    before, after = world.files("main"), world.files(branch)
    places = {path.partition("/")[0] for path in after} - {path.partition("/")[0] for path in before}
    assert places <= {"huge"}
    wanted = {path.replace("large/", "huge/") if places else path: what for path, what in before.items()}
    assert after == wanted


def test_a_sandbox_that_dies_in_the_middle_leaves_a_whole_tree(
    world: UserRepo, until: Callable[..., None]
) -> None:
    """The run itself sees to that before its last snapshot."""
    script = "echo ready; exec python3 -c \"import os; os.rename('large', 'huge'); print('done', flush=True); input()\""
    with world.started("-b", "dead", "--dirty", "ignore", "--", "sh", "-c", script) as run:
        run.expect("ready")
        moving = world.workspace("dead") / "upper/.overlayrun-moving"
        until(lambda: moving.exists() or "done" in run.text(), "the rename begins")
        pid = run.process.pid
        (keeper, *_) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(keeper), signal.SIGKILL)
        assert run.end() == 128 + signal.SIGKILL
        assert "the sandbox was killed" in run.text()
        is_done = "done" in run.text()
    before, after = world.files("main"), world.files("dead")
    assert after == {path.replace("large/", "huge/") if is_done else path: before[path] for path in before}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("userns", [False, True])
def test_the_filter_tells_of_every_rename_that_is_not_marked(machine: str, *, userns: bool) -> None:
    """Both halves of the mark count; whiteouts are refused before, where they always are."""
    arch, numbers = MACHINES[machine]
    program = assemble(machine, ptrace=False, userns=userns, heard=True, renames=True)
    asked, mark, whiteout = 0x7FC00000, 0x6F76_6572_6C61_7972, (1, 2, 3, 4, 4, 0)  # SECCOMP_RET_USER_NOTIF
    names = [name for name in ("rename", "renameat", "renameat2") if name in numbers]
    assert len(names) == (3 if machine == "x86_64" else 2)
    for name in names:
        verdicts = {
            last: interpret(program, arch, numbers[name], (1, 2, 3, 4, 0, last))[0]
            for last in (0, 1, mark, mark & 0xFFFFFFFF, mark & ~0xFFFFFFFF, mark + (1 << 40))
        }
        assert verdicts.pop(mark) == ALLOW
        assert set(verdicts.values()) == {asked}
    is_refused = ERRNO | errno.EINVAL
    assert interpret(program, arch, numbers["renameat2"], whiteout)[0] == (asked if userns else is_refused)


def test_what_a_kill_left_aside_is_put_in_its_place(tmp_path: Path) -> None:
    """Between two entries of a directory, and after the last; what names no place stays where it is."""
    place_aside = tmp_path / ".overlayrun-moving"
    half, last, lost = place_aside / "1234/1", place_aside / "1234/2", place_aside / "5678/1"
    for place in (half, last, lost, tmp_path / "a/half", tmp_path / "a/last", place_aside / "1234/probe"):
        place.mkdir(parents=True)
    (half / "one").write_text("1")
    (tmp_path / "a/half/two").write_text("2")
    (last / "all").write_text("3")
    (lost / "file").write_text("4")
    for note, path in (
        ("1234/1", "a/half"),
        ("1234/2", "a/last"),
        ("1234/3", "a/half"),
        ("5678/1", "no/where"),
    ):
        (place_aside / f"{note}.becomes").symlink_to(f"750 1000000000 {path}")
    assert aside.finish([str(tmp_path)]) == errno.EIO
    assert sorted(os.listdir(tmp_path / "a/half")) == ["one", "two"]
    assert os.listdir(tmp_path / "a/last") == ["all"]
    assert (tmp_path / "a/half").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "a/half").stat().st_mtime == 1
    assert sorted(path.name for path in place_aside.rglob("*")) == ["1", "1.becomes", "5678", "file"]


def test_a_note_that_the_command_wrote_leads_nowhere_else(tmp_path: Path) -> None:
    """It is read on the host, too: of a folder's tree."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    for place in (top / "a", top / ".git/x", outside / "b"):
        place.mkdir(parents=True)
    (top / "ln").symlink_to(outside)
    (top / "a/ln").symlink_to(outside / "b")
    bad = {
        "1": f"700 1 {outside}/b",
        "2": "700 1 ../outside/b",
        "3": "700 1 ln/b",
        "4": "700 1 a/ln",
        "5": "700 1 ..",
        "6": "700 1 .git/x",
        "7": "700 1 a/.",
        "8": "700 1 ",
        "9": f"{'7' * 99} {'9' * 99} a",
        "10": "nonsense",
    }
    for name, note in bad.items():
        made = top / ".overlayrun-moving/evil" / name
        made.mkdir(parents=True)
        (made / name).touch()
        made.with_name(f"{name}.becomes").symlink_to(note)
    assert aside.finish([str(top)]) == errno.EIO
    assert sorted(str(path.relative_to(outside)) for path in outside.rglob("*")) == ["b"]
    assert sorted(os.listdir(tmp_path)) == ["outside", "top"]
    assert sorted(os.listdir(top)) == [".git", ".overlayrun-moving", "a", "ln"]
    assert os.listdir(top / ".git/x") == []
    assert set(os.listdir(top / "a")) <= {"9", "ln"}  # the only place of the tree that is named


def test_a_file_system_that_can_rename_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    inode = (tmp_path / "d").stat().st_ino
    wish = renaming.Wish(str(tmp_path), str(tmp_path / "d"), str(tmp_path / "e"), 0)
    assert wish.serve() == 0
    assert (tmp_path / "d").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["d"]
