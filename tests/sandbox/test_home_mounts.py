"""HOME with other mounts below it: all of it is seen, written to as ever, and no dead server is waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from overlayrun.kernel.mountinfo import mounts
from overlayrun.sandbox.parts import divide
from overlayrun.sandbox.plan import Overlay
from overlayrun.workspace.catalogue import survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import UserRepo

_SERVER: Final = Path(__file__).parent / "remote_directory.py"
_OWNER: Final = 12345  # a number that no user has
_LARGE: Final = (64 << 20) + 1


@contextmanager
def _far(*places: Path) -> Iterator[list[int]]:
    """Mounts of servers of their own; their pids."""
    servers = []
    try:
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            server = subprocess.Popen([sys.executable, _SERVER, place], stdout=subprocess.PIPE)
            servers.append(server)
            assert server.stdout
            assert server.stdout.readline() == b"mounted\n"
        yield [server.pid for server in servers]
    finally:
        for server, place in zip(servers, places, strict=False):
            server.kill()
            server.wait()
            assert server.stdout
            server.stdout.close()
            subprocess.run(["fusermount3", "-u", "-z", "--", place], check=True)


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def _furnish(home: Path) -> None:
    for name in (
        ".rc",
        ".cache/file",
        ".cache/pip/f",
        ".cache/far/beside",
        "work/deep/f",
        "gone/f",
        "turned/f",
    ):
        _write(home / name, f"host {name}\n")
    for name in (".ssh/id_rsa", ".config/gh/hosts.yml", ".config/app/f"):
        _write(home / name, "s3cret\n" if name != ".config/app/f" else "host app\n")
    (home / "link").symlink_to(".rc")
    (home / "work").chmod(0o750)
    with (home / "image.iso").open("wb") as file:
        file.truncate(_LARGE)


_SEEN: Final = """
cd; cat far/file .cache/far/doc/file .rc link .cache/file .cache/pip/f .cache/far/beside work/deep/f .config/app/f
stat -c %a work; stat -c %s image.iso
for file in .ssh/id_rsa .config/gh/hosts.yml; do test ! -e $file; done
for file in far/file far/new; do ! sh -c "echo x >>$file" 2>/dev/null; done
"""
_WRITTEN: Final = """
for file in .rc .cache/file .cache/new .cache/pip/f .cache/far/beside work/deep/f made; do echo branch >$file; done
mkdir -p new/dir; echo branch >new/dir/f; mv work/deep/f work/moved; git config --global overlay.test yes
"""
_KEPT: Final = "cd; cat .rc .cache/file .cache/new .cache/pip/f .cache/far/beside work/moved made new/dir/f; ls work/deep"
_CHANGED: Final = "branch\n" * 8


def test_an_overlay_of_it_in_one_piece_and_in_parts_are_one_branchs_home(repo: UserRepo) -> None:
    home = repo.home
    _furnish(home)
    # While nothing is mounted.
    repo.inside(
        "cd; rm -r gone; mkdir gone; echo branch >gone/new; rm -r turned; ln -s .rc turned", branch="b"
    )
    with _far(home / "far", home / ".cache/far/doc"):
        out = repo.inside(_SEEN + _WRITTEN).splitlines()
        assert out[:2] == ["far away"] * 2
        assert out[2:4] == ["host .rc"] * 2
        assert out[4:] == [
            *(
                "host .cache/file",
                "host .cache/pip/f",
                "host .cache/far/beside",
                "host work/deep/f",
                "host app",
            ),
            *("750", str(_LARGE)),
        ]
        done = repo.sh(_KEPT + "; ls gone; readlink turned; echo x >>image.iso")
        assert done.out == _CHANGED + "new\n.rc\n", str(done)
        # As nobody, root's command gets a view in one piece.
        said = [line for line in done.ours if "~/.cache/far/doc" in line and "~/image.iso" in line]
        assert (len(said), done.code) == ((0, 0) if os.geteuid() == 0 else (1, 2)), str(done)
        fork = repo.overlayrun("fork", "b", "-b", "forked")
        assert fork.code == 0, str(fork)
        assert repo.inside(_KEPT, branch="forked") == _CHANGED
    assert repo.inside(_KEPT + "; cat .config/app/f; ls gone") == _CHANGED + "host app\nnew\n"
    assert (home / ".rc").read_text() == "host .rc\n"
    assert (home / "work/deep/f").exists()
    assert not (home / "made").exists()


def test_a_dead_server_stops_nothing(repo: UserRepo) -> None:
    home = repo.home
    (home / "note").write_text("host\n")
    (home / ".local/state/overlayrun").mkdir(parents=True)
    with _far(home / "far", home / "other") as servers:
        known = f"{home}/other/repository/.git/overlayrun"
        (home / ".local/state/overlayrun/repositories").write_bytes(os.fsencode(known) + b"\0")
        for server in servers:
            os.kill(server, signal.SIGSTOP)
        try:
            done = repo.sh('cat "$HOME/note"; ls "$HOME" "$HOME/other"')
            joined = repo.sh('cat "$HOME/note"', "--rm", branch=None)
        finally:
            for server in servers:
                os.kill(server, signal.SIGCONT)
        assert (done.code, done.out.split()) == (
            0,
            ["host", f"{home}:", "far", "note", "other", f"{home}/other:"],
        ), str(done)
        assert any(line.endswith("nobody answers there: ~/other") for line in done.ours), str(done)
        assert joined.out == "host\n"
        # The other repository was not forgotten.
        assert known in (home / ".local/state/overlayrun/repositories").read_text()


@pytest.mark.shared
def test_a_mount_in_an_ignored_directory_that_is_to_be_live_ends_no_run(repo: UserRepo) -> None:
    repo.commit(**{".gitignore": "data\n"})
    repo.write("data/near", "near\n")
    with _far(repo.root / "data/far"):
        assert repo.inside("cat data/near data/far/file; echo x >data/far/new", "--carry", "live") == (
            "near\nfar away\n"
        )
        assert not (repo.root / "data/far/new").exists()


@pytest.mark.shared
def test_what_is_too_much_for_parts_is_read_only(tmp_path: Path) -> None:
    home, upper = tmp_path / "home", tmp_path / "upper"
    for number in range(250):
        (home / f".cache/many/{number}").mkdir(parents=True)
    for name in (
        ".cache/tool/f",
        ".secret/f",
        ".config/secret/f",
        ".config/app/f",
        "link/f",
        "file",
        "closed/f",
    ):
        _write(home / name, name)
    (home / "closed").chmod(0o750)
    for place in (upper, tmp_path / "work"):
        place.mkdir()
    (upper / "link").symlink_to("/")  # by an agent
    whole = Overlay("HOME", str(home), [str(home)], str(upper), f"{tmp_path}/work/home")
    whole.hidden = [".secret", ".config/secret"]
    made = divide(
        whole, [f"{home}/.cache/many/3/far", f"{home}/.config/far"], [f"{home}/closed"], f"{tmp_path}/copies"
    )
    parts = {part.target.removeprefix(f"{home}/"): part for part in made.overlays}
    assert list(parts) == [str(home), ".cache", ".cache/tool", ".config", ".config/app"]
    assert made.read_only == [f"{home}/.cache/many"]
    assert len({part.work for part in made.overlays}) == len(parts)
    assert {part.upper.removeprefix(str(upper)) for part in made.overlays} == {
        *("", "/.cache", "/.cache/tool", "/.config", "/.config/app"),
    }
    copies = {name: set(os.listdir(part.lowers[0])) for name, part in parts.items()}
    assert copies[str(home)] == {".cache", ".config", "closed", "file", "link"}
    assert (copies[".cache"], copies[".config"]) == ({"many", "tool"}, {"app"})
    assert os.readlink(upper / "link") == "/"
    assert not (upper / "closed").exists()


_GONE_MEANWHILE: Final = """
import os, sys
from overlayrun.kernel import abi, namespaces, syscalls
from overlayrun.sandbox import mounts
from overlayrun.sandbox.parts import divide
from overlayrun.sandbox.plan import Overlay, Parts
home, upper, work = (f"{sys.argv[1]}/{name}" for name in ("home", "upper", "work"))
for place in (f"{home}/stays", f"{home}/goes", f"{home}/far", upper, work):
    os.makedirs(place)
