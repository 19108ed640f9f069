"""Tracked files by globs, for a task for each of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from overlayrun.batch.fields import Note
from overlayrun.batch.reading import Problem, shown
from overlayrun.store.git import git

_GITLINK: Final = b"160000"


def matching(globs: Sequence[str], tracked: Callable[[], Sequence[str]], note: Note) -> list[str]:
    """Tracked files that match any of the globs, sorted; as they can stand in a command."""
    if not globs:
        return []
    files = tracked()
    found: set[str] = set()
    for glob in globs:
        matches = re.compile(_glob_pattern(glob)).fullmatch
        of_this = [path for path in files if matches(path)]
        if not of_this:
            note(Problem(None, ("--foreach",), f"{shown(glob)} matches no tracked file"))
        found.update(of_this)
    for path in found:
        if not path.isprintable():
            note(Problem(None, ("--foreach",), f"{shown(path)} is no name that a report can show"))
    # A name that begins with a dash would be an option to most commands.
    return [f"./{path}" if path.startswith("-") else path for path in sorted(found)]


def _glob_pattern(glob: str) -> str:
    """A regular expression for a glob as git's `:(glob)` reads it: `**` spans directories, `*` does not."""
    if glob == "**":
        return ".+"
    parts = re.split(r"(\*\*/|/\*\*$|\*+|\?|\[[!^]?\]?[^\]/]*\])", glob)
    return "".join(_glob_part(part) for part in parts)


def _glob_part(part: str) -> str:
    if part == "**/":
        return "(?:.*/)?"
    if part == "/**":
        return "/.+"
    if part.startswith("*"):
        return "[^/]*"
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        negated = part[1] in "!^"
        letters = part[1 + negated : -1].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        return f"(?!/)[{'^' if negated else ''}{letters}]"
    return "[^/]" if part == "?" else re.escape(part)


def tracked_files(directory: str) -> list[str]:
    """Files of git's index below a directory, relative to it, without submodules."""
    listed = git(["ls-files", "--stage", "-z"], cwd=directory)
    entries = (entry.partition(b"\t") for entry in listed.split(b"\0")[:-1])
    return list(
        dict.fromkeys(os.fsdecode(path) for mode, _, path in entries if not mode.startswith(_GITLINK))
    )
