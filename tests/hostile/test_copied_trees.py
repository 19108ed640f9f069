"""Trees that are copies, or share blocks: nothing done in one reaches the user's files, another tree or the host."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from backends.images import make_repo, mounted_image
from conftest import UserRepo

from hostile.world import PAYLOADS

pytestmark = pytest.mark.shared(by="file")
_REFUSED: Final = {
    "link to the user's file": {"EXDEV", "EROFS", "EPERM"},
    "write to the user's file": {"EROFS", "EACCES"},
    "device": {"EPERM"},
    "whiteout": {"EPERM"},
    "set-uid": {"EPERM"},
    "immutable": {"EPERM", "ENOTTY", "EOPNOTSUPP"},
    "append-only": {"EPERM", "ENOTTY", "EOPNOTSUPP"},
    "git renamed": {"EBUSY"},
    "git replaced": {"EISDIR", "EBUSY"},
    "git removed": {"EBUSY"},
}


@dataclass(frozen=True, slots=True)
class Trapped:
    """A branch `trap` in which the payload ran, its fork `kid`, and all of the user's as it was before."""

    repo: UserRepo
    told: dict[str, Any]
    before: dict[str, object]

    def users(self) -> dict[str, object]:
        return _users(self.repo)


def _users(repo: UserRepo) -> dict[str, object]:
    """His tree and git directory, what lies outside, the frozen files."""
    frozen = [path for glob in ("bases/*/tree", "carried/*/") for path in repo.state.glob(glob)]
    places = [repo.home.parent / "outside", *frozen]
    found: dict[str, object] = dict(repo.picture())
    for place in places:
        for path in sorted(place.rglob("*")):
            if path.is_file() and not path.is_symlink():
                info = path.stat()
                found[str(path)] = (info.st_mode, info.st_size, info.st_mtime_ns, path.read_bytes())
            else:
                found[str(path)] = path.lstat().st_mode
    return found


@pytest.fixture(
    scope="module", params=["copy", pytest.param("reflink", marks=pytest.mark.root)], ids=lambda name: name
)
def trapped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _repo_to_copy: Path
) -> Iterator[Trapped]:
    backend = request.param
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(mounted_image("xfs")) if backend == "reflink" else None
        repo = make_repo(_repo_to_copy, (place or tmp_path_factory.mktemp("copied")) / "user", is_owned=False)
        outside = repo.home.parent / "outside"
        outside.mkdir()
        outside.chmod(0o777)
        (outside / "secret").write_text("the user's\n")
        (outside / "secret").chmod(0o666)
        for name in ("held", "one-of-two", ".env", "node_modules/p/index.js", "node_modules/q/f"):
            repo.write(name, f"{name} as it was\n")
        os.link(repo.root / "one-of-two", repo.root / "two-of-two")
        repo.write(".gitignore", "node_modules/\n.env\n")
        repo.commit()
        words = ["-b", "trap", "--backend", backend]
        assert repo.overlayrun(*words, "--carry", "link", "--", "true").code == 0
        before = _users(repo)
        payload = (PAYLOADS / "trap_tree.py").read_text()
        argv = ["python3", "-c", payload, str(outside / "secret"), str(outside), "kid"]
        # Bound, it is in sight wherever it lies.
        done = repo.overlayrun("-b", "trap", "--every", "0", "--bind-ro", str(outside), "--", *argv)
        assert done.code == 0, str(done)
        yield Trapped(repo, json.loads(done.out), before)


def test_nothing_leads_out_of_the_tree(trapped: Trapped) -> None:
    told = {**trapped.told}
    assert told.pop("fork")[0] == 0, trapped.told
    assert told.keys() == _REFUSED.keys()
    assert {name: verdict for name, verdict in told.items() if verdict not in _REFUSED[name]} == {}
    assert trapped.users() == trapped.before


def test_the_snapshot_holds_links_and_no_targets(trapped: Trapped) -> None:
    files = trapped.repo.files("trap")
    assert {name: files[name].split()[0] for name in ("src", "tool.sh")} == {
        "src": "120000",
        "tool.sh": "120000",
    }
    assert not files.keys() & {"pipe", "socket", "huge", "src/secret", "src/app.py", "whiteout"}
    assert trapped.repo.show("trap", "held")[:8] == "latelate"
    assert trapped.repo.show("trap", "two-of-two") == "one-of-two as it was\n"


def test_a_fork_is_not_reached_through_what_was_open(trapped: Trapped) -> None:
    """Made in the middle of it, from inside; the traps came along as what they are."""
    repo = trapped.repo
    upper = repo.workspace("kid") / "upper"
    assert repo.show("kid", "held") == (upper / "held").read_text() == "held as it was\n"
    links = {os.readlink(upper / name) for name in ("src", "node_modules/q")}
    assert links == {str(repo.home.parent / "outside")}
    # Its owner can't read it, but for root; then that is told.
    assert (upper / "shut").exists() != ("shut" in "".join(trapped.told["fork"][1:]))


def test_whoever_copies_restores_or_removes_such_a_tree_follows_nothing(trapped: Trapped) -> None:
    repo = trapped.repo
    done = repo.overlayrun("fork", "trap", "-b", "copied")
    assert done.code == 0, str(done)
    upper = repo.workspace("copied") / "upper"
    assert ("too much to copy" in done.out) != (upper / "huge").exists(), str(done)
    assert int(subprocess.check_output(["du", "-sk", upper]).split()[0]) < 50 << 10  # of 8 GiB
    repo.commit("later", **{"one-of-two": "later\n", "tool.sh": "later\n"})
    before = _users(repo)
    for branch in ("trap", "kid"):
        script = "readlink src; (echo more >src/more) 2>/dev/null || echo no"
        assert repo.inside(script, branch=branch).splitlines()[-1] == "no"
    for words, codes in {
        ("sync", "kid"): {0, 1},
        ("restore", "trap", "@{1}"): {0},
        ("merge", "kid", "--into", "trap"): {0, 1},
    }.items():
        done = repo.overlayrun(*words)
        assert done.code in codes, str(done)
    assert _users(repo) == before
    for branch in ("trap", "kid", "copied"):
        place = repo.workspace(branch)
        done = repo.overlayrun("rm", "--force", branch)
        assert (done.code, place.exists()) == (0, False), str(done)
    assert not [name for name in os.listdir(repo.state / "workspaces") if name.startswith(".")]
    assert _users(repo) == before