made = divide(Overlay("HOME", home, [home], upper, f"{work}/home"), [f"{home}/far"], [], f"{work}/copies")
os.rmdir(f"{home}/goes")
ids = os.geteuid(), os.getegid()
syscalls.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
namespaces.map_identity(*ids)
mounts.apply([Parts("HOME", made.overlays)])
os.mkdir(f"{home}/goes/made")
os.mkdir(f"{home}/stays/made")
"""


@pytest.mark.shared
def test_a_directory_that_goes_while_parts_are_made_ends_no_run(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _GONE_MEANWHILE, tmp_path], check=True)
    assert (tmp_path / "upper/goes/made").is_dir()
    assert (tmp_path / "upper/stays/made").is_dir()
    assert os.listdir(tmp_path / "home/stays") == []


@contextmanager
def _mounted(*commands: list[str | Path]) -> Iterator[None]:
    with ExitStack() as stack:
        for command in commands:
            subprocess.run(["mount", *command], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", command[-1]], check=True)
        yield


@pytest.mark.root
def test_mounts_by_root_below_an_ordinary_users_home(repo: UserRepo) -> None:
    """A disk of its own with the repository on it, a single file, and a HOME that is a mount itself."""
    home, disk = repo.home, repo.home / "disk"
    with _mounted(["--bind", home, home]):
        disk.mkdir()
        for name in ("rc", "single"):
            (home / name).write_text(f"host {name}\n")
        (home / "theirs").mkdir()
        (home / "theirs/f").write_text("root's\n")
        with _mounted(
            ["-t", "tmpfs", "tmpfs", disk],
            ["--bind", home / "rc", home / "single"],
        ):
            subprocess.run(["cp", "-a", repo.root, disk / "repo"], check=True)
            repo.git("config", "--global", "--add", "safe.directory", "*")
            for above in (repo.root, *repo.root.parents):
                if above != Path("/"):
                    above.chmod(above.stat().st_mode | 0o055)
            subprocess.run(["chown", "-Rh", f"{_OWNER}:{_OWNER}", home], check=True)
            subprocess.run(["chown", "-R", "0:0", home / "theirs"], check=True)
            there = repo.at(disk / "repo")
            script = "pwd; cat ~/rc ~/single ~/theirs/f README; echo branch >~/rc; touch work; ! touch ~/theirs/x ~/disk/x"
            who = ["setpriv", f"--reuid={_OWNER}", f"--regid={_OWNER}", "--clear-groups"]
            done = subprocess.run(
                [*who, *there.command("-b", "b", "--", "sh", "-ec", script)],
                cwd=there.root,
                env=there.env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.split("\n")[:5] == [
                *(str(there.root), "host rc", "host rc", "root's", "read me"),
            ], done.stdout
            assert (home / "rc").read_text() == "host rc\n"
            assert "work" in there.git("ls-tree", "--name-only", "b").split()


@pytest.mark.root
def test_a_server_below_roots_home_needs_no_id_map(repo: UserRepo) -> None:
    (repo.home / "note").write_text("host\n")
    with _far(repo.home / "far"):
        assert (
            repo.inside('cat "$HOME/note"; echo branch >"$HOME/note"; cat "$HOME/note"') == "host\nbranch\n"
        )
        refused = repo.sh('cat "$HOME/note"', "--allow-root-uid", branch="root")
        assert (refused.code, refused.out) == (0, "host\n"), str(refused)


@pytest.mark.shared
def test_what_was_mounted_is_asked_before_a_repository_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "overlayrun").mkdir()
    (tmp_path / "there").mkdir()
    with _far(tmp_path / "far") as servers:
        places = [tmp_path / "there", tmp_path / "far/file", tmp_path / "gone"]
        known = b"".join(os.fsencode(place) + b"\0" for place in places)
        (tmp_path / "overlayrun/repositories").write_bytes(known)
        assert survey() == ([str(places[0])], {})
        os.kill(servers[0], signal.SIGSTOP)
        assert survey() == ([str(places[0])], {str(places[1]): str(tmp_path / "far")})
        os.kill(servers[0], signal.SIGCONT)
    assert not any(mount.place.startswith(f"{tmp_path}/") for mount in mounts())
