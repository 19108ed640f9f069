"""Cases 55 to 63: overlayfs told lies about itself; the rest of the disk stays as it is."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hostile.world import Attack, World

NO = {"EPERM", "EACCES", "ENOSYS", "ENOENT"}


@pytest.fixture(scope="module")
def forged(world: World) -> Attack:
    return world.payload("forge_overlay", branch="forged")


def test_case_055_whiteouts_can_not_be_made(forged: Attack) -> None:
    tried = forged.part("55 whiteouts")
    assert {tried["made"], tried["src/app.py2"]} <= {"EPERM", "EACCES"}
    assert (tried["mv"], tried["cp"]) == ("failed", "failed")


def test_case_056_forged_marks_hide_nothing(world: World, forged: Attack) -> None:
    """What the agent set arrives as another name, or not at all: the base's files are all there."""
    tree = world.repo.files("forged")
    assert "src/app.py" in tree
    assert {path for path in tree if path.startswith("forged/")} >= {"forged/opaque/f", "forged/redirect/f"}
    upper = world.repo.workspace("forged") / "upper"
    for path in (upper / "forged").rglob("*"):
        assert "user.overlay.redirect" not in os.listxattr(path)
        assert "user.overlay.metacopy" not in os.listxattr(path)


def test_case_056_the_next_run_sees_the_same_tree(world: World, forged: Attack) -> None:
    again = world.sh("cat src/app.py forged/opaque/f forged/redirect/f", branch="forged")
    again.assert_sound()
    assert again.done.out == "answer = 41\nopaqueredirect", str(again.done)


def test_case_057_trusted_marks(forged: Attack) -> None:
    forged.refused("57 trusted marks", "EPERM")


def test_case_058_lower_layers_are_ours_alone(world: World, forged: Attack) -> None:
    """No lower is a directory that an agent could fill outside of an overlay; no mount follows a forged mark."""
    overlays: dict[str, dict[str, Any]] = forged.part("58 layers")
    assert str(world.repo.root) in overlays
    for mountpoint, options in overlays.items():
        assert options.get("redirect_dir", "off") in {"off", "nofollow"} or os.geteuid() == 0, mountpoint
        assert options.get("metacopy", "off") == "off", mountpoint
    record = world.repo.records()["forged"]
    layers = [*record["stack"], *record["carried_layers"]]
    assert layers
    assert not [layer for layer in layers if not layer.startswith(("bases/", "layers/", "carried/"))]


def test_case_059_upper_and_work_are_not_there(forged: Attack) -> None:
    assert forged.part("59 upper and work") == []
    assert forged.part("59 state") is False


def test_case_062_no_mount_can_be_changed(forged: Attack) -> None:
    tried = forged.part("62 mounts")
    assert {name: answer for name, answer in tried.items() if answer not in NO} == {}
    assert forged.part("62 after") in NO


def test_case_062_only_the_sandboxes_own_places_are_writable(world: World, forged: Attack) -> None:
    allowed = ("/tmp", "/var/tmp", "/run", "/dev", "/proc", str(world.repo.root), str(world.home))
    places = [
        place
        for place in forged.part("62 writable")
        if not any(place == one or place.startswith(f"{one}/") for one in allowed)
    ]
    assert places == []


def test_case_062_nothing_gains_by_set_uid(forged: Attack) -> None:
    assert [place for place in forged.part("62 suid") if not place.startswith("/dev/")] == []


def test_case_063_a_copied_up_file_with_set_uid(world: World, forged: Attack) -> None:
    assert world.repo.files("forged")["tool.sh"].startswith("100755")
    assert world.repo.workspace("forged").stat().st_mode & 0o077 == 0
