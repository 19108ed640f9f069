"""Differences of two trees on standard output: patches, sizes, names."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import click  # noqa: TID251  # this is overlayrun/cli/

from overlayrun.cli.render import coloured, has_colours, on_terminal
from overlayrun.model import TreeId
from overlayrun.report import printable
from overlayrun.store.git import git

# No program of anybody's runs to show a difference, whatever attributes and configuration say.
_COMMAND: Final = ("diff-tree", "-r", "--no-ext-diff", "--no-textconv", "--no-color")
_MARKS: Final = (("+++", ""), ("---", ""), ("@@", "cyan"), ("+", "green"), ("-", "red"), ("diff ", "bold"))


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path. status: git's letter (A, M, D, T). insertions, deletions: lines, None for a binary file."""

    path: bytes
    status: str
    insertions: int | None
    deletions: int | None


def say_patch(git_dir: str, old: TreeId, new: TreeId) -> None:
    """The patch: byte for byte into a pipe or file, escaped and coloured on a terminal."""
    _say(git([*_COMMAND, "-p", "-M", old, new], git_dir=git_dir))


def say_stat(git_dir: str, old: TreeId, new: TreeId) -> None:
    """A line a file, and the sum."""
    _say(git([*_COMMAND, "--stat", "-M", old, new], git_dir=git_dir))


def say_names(git_dir: str, old: TreeId, new: TreeId) -> None:
    """Changed paths, one a line, quoted by git where they need it."""
    _say(git([*_COMMAND, "--name-only", old, new], git_dir=git_dir))


def _say(data: bytes) -> None:
    sys.stdout.flush()
    if not on_terminal():
        sys.stdout.buffer.write(data)
        return
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        click.echo(_painted(printable(line.expandtabs(8))))


def _painted(line: str) -> str:
    if not has_colours():
        return line
    for mark, colour in _MARKS:
        if line.startswith(mark):
            return click.style(line, bold=True) if colour in ("", "bold") else coloured(line, colour)
    return line


def file_changes(git_dir: str, old: TreeId, new: TreeId) -> list[FileChange]:
    """Changed paths, sorted by git; a renamed file is one deleted and one added."""
    names = git([*_COMMAND, "--name-status", "--no-renames", "-z", old, new], git_dir=git_dir).split(b"\0")[
        :-1
    ]
    status = dict(zip(names[1::2], names[::2], strict=True))
    lines = git([*_COMMAND, "--numstat", "--no-renames", "-z", old, new], git_dir=git_dir).split(b"\0")[:-1]
    return [_file_change(line, status) for line in lines]


def file_shape(file: FileChange) -> dict[str, Any]:
    """One path, as `--json` tells it."""
    return {
        "path": os.fsdecode(file.path),
        "status": file.status,
        "insertions": file.insertions,
        "deletions": file.deletions,
    }


def _file_change(line: bytes, status: dict[bytes, bytes]) -> FileChange:
    added, removed, path = line.split(b"\t", 2)
    return FileChange(path, status[path].decode(), _lines(added), _lines(removed))


def _lines(text: bytes) -> int | None:
    return None if text == b"-" else int(text)
