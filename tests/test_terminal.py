"""A run on a terminal: Ctrl-C, job control, window size, modes, the terminal going away."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

from overlayrun.kernel.syscalls import landlock_abi

if TYPE_CHECKING:
    from conftest import Terminal, UserRepo

pytestmark = pytest.mark.shared  # keys and modes of a terminal

Until = Callable[..., None]


@contextmanager
def _run(repo: UserRepo, script: str, *options: str) -> Iterator[Terminal]:
    with repo.terminal(*repo.command("-b", "b", *options, "--", "sh", "-c", script)) as terminal:
        yield terminal


@contextmanager
def _shell(repo: UserRepo) -> Iterator[Terminal]:
    """An interactive bash with a prompt that is easy to find."""
    repo.env["PS1"] = "PROMPT> "
    with repo.terminal("bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.expect("PROMPT> ")
        terminal.type("bind 'set enable-bracketed-paste off'\n")
        terminal.expect("PROMPT> ")
        yield terminal


def _line(repo: UserRepo, script: str) -> str:
    return f"{shlex.join(repo.command('-b', 'b', '--', 'bash', '-c', script))}\n"


@pytest.mark.by_both
def test_the_command_has_the_terminal(repo: UserRepo) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && : </dev/tty && stty size && echo fine"
    with _run(repo, script) as terminal:
        terminal.expect("24 80")
        terminal.expect("fine")
        assert terminal.end() == 0


def test_window_size_changes_reach_the_command(repo: UserRepo) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with _run(repo, script) as terminal:
        terminal.expect("ready")
        terminal.resize(40, 133)
        terminal.expect("40 133")
        terminal.type("\x03")
        terminal.end()


def test_interrupt_goes_to_the_command_which_decides(repo: UserRepo) -> None:
    script = "trap 'echo caught >caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with _run(repo, script) as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.end() == 7
    assert repo.show("b", "caught") == "caught\n"


@pytest.mark.by_both
def test_interrupt_ends_a_plain_command_with_130_and_keeps_its_work(repo: UserRepo) -> None:
    with _run(repo, f"echo x >new; echo ready; exec {repo.sleeper()}") as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert repo.show("b", "new") == "x\n"
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too


def test_one_interrupt_does_not_end_a_command_that_ignores_it(repo: UserRepo) -> None:
    with _run(repo, "trap '' INT; echo ready; read line; echo got $line; exit 4") as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        terminal.type("more\n")
        terminal.expect("got more")
        assert terminal.end() == 4


def test_two_interrupts_end_a_command_that_ignores_them(repo: UserRepo) -> None:
    with _run(repo, f"trap '' INT; echo x >new; echo ready; {repo.sleeper()}") as terminal:
        terminal.expect("ready")
        # As a person would: again until it ends. Two that arrive before the first is read are one to the kernel.
        for _ in range(100):
            terminal.type("\x03")
            time.sleep(0.3)
            if terminal.process.poll() is not None:
                break
        assert terminal.end() != 0
    wait_until(lambda: not repo.marked(), "all dead", 5.0)  # a flush to the disk has our arguments too
    assert repo.show("b", "new") == "x\n"


def test_quit_key_reaches_the_command(repo: UserRepo) -> None:
    with _run(repo, "ulimit -c 0; echo ready; exec sleep 1000") as terminal:
        terminal.expect("ready")
        terminal.type("\x1c")
        assert terminal.end() == 128 + signal.SIGQUIT


@pytest.mark.by_both
def test_hangup_of_the_terminal_ends_everything_and_keeps_the_work(repo: UserRepo, until: Until) -> None:
    with _run(repo, f"echo x >new; echo ready; {repo.sleeper()}") as terminal:
        terminal.expect("ready")
        os.kill(terminal.process.pid, signal.SIGHUP)
        terminal.end()
    until(lambda: not repo.marked(), "all dead")
    until(lambda: "new" in repo.files("b"), "snapshot")


def test_closing_the_terminal_ends_everything_and_keeps_the_work(repo: UserRepo, until: Until) -> None:
    with _run(repo, f"echo x >new; echo ready; {repo.sleeper()}") as terminal:
        terminal.expect("ready")
        os.close(os.dup(terminal.master))
        hung = os.open(os.ttyname(terminal._slave), os.O_RDWR | os.O_NOCTTY)
        os.close(hung)
        master = terminal.master
        os.dup2(os.open("/dev/null", os.O_RDWR), master)  # the master's last descriptor: the kernel hangs up
        until(lambda: terminal.process.poll() is not None, "the end")
    until(lambda: not repo.marked(), "all dead")
    until(lambda: "new" in repo.files("b"), "snapshot")


def test_modes_are_restored_after_a_command_that_left_them_raw(repo: UserRepo) -> None:
    with _shell(repo) as terminal:
        before = terminal.modes()
        terminal.type(_line(repo, "stty raw -echo; exit 3"))
        terminal.expect("PROMPT> ")
        terminal.type("stty -a | tr ' ' '\\n' | grep -cx -e icanon -e echo -e isig; echo status\n")
        terminal.expect("3\r\nstatus")
        assert terminal.modes()[3] != 0
        assert before[6] == terminal.modes()[6]


def test_a_killed_full_screen_program_leaves_a_plain_screen(repo: UserRepo) -> None:
    with _run(repo, "printf '\\033[?1049h\\033[?25l'; echo ready; kill -9 $$") as terminal:
        terminal.expect("ready")
        assert terminal.end() == 137
        assert "\x1b[?1049l" in terminal.text()
        assert "\x1b[?25h" in terminal.text()


@pytest.mark.by_both
def test_stop_and_continue_under_a_shell(repo: UserRepo, until: Until) -> None:
    counter = "i=0; while :; do i=$((i+1)); echo turn $i; [ -e stop ] && exit 5; sleep 0.1; done"
    with _shell(repo) as terminal:
        terminal.type(_line(repo, f"trap 'touch stop' INT; {counter}"))
        terminal.expect("turn 3")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect("PROMPT> ")
        terminal.type("jobs -r | wc -l; echo none-runs\n")
        terminal.expect("0\r\nnone-runs")
        terminal.expect("PROMPT> ")
        terminal.type("fg\n")
        terminal.expect("turn ")
        terminal.expect("turn ")
        terminal.type("\x03")
        terminal.expect("PROMPT> ")
        terminal.type("echo status $?\n")
        terminal.expect("status 5")
    assert "stop" in repo.files("b")


def test_a_stopped_run_can_go_on_in_the_background(repo: UserRepo, until: Until) -> None:
    with _shell(repo) as terminal:
        terminal.type(_line(repo, "echo ready; sleep 0.5; echo x >new; sleep 0.5; echo done >done"))
        terminal.expect("ready\r\n")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.type("bg\n")
        terminal.type("wait; echo status $?\n")
        terminal.expect("status 0")
    assert repo.show("b", "done") == "done\n"


@pytest.mark.by_both
def test_job_control_works_inside(repo: UserRepo) -> None:
    """An interactive shell as the command: its own jobs, and the terminal back for the user's shell."""
    with _shell(repo) as terminal:
        terminal.type(_line(repo, "PS1='IN''NER> ' exec bash --norc --noprofile -i"))
        terminal.expect("INNER> ")
        terminal.type("sh -c 'echo u\"\"p; exec sleep 1000'\n")
        terminal.expect("up\r\n")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        # With a job that is only about to end the shell would refuse to exit; its `wait` passes over a stopped one.
        terminal.type("kill %1; while jobs %1 >/dev/null 2>&1; do sleep .1; done; echo still $((40+2))\n")
        terminal.expect("still 42")
        terminal.type("exit 6\n")
        terminal.expect("PROMPT> ")
        terminal.type('sh -c "echo status $?; exec sleep 1000"\n')
        terminal.expect("status 6")
        terminal.type("\x03")
        terminal.expect("PROMPT> ")


