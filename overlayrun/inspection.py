"""What a run would show its command, proved from inside: a throwaway is started, and tries everything."""

from __future__ import annotations

import importlib.resources
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from overlayrun.errors import HostError, UsageError
from overlayrun.kernel import syscalls
from overlayrun.model import HomePolicy, RunOptions
from overlayrun.program import this_program
from overlayrun.sandbox.secrets import find_masks, listening_sockets
from overlayrun.store.location import Repository
from overlayrun.view import Choices, home_directory
from overlayrun.workspace.catalogue import repositories, user_state
from overlayrun.workspace.layout import Layout

_PATIENCE: Final = 120.0
_SCOPES: Final = 6  # version of Landlock's interface that cuts off abstract sockets
_FIXED: Final = ("/", "/usr", "/etc", "/var")
_OWN: Final = ("/tmp", "/var/tmp", "/run", "/dev/shm")


class Reach(Enum):
    """What the command can do with a place."""

    READ_ONLY = "read-only"
    COPY_ON_WRITE = "copy-on-write"
    PRIVATE = "private"
    SHARED = "shared"
    MASKED = "masked"


@dataclass(frozen=True, slots=True)
class Place:
    """A place of the sandbox. note: where changes are kept, "" where there is nothing to say."""

    path: str
    reach: Reach
    note: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that was tried from inside. state: ok, FAIL, or limited by what the kernel can do."""

    name: str
    state: str
    found: str

    @property
    def failed(self) -> bool:
        """Whether the sandbox is less than it promises."""
        return self.state == "FAIL"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a command can see and write, by path, and what it tried in vain."""

    places: tuple[Place, ...]
    proofs: tuple[Proof, ...]


def inspect(repository: Repository, layout: Layout, options: RunOptions, words: Sequence[str]) -> Inspection:
    """Start a throwaway with `words` as its run options and let it look around.

    options: the same, read. Raises HostError where it can't be started or does not answer.
    """
    if options.branch is not None or options.rm:
        raise UsageError("the sandbox is tried by a throwaway", hint="leave out: -b, --rm")
    mark = f".overlayrun-{secrets.token_hex(8)}"
    with ExitStack() as opened:
        ask = _questions(repository, options, mark)
        ask |= _listen(opened, mark)
        answer = _answer(repository, [*words, "--rm", "--quiet", "--dirty", "ignore"], ask)
    proofs = [Proof(*found) for found in answer["proofs"]]
    proofs += [_untouched(path, mark) for path in (*ask["written"], *ask["read_only"])]
    return Inspection(tuple(_places(answer["mounts"], ask, layout, options)), tuple(proofs))


def _questions(repository: Repository, options: RunOptions, mark: str) -> dict[str, Any]:
    home, choices = home_directory(), Choices.of(options)
    masks = find_masks(home, options.profile, [*choices.mask, user_state()], choices.unmask)
    hidden = [*masks.elsewhere, *repositories()]
    if options.home is HomePolicy.COW:
        hidden += [f"{home}/{name}" for name in masks.below]
    outside = os.path.dirname(repository.root)
    covered = tuple(f"{path}/" for path in (home, "/tmp", "/var/tmp", "/run", "/dev"))
    return {
        "mark": mark,
        "hidden": sorted(path for path in hidden if os.path.lexists(path)),
        "read_only": [*_FIXED, *([outside] if not f"{outside}/".startswith(covered) else [])],
        "written": [repository.root, *([home] if os.path.isdir(home) else []), *_OWN],
        "sockets": sorted(path for path in listening_sockets() if os.access(path, os.W_OK)),
        "pid": os.getpid(),
        "userns": options.allow_userns,
        "ptrace": options.allow_ptrace,
        "network": options.net in (None, "host") and not options.strict,
        "scopes": _landlock() >= _SCOPES,
    }


def _landlock() -> int:
    try:
        return syscalls.landlock_abi()
    except OSError:
        return 0


def _listen(opened: ExitStack, mark: str) -> dict[str, Any]:
    """Servers on the host that must not be reached."""
    loopback = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    abstract = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    abstract.bind(f"\0{mark}")
    abstract.listen()
    return {"port": loopback.getsockname()[1], "abstract": mark}


def _answer(repository: Repository, words: Sequence[str], ask: dict[str, Any]) -> dict[str, Any]:
    source = importlib.resources.files("overlayrun").joinpath("inside.py").read_text("utf-8")
    python = os.path.realpath(
        sys.executable
    )  # a virtual environment may be hidden, what it stands on less so
    inside = [python, "-I", "-c", source, json.dumps(ask)]
    done = subprocess.run(
        [*this_program(), *words, "--", *inside],
        cwd=repository.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = os.fsdecode(done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        hint = "the same by hand: overlayrun --rm -- python3 -c 'print(1)'"
        raise HostError(
            f"the sandbox did not answer: {lines[-1].removeprefix('overlayrun: ')}", hint=hint
        ) from None
    return answer


def _untouched(path: str, mark: str) -> Proof:
    place = f"{path.rstrip('/')}/{mark}"
    if os.path.lexists(place):
        return Proof(f"host's {path}", "FAIL", f"changed: {place}")
    return Proof(f"host's {path}", "ok", "unchanged")


def _places(
    mounts: Sequence[Sequence[str]], ask: dict[str, Any], layout: Layout, options: RunOptions
) -> Iterator[Place]:
    """Places that differ from what they lie in, by path; masks that are no mounts, too."""
    root, home = ask["written"][0], home_directory()
    kept = f"{layout.workspaces}/ID"
    notes = {root: f"kept in {kept}/upper, and as commits", home: f"kept in {kept}/home"}
    found = {path: Place(path, Reach(kind), notes.get(path, "")) for path, kind, _ in mounts}
    if options.home is HomePolicy.PRIVATE and home in found:
        found[home] = Place(home, Reach.PRIVATE, notes[home])
    found |= {path: Place(path, Reach.MASKED) for path in ask["hidden"]}
    for path in sorted(found):
        place = found[path]
        above = next((found[up] for up in _above(path) if up in found), None)
        same = above is not None and above.reach is place.reach and not place.note
        if not same and not path.startswith("/dev/"):
            yield place


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path
