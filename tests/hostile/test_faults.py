"""Case 146: each system call of the set-up fails in turn; the command never starts and nothing is left."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from conftest import SHARE, Done, wait_until

from hostile.world import World

_CALLS: Final = (
    "clone mount umount2 move_mount mount_setattr open_tree fsopen fsconfig fsmount prctl capset seccomp "
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self close_range prlimit64 sethostname "
    "keyctl unshare setns setresuid setresgid setgroups setuid setgid pivot_root chroot"
).split()
# What a run can do without: it says so, or has another way, and starts.
_OPTIONAL: Final[Mapping[tuple[str, str], str]] = {
    ("landlock_create_ruleset", "ENOSYS"): "a kernel without Landlock",
    ("fsconfig", "EBADF"): "before Linux 6.13 layers are named by paths",
}
# A limit that is only read, and Python's own closing of descriptors, which closes one by one instead.
_HARMLESS: Final = re.compile(r"prlimit64\(\d+, \w+, NULL|close_range\(\d+, \d+, 0\)")
_MOST: Final = 3
"""Tries of one call, spread over all of its occurrences, by both users together."""


@dataclass(frozen=True, slots=True)
class _Fault:
    call: str
    when: int
    error: str = "EPERM"


def _traced(world: World, branch: str, *options: str) -> tuple[Done, str]:
    """Run a command that leaves a mark, under strace; how it ended and what was traced."""
    log = world.place / f"trace-{branch}"
    argv = ["strace", "-f", "-qq", "-o", str(log), *options]
    argv += world.repo.command(
        *world.words(branch), "--", "sh", "-c", f"echo started; echo {branch} >started"
    )
    done = subprocess.run(
        argv,
        cwd=world.repo.root,
        env=world.repo.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    text = log.read_text(errors="replace")
    log.unlink()
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")), text


def _before_the_command(trace: str) -> str:
    """What was called before the first process without privileges executed something; `trace` holds capset.

    By the order of calls alone: strings of a process that nobody may look into are not shown to its own user.
    """
    bare: set[str] = set()
    kept = []
    for line in trace.splitlines():
        process, _, words = line.partition(" ")
        words = words.lstrip()
        if words.startswith("execve(") and process in bare:
            break
        if words.startswith("capset("):
            bare.add(process)
        kept.append(line)
    return "\n".join(kept)


@pytest.fixture(scope="module")
def faults(world: World) -> list[_Fault]:
    """Every call of the set-up at each of its places, or at some where there are many; this user's half.

    strace counts `when` for each process by itself; processes that make the same call are tried alike.
    """
    done, trace = _traced(world, "counted", "-e", f"trace={','.join(f'?{name}' for name in _CALLS)},execve")
    assert done.code == 0, str(done)
    counts: Counter[tuple[str, str]] = Counter()
    places: dict[str, set[int]] = {}
    for line in _before_the_command(trace).splitlines():
        found = re.match(r"(\d+) +(\w+)\(", line)
        if found and found.group(2) in _CALLS:
            counts[found.group(1), found.group(2)] += 1
            if not _HARMLESS.search(line):
                places.setdefault(found.group(2), set()).add(counts[found.group(1), found.group(2)])
    needed = {"mount", "move_mount", "seccomp", "prctl", "capset", "landlock_restrict_self", "prlimit64"}
    assert needed <= places.keys(), places
    every = []
    for name, numbers in sorted(places.items()):
        spread = sorted(numbers)[:: max(1, len(numbers) // _MOST)]
        every += [_Fault(name, when) for when in spread]
    return every[SHARE::2]


def _failed_closed(world: World, fault: _Fault, number: int) -> list[str]:
    """What was wrong with a run in which a call failed; nothing where it was as it must be."""
    branch = f"fault{number}"
    before = world.repo.records().keys()
    done, trace = _traced(
        world,
        branch,
        "-e",
        f"trace={fault.call}",
        "-e",
        f"inject={fault.call}:error={fault.error}:when={fault.when}",
    )
    if "(INJECTED)" not in trace:
        return []
    wrong = []
    started = "started" in done.out
    if started and (fault.call, fault.error) not in _OPTIONAL:
        wrong.append("the command was started")
    if not started and done.code != 125:
        wrong.append(f"exit {done.code}")
    if "Traceback" in done.err:
        wrong.append(f"a traceback: {done.err[-400:]}")
    if not started and len([line for line in done.ours if "hint" not in line]) < 1:
        wrong.append(f"no word of it: {done.err!r}")
    if not started and world.repo.records().keys() != before:
        wrong.append("a workspace is left")
    return [f"{fault}: {what}" for what in wrong]


@pytest.mark.parametrize("part", range(4))
def test_case_146_a_set_up_that_fails_anywhere_starts_nothing(
    world: World, faults: list[_Fault], part: int
) -> None:
    mine = faults[part::4]
    assert len(mine) > 5
    wrong: list[str] = []
    with world.watched("none") as watch:
        for number, fault in enumerate(mine):
            wrong += _failed_closed(world, fault, 1000 * part + number)
    assert wrong == []
    assert [what for what in watch.broken if "refs changed" not in what] == []


@pytest.mark.parametrize("name", ["uid_map", "gid_map"])
def test_case_146_maps_that_can_not_be_written(world: World, name: str) -> None:
    """They are files, opened by path: the opening that fails is counted out from a run that went well."""
    branch = f"map-{name.replace('_', '-')}"
    done, trace = _traced(world, branch, "-e", "trace=openat,capset,execve")
    assert done.code == 0, str(done)
    opened = re.findall(r"(?m)^(\d+) +openat\((.*)", _before_the_command(trace))
    process, index = next(
        (pid, at) for at, (pid, words) in enumerate(opened) if f'/{name}", O_WRONLY' in words
    )
    faults = [["-P", f"/proc/self/{name}", "-e", "inject=openat:error=EACCES"]]
    if "/proc/self/" not in opened[index][1]:  # the parent writes it, at a path that is another each time
        when = [pid for pid, _ in opened[: index + 1]].count(process)
        numbers = [when + offset for offset in (1, 0, 2, -1, 3)]  # a workspace more each time
        faults = [
            ["-e", "trace=openat", "-e", f"inject=openat:error=EACCES:when={number}"] for number in numbers
        ]
    for number, fault in enumerate(faults):
        failed, injected = _traced(world, f"{branch}-off{number}", *fault)
        if re.search(rf'/{name}", O_WRONLY.*INJECTED', injected):
            break
    else:
        raise AssertionError("another file was hit each time")
    assert "started" not in failed.out
    assert failed.code == 125, str(failed)
    assert "Traceback" not in failed.err


def test_case_146_a_kernel_without_landlock_is_named(world: World) -> None:
    """The documented exception: a best-effort layer that is not there is told of, and the run goes on."""
    done, trace = _traced(
        world,
        "no-landlock",
        "-e",
        "trace=landlock_create_ruleset",
        "-e",
        "inject=landlock_create_ruleset:error=ENOSYS",
    )
    assert "(INJECTED)" in trace
    assert done.code == 0, str(done)
    assert any("landlock" in line.lower() for line in done.ours), str(done)
    wait_until(lambda: not world.left())
    assert Path(world.repo.root / "README").exists()
