"""Cases 26 to 52: what a snapshot must not follow, open, wait for, or lose."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hostile.world import Attack, World


@pytest.fixture(scope="module")
def made(world: World) -> Attack:
    # A payload that is ended by a signal (34) has made everything else before it.
    return world.payload("make_entries", branch="made", options=["--timeout", "50"])


@pytest.fixture(scope="module")
def tree(world: World, made: Attack) -> dict[str, str]:
    return world.repo.files("made")


def test_case_026_links_to_secrets_are_their_text(world: World, tree: dict[str, str]) -> None:
    links = {path: what for path, what in tree.items() if path.startswith("links/")}
    assert {what.split()[0] for what in links.values()} == {"120000"}
    texts = [world.repo.show("made", f"links/secret{number}") for number in range(len(world.secret_paths()))]
    assert texts == world.secret_paths()


def test_case_027_links_upward_and_in_circles(tree: dict[str, str]) -> None:
    assert {path for path in tree if path.startswith("links/") and "secret" not in path} == {
        f"links/{name}" for name in ("environ", "up", "parent", "loop", "again")
    }


def test_case_032_fifos_and_sockets_are_told_and_not_opened(made: Attack, tree: dict[str, str]) -> None:
    assert not [path for path in tree if path.startswith("odd/")]
    assert made.done.err.count("left out: ") >= 1, str(made.done)


def test_case_033_devices_can_not_be_made(world: World, made: Attack) -> None:
    assert "odd/b" not in world.repo.files("made")
    upper = world.repo.workspace("made") / "upper/odd"
    assert not [path for path in upper.iterdir() if path.is_block_device() or path.is_char_device()]


def test_case_034_a_sparse_file_of_16_terabytes(world: World, made: Attack, tree: dict[str, str]) -> None:
    """A limit of the process ends it, or the snapshot leaves it out by its size."""
    assert made.part("34 sparse") == "EFBIG"
    assert "sparse" not in tree
    assert world.repo.raw_git("count-objects", "-v").decode().splitlines()[-1] == "size-garbage: 0"


def test_case_035_a_file_that_grows_while_it_is_read(world: World) -> None:
    script = "(while :; do echo more >>grows || exit; done) & echo w >work; sleep 0.4; overlayrun snapshot x; echo ok"
    attack = world.sh(script, "--every", "0.2", branch="grows")
    attack.assert_sound()
    assert world.repo.show("grows", "work") == "w\n"
    assert attack.done.code == 0, str(attack.done)


def test_case_040_names_that_a_shell_would_obey(world: World, made: Attack, tree: dict[str, str]) -> None:
    listed = world.repo.raw_git("ls-tree", "-z", "--name-only", "made", "names/").split(b"\0")[:-1]
    assert len(listed) == made.report["40 42 43 names"]
    contents = [(name, world.repo.raw_git("show", b"made:" + name)) for name in listed]  # type: ignore[arg-type]  # bytes are a path too
    assert all(name == b"names/" + content for name, content in contents)
    assert not (world.repo.root / "x").exists()


def test_case_042_names_with_control_characters(world: World, made: Attack) -> None:
    """Z7 looked at what diff, merge and the run itself printed; here are the forms for programs."""
    diff = world.repo.overlayrun("diff", "--name-only", "made")
    assert diff.code == 0
    left = world.repo.overlayrun("show", "--json", "made")
    assert not set(left.out) & {"\x1b", "\x07", "\x9b"}


def test_case_043_names_that_meet_on_other_disks(tree: dict[str, str]) -> None:
    assert tree.keys() >= {
        "names/README",
        "names/readme",
        "names/\u00e9",
        "names/e\u0301",
        "names/CON",
        "names/a:b",
    }


def test_case_045_setuid_is_not_carried(world: World, made: Attack, tree: dict[str, str]) -> None:
    assert tree["suid"].startswith("100755")
    upper = world.repo.workspace("made") / "upper"
    for path in [upper, *upper.parents]:
        if path.stat().st_mode & 0o077 == 0:
            return
    raise AssertionError("another user could reach the copy and run it")


def test_case_046_attributes_are_not_carried(world: World, tree: dict[str, str], tmp_path: Path) -> None:
    world.repo.git("worktree", "add", "-q", "--detach", str(tmp_path / "out"), "made")
    try:
        assert os.listxattr(tmp_path / "out/marked") == []
    finally:
        world.repo.git("worktree", "remove", "--force", str(tmp_path / "out"))


def test_case_047_files_without_permission_are_taken(world: World, tree: dict[str, str]) -> None:
    assert world.repo.show("made", "closed") == "closed"
    assert world.repo.show("made", "shut/f") == "in a closed directory"


def test_case_048_hard_links_lead_nowhere(world: World, made: Attack, tree: dict[str, str]) -> None:
    assert set(made.report["48 hard links"].values()) == {"18"}, "EXDEV"
    assert not [path for path in tree if path.startswith("hard")]
    assert (world.repo.show("made", "twin"), world.repo.show("made", "twin2")) == ("twins", "twins")


def test_case_050_times_of_files_are_not_believed(world: World, tree: dict[str, str]) -> None:
    assert tree.keys() >= {"future", "past"}
    assert abs(int(world.repo.git("log", "-1", "--format=%ct", "made")) - time.time()) < 600


def test_case_050_a_change_of_same_size_and_time_is_seen(world: World) -> None:
    first = world.sh("echo good >h; touch -d 2001-01-01 h", branch="times")
    first.assert_sound()
    second = world.sh("echo evil >new; cat new >h; touch -r README -d 2001-01-01 h", branch="times")
    second.assert_sound()
    assert world.repo.show("times", "h") == "evil\n"


def test_case_052_contents_are_kept_byte_for_byte(world: World, tree: dict[str, str]) -> None:
    assert world.repo.raw_git("show", "made:content/nul") == b"\0a\0b\r\n"
    assert world.repo.raw_git("show", "made:content/crlf") == b"a\r\nb\r\n"
    assert world.repo.raw_git("show", "made:content/bom") == b"\xef\xbb\xbfa\n"
    assert world.repo.raw_git("show", "made:content/lfs").startswith(b"version https://git-lfs")
    assert len(world.repo.raw_git("show", "made:content/line")) == 1 << 21


def test_the_workspace_can_be_removed(world: World, made: Attack) -> None:
    """Closed directories, odd names and all; last, because the others look at it."""
    done = world.repo.overlayrun("rm", "--force", "made")
    assert done.code == 0, str(done)
    assert "made" not in world.repo.records()
