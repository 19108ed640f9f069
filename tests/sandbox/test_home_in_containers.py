"""Root in a container whose every file lies on an overlay: its command is nobody, on a disk without id-maps."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from overlayrun.layers.marks import is_whiteout, is_xattr_whiteout, mark_deleted

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import UserRepo

pytestmark = pytest.mark.root
# As container engines do it, where nothing holds the user back.
_CONTAINER: Final = """
set -e
mount -t tmpfs tmpfs "$1"; cd "$1"; mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount -t proc proc root/proc
for place in dev sys; do mount --rbind /$place root/$place; done
cd root; mkdir -p old; pivot_root . old; umount -l /old; cd /
"""
_WORK: Final = """
set -e
umask 022
cd "$REPO"; rm -r .git/overlayrun 2>/dev/null || true
echo private >tool.sh; chmod 600 tool.sh; git add .; git commit -qm private; rm README
export HOME=/root; unset XDG_STATE_HOME XDG_CACHE_HOME; git config --global user.name T; git config --global user.email t@example.invalid
mkdir -p ~/.local/share/opencode; echo '{}' >~/.local/share/opencode/auth.json
before=$(ls -AlR ~/.local/share/opencode)
echo "== 1"; overlayrun -b b -- sh -ec 'id -u; cat tool.sh; test ! -e README; test "$(stat -c %u src/app.py .git)" = "0
0"; umask 077; mkdir closed; echo 1 >closed/file; echo branch >>tool.sh; mv src lib; git status --short
sleep 0.2; overlayrun snapshot -m one >/dev/null; ! head -c1 /etc/shadow 2>/dev/null; echo home >~/file; echo 2 >two'
git checkout -q README; echo later >later; git rm -q link; git add .; git commit -qm later
echo "== 2"; overlayrun sync b
echo "== 3"; overlayrun -b b -- sh -ec 'cat later closed/file ~/file; test ! -L link; echo 3 >>later; chmod 600 later'
echo "== 4"; overlayrun fork b -b f; overlayrun -b f -- sh -ec 'cat closed/file tool.sh later ~/file; rm closed/file'
echo "== 5"; overlayrun merge b; stat -c '%u %a %n' closed closed/file lib/app.py later; cat tool.sh
echo "== 6"; overlayrun --profile opencode -b agent -- sh -ec 'cat ~/.local/share/opencode/auth.json; echo x >~/.local/share/opencode/x'
test "$before" = "$(ls -AlR ~/.local/share/opencode)"
echo "== 7"; overlayrun exec f -- sh -c 'ls closed; id -u'
echo "== 8"; chmod 700 .git/objects; ! overlayrun -b g -- true; chmod 755 .git/objects
overlayrun -b b -q --allow-root-uid -- sh -ec 'echo root >>closed/file'; overlayrun -b b -q -- sh -ec 'echo nobody >>closed/file'
echo "== 9"; git show b:closed/file; overlayrun rm --force b f; overlayrun gc; overlayrun doctor; ls .git/overlayrun/workspaces
"""


def test_a_branch_lives_on_a_disk_that_is_an_overlay(repo: UserRepo, tmp_path: Path) -> None:
    place = tmp_path / "container"
    place.mkdir()
    words = f"{_CONTAINER}\nexec sh -c {shlex.quote(_WORK)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", words, "sh", place],
        env={**repo.env, "REPO": str(repo.root)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = _parts(done.stdout)
    # What root alone may read, what is uncommitted, the owner inside, what git believes of the files.
    assert told["1"].split() == "0 private D README D src/app.py M tool.sh ?? closed/ ?? lib/".split()
    assert told["3"].split() == ["later", "1", "home"]
    assert told["4"].splitlines()[2:] == ["1", "private", "branch", "later", "3", "home"]
    # The user's tree is root's again.
    owners = ["0 755 closed", "0 644 closed/file", "0 644 lib/app.py", "0 644 later", "private", "branch"]
    assert told["5"].splitlines()[1:] == owners
    assert (told["6"].split(), told["7"].split()) == (["{}"], ["0"])
    assert told["9"].split("\n")[:3] == ["1", "root", "nobody"]
    assert "root alone may read it" in done.stderr
    assert "limited  id-mapped mounts" in told["9"]
    assert not any(line.startswith("missing") for line in told["9"].splitlines()), told["9"]


def _parts(text: str) -> dict[str, str]:
    """What the script said after each of its numbers."""
    found, number = dict.fromkeys("0123456789", ""), "0"
    for line in text.splitlines(keepends=True):
        if line.startswith("== "):
            number = line[3:-1]
        else:
            found[number] += line
    return found


def test_a_layer_says_deleted_where_no_device_can_be_made(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "joined"):
        (tmp_path / name).mkdir()
    layers = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    joined = tmp_path / "joined"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, joined], check=True)
    try:
        for place in (tmp_path, joined):
            mark_deleted(None, f"{place}/gone")
            info = os.lstat(place / "gone")
            assert is_whiteout(info) == (place == tmp_path)
            assert is_xattr_whiteout(f"{place}/gone", info) == (place == joined)
    finally:
        subprocess.run(["umount", joined], check=True)
