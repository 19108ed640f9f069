"""Cases 122 to 126: the user's terminal and what overlayrun writes to it."""

from __future__ import annotations

import os
import shlex

import pytest

from hostile.world import Attack, World

_EVIL = "\x1b]0;pwn\x07\x1b[2J\x1b]52;c;aGk=\x07\x1b]8;;http://x\x07\x9b2J\u202egpj\r"


def test_case_122_123_keys_can_not_be_pushed(world: World) -> None:
    """A shell of the user's waits behind the run: no byte of the agent's reaches it."""
    repo = world.repo
    repo.env["PS1"] = "PROMPT> "
    line = shlex.join(repo.command(*world.words("keys"), "--", "python3", f"{world.payloads}/push_keys.py"))
    with repo.terminal("bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.expect("PROMPT> ")
        terminal.type("bind 'set enable-bracketed-paste off'\n")
        terminal.expect("PROMPT> ")
        terminal.type(f"{line}\n")
        terminal.expect("worked: ")
        terminal.expect(" end")
        worked = terminal.text().split("worked: ")[-1].split(" end")[0]
        terminal.expect("PROMPT> ")
        terminal.type("echo still $((40 + 2))\n")
        terminal.expect("still 42")
        shown = terminal.text()
    assert worked == "[]", worked
    assert f"touch {world.pwn}" not in shown, "typed by somebody else"
    assert not os.listdir(world.pwn)


@pytest.fixture(scope="module")
def shouted(world: World) -> Attack:
    """Control sequences in every string that overlayrun prints later."""
    program = f"""
import os, subprocess
evil = {_EVIL!r}
open("plain" + evil.replace("/", ""), "w").write(evil)
os.mkfifo("fifo" + evil.replace("/", ""))
env = dict(os.environ, GIT_AUTHOR_NAME=evil, GIT_COMMITTER_NAME=evil, GIT_AUTHOR_EMAIL="a@x", GIT_COMMITTER_EMAIL="a@x")
subprocess.run(["git", "add", "-A"], check=False)
subprocess.run(["git", "commit", "-qm", "subject " + evil + "\\n\\nbody " + evil], env=env, check=False)
open("more", "w").write("more")
os.write(1, evil.encode())
"""
    return world.attack(["python3", "-c", program], branch="shouted")


def test_case_125_what_overlayrun_prints_is_escaped(world: World, shouted: Attack) -> None:
    """Z7 has looked at run, diff and merge; these are the rest, on a terminal of their own."""
    for words in (["log", "-p", "shouted"], ["show", "shouted"], ["diff", "shouted"], ["ls"], ["conflicts"]):
        with world.repo.terminal(*world.repo.command(*words)) as terminal:
            assert terminal.end() in (0, 1), words
            text = terminal.text()
        assert "\x1b]" not in text, (words, text)
        assert "\x1b[2J" not in text, (words, text)
        assert not set(text) & {"\x07", "\x9b", "\u202e"}, (words, text)


def test_case_125_names_and_messages_of_commands_are_escaped(world: World) -> None:
    """What the agent was called and told goes into commits and lists."""
    done = world.repo.overlayrun(
        *world.words("called"), "-m", f"fix {_EVIL}", "--", "sh", "-c", "echo x >called", _EVIL
    )
    assert done.code == 0
    attack = Attack("called", done)
    world.examine(attack)
    attack.assert_sound()
    body = world.repo.git("cat-file", "commit", "called")
    assert "\x1b" not in body
    assert "\x9b" not in body


def test_case_126_the_agent_can_not_speak_for_overlayrun(world: World) -> None:
    """Its words go to its own stream; overlayrun's last lines come after it is dead."""
    attack = world.sh(
        "echo w >work; (sleep 5; echo 'overlayrun: merged' >&2) & echo 'overlayrun: snapshot 99 (fake)' >&2; "
        "echo 'overlayrun: merged into main'; exit 4",
        branch="fake",
    )
    attack.assert_sound()
    lines = attack.done.err.splitlines()
    assert attack.done.code == 4
    real = next(index for index, line in enumerate(lines) if "; snapshot 1 (" in line)
    assert [index for index, line in enumerate(lines) if "fake" in line] < [real]
    assert not [line for line in lines if "merged" in line]
