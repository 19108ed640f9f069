"""Agents' sessions in the tables of `ls` and `status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from overlayrun.account import Session, cut
from overlayrun.cli.render import say_table

_HEADS: Final = ("SESSION", "LAST MESSAGE")
# The last to go are what one types next, and what is new.
_SPARE: Final = ("DISK", "SNAPSHOTS", "FILES", "AHEAD", "COMMAND", "CONFLICTS", "USED", "LINES", "SESSION")
_COMMAND, _TITLE, _SAID = 20, 28, 100  # characters, where there are sessions


def say_with_sessions(
    heads: Sequence[str], rows: Sequence[Sequence[str]], sessions: Sequence[Session]
) -> None:
    """A table whose last column is the command, with columns for the rows' sessions where there are any."""
    if all(session == Session() for session in sessions):
        say_table(heads, rows, _SPARE)
        return
    told = [
        [*row[:-1], cut(row[-1], _COMMAND), cut(session.title, _TITLE), cut(session.last_message, _SAID)]
        for row, session in zip(rows, sessions, strict=True)
    ]
    say_table([*heads, *_HEADS], told, _SPARE)
