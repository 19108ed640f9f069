"""A range of ports for each run: two that live have two ranges, one branch keeps its own."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayrun.ports import COUNT, claim_ports, port_environment


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's state directory; descriptors that a test claimed are closed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    yield tmp_path
    for fd in sorted(set(os.listdir("/proc/self/fd")) - before, key=int):
        path = Path(f"/proc/self/fd/{fd}")
        if path.exists() and os.readlink(path).startswith(str(tmp_path)):
            os.close(int(fd))


def _claim(name: str) -> tuple[int, int]:
    claimed = claim_ports(name)
    assert claimed is not None
    return claimed


def test_runs_that_live_have_ranges_of_their_own() -> None:
    firsts = [_claim("same")[0] for _ in range(20)]
    taken = {port for first in firsts for port in range(first, first + COUNT)}
    assert len(taken) == 20 * COUNT
    assert min(taken) >= 20_000
    assert max(taken) < 30_000


def test_a_workspace_gets_its_range_again() -> None:
    first, fd = _claim("one")
    assert _claim("one")[0] != first
    os.close(fd)
    assert _claim("one")[0] == first


def test_a_child_that_lives_on_holds_the_range() -> None:
    first, fd = _claim("one")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(write)
            os.read(read, 1)
        finally:
            os._exit(0)
    os.close(fd)
    assert _claim("one")[0] != first
    os.close(write)
    os.waitpid(pid, 0)
    os.close(read)
    again, other = _claim("one")
    assert again == first
    os.close(other)


def test_a_port_where_somebody_listens_is_left_alone() -> None:
    first, fd = _claim("one")
    os.close(fd)
    with socket.create_server(("127.0.0.1", first)):
        assert _claim("one")[0] != first


def test_no_free_range_is_no_error() -> None:
    held = [_claim("one")[1] for _ in range(3)]
    assert claim_ports("one", most=3) is None
    assert len(held) == 3


def test_a_state_directory_that_cannot_be_made_is_no_error(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(state / "file"))
    assert claim_ports("one") is None


def test_the_table_is_the_users_alone_and_no_link_is_followed(state: Path) -> None:
    _claim("one")
    table = state / "overlayrun/ports"
    assert table.stat().st_mode & 0o777 == 0o600
    assert table.parent.stat().st_mode & 0o777 == 0o700
    table.rename(state / "elsewhere")
    table.symlink_to(state / "elsewhere")
    assert claim_ports("one") is None


def test_the_descriptor_does_not_reach_the_command() -> None:
    assert fcntl.fcntl(_claim("one")[1], fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize(
    "branch", ["overlay/sh-amber", "Ünï/cödé", "UPPER_case.x", "-/-", "a" * 300, "$(touch x)"]
)
def test_compose_takes_the_name(branch: str) -> None:
    told = port_environment(20_010, "k3abcdefghij", branch)
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{1,62}", told["COMPOSE_PROJECT_NAME"])
    assert told["COMPOSE_PROJECT_NAME"].endswith("-k3abcdefghij")
    assert (told["OVERLAYRUN_PORT"], told["OVERLAYRUN_PORTS"]) == ("20010", "20010-20019")


def test_without_a_range_no_port_is_named() -> None:
    assert list(port_environment(None, "k3", "b")) == ["COMPOSE_PROJECT_NAME"]
