"""`exec` and `shell`: beside a running command, and in an idle workspace."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Running, Terminal, UserRepo

pytestmark = pytest.mark.shared  # what is typed, and how it ends

Until = Callable[..., None]


@contextmanager
def _running(repo: UserRepo, script: str = "echo ready; cat") -> Iterator[Running]:
    with repo.started("-b", "b", "--", "sh", "-c", script) as run:
        run.expect("ready")
        yield run


@contextmanager
def _bash(repo: UserRepo) -> Iterator[Terminal]:
    """The user's shell on a terminal, with a prompt that is easy to find."""
    repo.env.update({"PS1": "OUTER> ", "SHELL": "/bin/bash"})
    (repo.home / ".bashrc").write_text("PS1='INNER> '\nbind 'set enable-bracketed-paste off'\n")
    with repo.terminal("bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.expect("OUTER> ")
        terminal.type("bind 'set enable-bracketed-paste off'\n")
        terminal.expect("OUTER> ")
        yield terminal


@pytest.mark.by_both
def test_a_joined_command_sees_what_the_running_one_sees(repo: UserRepo) -> None:
    with _running(repo, "echo inside >one; echo ready; cat"):
        done = repo.overlayrun("exec", "b", "--", "sh", "-c", "cat one; pwd; echo $OVERLAYRUN_BRANCH")
        assert (done.code, done.out, done.err) == (0, f"inside\n{repo.root}\nb\n", "")
        assert repo.overlayrun("exec", "b", "--", "sh", "-c", "echo 2 >two").code == 0
        assert not (repo.root / "two").exists()
    repo.overlayrun("ls")
    assert repo.show("b", "two") == "2\n"


@pytest.mark.by_both
def test_a_joined_command_has_no_more_rights(repo: UserRepo) -> None:
    script = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; echo 1 >/etc/overlayrun-test || echo refused"
    with _running(repo):
        done = repo.overlayrun("exec", "b", "--", "sh", "-c", script)
    assert done.out.split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1", "refused"]


def test_it_starts_in_the_callers_directory(repo: UserRepo) -> None:
    with _running(repo):
        assert repo.overlayrun("exec", "b", "pwd", cwd=repo.root / "src").out == f"{repo.root}/src\n"


def test_standard_input_and_environment_pass(repo: UserRepo) -> None:
    with _running(repo):
        done = repo.overlayrun("exec", "b", "--", "cat", data="typed")
        assert done.out == "typed"
        done = repo.overlayrun("exec", "b", "--", "sh", "-c", "echo $TERM", env={"TERM": "vt100"})
        assert done.out == "vt100\n"


@pytest.mark.parametrize("is_running", [True, False])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sh", "-c", "exit 0"], 0),
        (["sh", "-c", "exit 2"], 2),
        (["--", "sh", "-c", "exit 255"], 255),
        (["--", "sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/etc/passwd"], 126),
        (["no-such-program"], 127),
        (["--", "--", "x"], 127),
    ],
)
def test_exit_codes_are_those_of_a_run(
    repo: UserRepo, words: list[str], code: int, *, is_running: bool
) -> None:
    if not is_running:
        repo.inside("true")
        assert repo.overlayrun("exec", "b", *words).code == code
        return
    with _running(repo):
        assert repo.overlayrun("exec", "b", *words).code == code


def test_without_a_command_it_says_so(repo: UserRepo) -> None:
    repo.inside("true")
    done = repo.overlayrun("exec", "b", "--")
    assert (done.code, done.ours[0]) == (125, "no command was given")


@pytest.mark.by_both
def test_exec_in_an_idle_branch_resumes_it(repo: UserRepo) -> None:
    repo.inside("echo 1 >one")
    done = repo.overlayrun("exec", "b", "--", "sh", "-c", "cat one; echo 2 >two")
    assert (done.code, done.out) == (0, "1\n")
    assert repo.show("b", "two") == "2\n"
    assert len(repo.snapshots()) == 2


@pytest.mark.by_both
def test_a_joined_command_dies_with_the_run(repo: UserRepo, until: Until) -> None:
    with (
        _running(repo) as run,
        repo.started("exec", "b", "--", "sh", "-c", f"echo on; {repo.sleeper()}") as joined,
    ):
        joined.expect("on")
        run.end()
        assert joined.end() == 128 + signal.SIGKILL
        until(lambda: not repo.marked(), "the joined command is dead")


@pytest.mark.by_both
def test_a_joined_command_dies_with_the_one_who_asked(repo: UserRepo) -> None:
    script = "trap '' TERM; echo on; while :; do sleep 0.1; date >last; done"
    with _running(repo):
        with repo.started("exec", "b", "--", "sh", "-c", script) as joined:
            joined.expect("on")
            joined.process.kill()
        time.sleep(1)
        assert (
            repo.overlayrun("exec", "b", "--", "sh", "-c", "rm -f last; sleep 1; ls")
            .out.split()
            .count("last")
            == 0
        )


def test_a_program_that_is_not_there_is_named(repo: UserRepo) -> None:
    with _running(repo):
        done = repo.overlayrun("exec", "b", "no-such-program")
    assert done.ours == ["no-such-program: No such file or directory"]


def test_ctrl_c_and_ctrl_z_are_the_joined_commands(repo: UserRepo) -> None:
    command = f"{repo.command()[0]} exec b -- sh -c 'echo o\"\"n; exec sleep 1000'\n"
    with _running(repo), _bash(repo) as terminal:
        terminal.type(command)
        terminal.expect("on")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("OUTER> ")
        terminal.type("fg\n")
        terminal.expect("exec b")
        terminal.type("\x03")
        terminal.expect("OUTER> ")
        terminal.type("echo status $?\n")
        terminal.expect("status 130")


@pytest.mark.by_both
@pytest.mark.parametrize("is_running", [True, False])
def test_a_shell_has_job_control_and_gives_the_terminal_back(repo: UserRepo, *, is_running: bool) -> None:
    repo.inside("true")
    with _bash(repo) as terminal:
        if is_running:
            with _running(repo):
                _use_shell(repo, terminal)
        else:
            _use_shell(repo, terminal)
        terminal.type("echo status $?; stty size\n")
        terminal.expect("status 3")
        terminal.expect("24 80")


def _use_shell(repo: UserRepo, terminal: Terminal) -> None:
    terminal.type(f"{repo.command()[0]} shell b\n")
    terminal.expect("INNER> ")
    # Typed too early, Ctrl-Z would make the terminal throw away what the shell has not read yet.
    terminal.type("sh -c 'echo g\"\"o; exec sleep 1000'\n")
    terminal.expect("go\r\n")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect("INNER> ")
    # With a job that is only about to end the shell would refuse to exit; its `wait` passes over a stopped one.
    terminal.type(
        "kill %1; while jobs %1 >/dev/null 2>&1; do sleep .1; done; echo branch=$OVERLAYRUN_BRANCH\n"
    )
    terminal.expect("branch=b\r\n")
    terminal.type("exit 3\n")
    terminal.expect("OUTER> ")  # else the end of the other command would be the shell's
