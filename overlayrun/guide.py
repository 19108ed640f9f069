"""The note that a command finds in its workspace: where it is, what it can do. On the launch path."""

from __future__ import annotations

from overlayrun.files import write_whole
from overlayrun.sandbox.plan import CONTROL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from overlayrun.workspace.record import Record

_NAME: Final = "AGENTS.md"
GUIDE: Final = f"{CONTROL}/{_NAME}"
"""Where the command sees the note; OVERLAYRUN_HELP says so too."""

_KEPT: Final = """\
## What happens to your work
Everything in this directory that git does not ignore becomes commits on branch `{branch}`: every now and
then, when you ask for it, and at the end. You need not commit. If you do, your commits and their messages
are kept; what is uncommitted then goes into one commit on top. Branch and messages are what the user, or
who merges for him, reads before the work is brought home{home}, once your command has ended.
"""
_THROWAWAY: Final = """\
## What happens to your work
This is a throwaway run: at its end the user is shown what would have changed, and may keep it or not.
"""
_TEXT: Final = """\
# You are in an overlayrun workspace
It is a private copy-on-write view of the user's git repository, at the repository's own path: {root}
{where}
Nobody sees your changes while you work, and you see nobody's. The user's own tree does not change.

{fate}
## What you can type here
- `overlayrun snapshot -m TEXT`  commit the present state now, with your words: what was done, and why
- `overlayrun status`            this branch, its base and target, what changed so far
- `overlayrun fork [-b NAME]`    a second branch from the present state, which the user can run and merge;
  `-n 5`: five of them, to try as many ways
All take `--json`. A program asks the same at the socket in $OVERLAYRUN_SOCKET, a line of JSON each way:
`{{"op": "snapshot", "message": "…"}}`, `{{"op": "status"}}`, `{{"op": "fork", "branch": "…"}}`.
There alone: `{{"op": "open", "branch": "…"}}` answers the "path" of a further branch's tree, to work in at
once beside this one; `{{"op": "close", "path": "…"}}` takes its last snapshot, as the end of the run does.

## What does not work here
- `git push` without credentials: none are here; the user pushes, or gives them when the run starts.
- Other branches of the user's: this `.git` has only `{branch}`{other} and the history.
- Writing outside this directory, HOME and /tmp; HOME is a copy, and what you change there stays here.
- `overlayrun -- COMMAND`: a run inside a run; and `overlayrun merge`, which is the user's.
- Servers: take the ports in $OVERLAYRUN_PORTS, so that other workspaces can have theirs.
"""


def write_guide(directory: str, record: Record) -> None:
    """Write the note of a run. directory: the one that its sandbox shows, read-only, at CONTROL."""
    write_whole(
        f"{directory}/{_NAME}", guide_text(record).encode("utf-8", "replace"), durable=False, mode=0o644
    )


def guide_text(record: Record) -> str:
    """The note, in Markdown."""
    base = f"commit {record.base[:10]}" if record.base else "the empty tree"
    changes = " and the user's uncommitted changes" if record.dirty else ""
    where = f"Branch `{record.branch}`, from {base}{changes}."
    if record.target:
        where += f" It is meant for `{record.target}`, its target."
    home = f", into `{record.target}`" if record.target else ""
    fate = _THROWAWAY if record.throwaway else _KEPT.format(branch=record.branch, home=home)
    other = f", `{record.target}`" if record.target else ""
    return _TEXT.format(root=record.root, where=where, fate=fate, branch=record.branch, other=other)
