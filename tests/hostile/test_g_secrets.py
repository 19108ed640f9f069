"""Cases 100 to 111: secrets, HOME, the environment, sockets of the user's programs, other branches."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from conftest import wait_until

from hostile.world import Attack, World

_NOT_FOR_AGENTS = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "GITHUB_TOKEN": "s",
    "SSH_AUTH_SOCK": "/run/agent",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/bus",
    "GIT_DIR": "/nowhere",
    "GIT_SSH_COMMAND": "touch /tmp/x",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "DOCKER_HOST": "unix:///run/docker.sock",
}
_NOT_FOR_UNATTENDED = {
    "PYTHONPATH": "/nowhere",
    "BASH_ENV": "/nowhere",
    "EDITOR": "vi",
    "OPENAI_API_KEY": "s",
}


@pytest.fixture(scope="module")
def agent_socket(world: World) -> Iterator[None]:
    """A socket of a program of the user's, in his HOME."""
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(world.home)  # a socket's path may have 107 bytes at most
        server.bind(".agent.sock")
        os.chdir(here)
        server.listen()
        yield
    (world.home / ".agent.sock").unlink()


@pytest.fixture(scope="module")
def taken(world: World, agent_socket: None) -> Attack:
    world.repo.env.update({**_NOT_FOR_AGENTS, **_NOT_FOR_UNATTENDED})
    del world.repo.env["GIT_DIR"]  # the checks after the run use git as well
    del world.repo.env["GIT_SSH_COMMAND"]
    return world.payload("take_secrets", branch="taken")


@pytest.fixture(scope="module")
def strict(world: World, taken: Attack) -> Attack:
    return world.payload("take_secrets", branch="strict", options=["--strict"])


def _unreadable(attack: Attack) -> None:
    seen = attack.part("100 secrets")
    assert [
        path for path, how in seen.items() if how not in {"ENOENT", "EACCES", "EPERM", "ENOTDIR", ""}
    ] == []


def test_case_100_secrets(taken: Attack) -> None:
    _unreadable(taken)
    assert taken.part("100 anywhere in HOME") == []


def test_case_100_secrets_unattended(strict: Attack) -> None:
    _unreadable(strict)
    assert strict.part("100 anywhere in HOME") == []


def test_case_101_dotfiles(world: World, taken: Attack) -> None:
    """They can be written; Z2 sees that the user's own stay, and nothing new appears."""
    assert ".bashrc" in taken.part("101 dotfiles")
    for name in (
        ".config/autostart",
        ".config/systemd",
        ".ssh/authorized_keys",
        ".vimrc",
        ".npmrc",
        ".config/git",
    ):
        assert not (world.home / name).exists(), name


@pytest.mark.parametrize("profile", ["claude", "codex", "opencode"])
def test_case_102_agents_own_files(world: World, profile: str) -> None:
    """What the user's next agent would obey is not there, whether it was before or not (CVE-2026-25725)."""
    for name in (".claude/projects", ".codex/sessions", ".local/share/opencode/log", ".config/opencode"):
        (world.home / name).mkdir(parents=True, exist_ok=True)
    mine = world.home / ".config/opencode/opencode.json"
    mine.write_text("{}")
    attack = world.payload("take_secrets", branch=f"profile-{profile}", options=["--profile", profile])
    attack.assert_sound()
    found = subprocess.run(
        ["grep", "-rl", str(world.pwn), str(world.home), "--exclude-dir=overlayrun"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == []
    assert mine.read_text() == "{}"


def test_case_103_environment(world: World, taken: Attack) -> None:
    seen = taken.part("103 environment")
    assert set(_NOT_FOR_AGENTS) & set(seen) == set()
    assert world.secret not in str(seen)
    assert seen["EDITOR"] == "vi"


def test_case_103_environment_unattended(strict: Attack) -> None:
    seen = strict.part("103 environment")
    own = {
        name
        for name in seen
        if name.startswith(("OVERLAYRUN_", "OLR_", "COMPOSE_")) or "PROXY" in name.upper()
    }
    wanted = "PATH HOME USER LOGNAME SHELL TERM LANG TZ COLORTERM PWD PWN TMPDIR SHLVL TAR_OPTIONS _".split()
    assert {name for name in seen if not name.startswith("LC_")} - own <= set(wanted)


def test_case_105_sockets(taken: Attack) -> None:
    assert taken.part("105 sockets") == []


def test_case_107_shared_memory_and_queues(taken: Attack) -> None:
    assert set(taken.part("107 message queues and shared memory").values()) == {0}


def test_case_108_scratch_directories(world: World, taken: Attack) -> None:
    assert taken.part("108 scratch") == {"/tmp": [], "/var/tmp": [], "/run": []}
    for place in ("/tmp", "/var/tmp"):
        assert not os.path.exists(f"{place}/made-{world.test_id}")


def test_case_109_other_branches(taken: Attack) -> None:
    assert taken.part("109 other branches") == []


def test_case_110_the_repositorys_own_secrets(world: World, taken: Attack) -> None:
    seen = taken.part("110 git")
    assert world.secret not in str(seen)
    assert "extraheader" not in seen["config"]
    assert seen["branches"] == ["refs/heads/main", "refs/heads/taken"]
    assert (seen["stash"], seen["hooks"]) == ("", [])


def test_home_private_shows_nothing_of_it(world: World, taken: Attack) -> None:
    attack = world.payload("take_secrets", branch="private-home", options=["--home", "private"])
    attack.assert_sound()
    _unreadable(attack)
    assert attack.part("100 anywhere in HOME") == []


def test_case_111_descriptors_sent_to_us_are_closed(world: World) -> None:
    program = """
import os, socket, time
path = os.environ["OVERLAYRUN_SOCKET"]
while not os.path.exists(path):
    time.sleep(0.02)
for _ in range(8):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        kept = [os.memfd_create("x") for _ in range(250)]
        socket.send_fds(client, [b'{"op": "nothing"}\\n'], kept)
        client.recv(100)
        for fd in kept:
            os.close(fd)
print("sent", flush=True)
input()
"""
    with world.repo.started(*world.words("sender"), "--", "python3", "-c", program) as run:
        run.expect("sent")
        directory = f"/proc/{run.process.pid}/fd"
        wait_until(lambda: len(os.listdir(directory)) < 64, "descriptors are closed", 10)
        links = [os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)]
        assert not [link for link in links if "memfd" in link]
        run.type("")
        assert run.end() == 0