def test_a_run_in_the_background_is_no_trouble(repo: UserRepo) -> None:
    with _shell(repo) as terminal:
        terminal.type(_line(repo, "sleep 0.3; echo x >new").rstrip() + " & wait; echo status $?\n")
        terminal.expect("status 0")
    assert repo.show("b", "new") == "x\n"


@pytest.mark.parametrize("keys", ["\x03"])
def test_interrupt_before_the_command_runs_leaves_nothing_locked(repo: UserRepo, keys: str) -> None:
    with _run(repo, "sleep 1000") as terminal:
        terminal.type(keys)
        terminal.type(keys)
        terminal.text()
        for _ in range(40):
            if terminal.process.poll() is not None:
                break
            terminal.type(keys)
            try:
                terminal.process.wait(0.25)
            except Exception:  # noqa: BLE001  # only the wait's time is over
                pass
        assert terminal.process.poll() is not None, terminal.text()
    assert repo.sh("true").code == 0


@pytest.mark.by_both
def test_a_signal_to_its_own_group_stays_inside(repo: UserRepo) -> None:
    """On a terminal the command is in the group of the user's job, which kill(2) of process 0 goes by."""
    if landlock_abi() < 6:
        pytest.skip("kernel lacks Landlock's signal scope (6.12)")
    inside = shlex.join(repo.command("-b", "b", "--", "sh", "-c", "echo w >work; kill -KILL 0"))
    script = f"sleep 60 & {inside}; echo ended $?; kill -0 $! && echo alive; kill $!"
    with repo.terminal("sh", "-c", script) as terminal:
        terminal.expect("ended 137")
        terminal.expect("alive")
        terminal.end()
    assert repo.show("b", "work") == "w\n"
