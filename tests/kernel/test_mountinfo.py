"""The list of mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel.lab import scene

if TYPE_CHECKING:
    from pathlib import Path

_LIST = """
from overlayrun.kernel.mountinfo import mounts
enter()
for name in ("plain", "a b\\tc\\nd", "back\\\\slash", "\\\\040", "x - y"):
    mount("tmpfs", name, "size=1m")
mount("tmpfs", "back\\\\slash", "size=2m")
here = os.getcwd() + "/"
ours = [one for one in mounts() if one.place.startswith(here)]
answer([[one.place.removeprefix(here), one.fstype, one.root, one.options] for one in ours])
"""


def test_places_are_what_they_were_mounted_at(tmp_path: Path) -> None:
    listed = scene(_LIST, cwd=tmp_path)
    places = ["plain", "a b\tc\nd", "back\\slash", "\\040", "x - y", "back\\slash"]
    assert [place for place, *_ in listed] == places
    assert {(fstype, root) for _, fstype, root, _ in listed} == {("tmpfs", "/")}
    assert ["size=2048k" in options for *_, options in listed] == [False] * 5 + [True]
