"""Change a workspace's files from one tree to another from inside, and leave all others as they are.

`git apply` changes all of its files or none, and nothing where somebody has changed one meanwhile; it removes
them before it writes them anew, so a kill leaves less than either tree has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from overlayrun.files import write_whole
from overlayrun.live import LiveSandbox
from overlayrun.model import TreeId
from overlayrun.store.git import git

# Every word of it stands on the command line, above the user's configuration.
_DIFF: Final = (
    *("diff-tree", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--no-relative", "--unified=3", "--inter-hunk-context=0"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=none"),
)
_APPLY: Final = ("git", "apply", "--whitespace=nowarn", "-")


def change_files(live: LiveSandbox, git_dir: str, old: TreeId, new: TreeId) -> bool:
    """Bring the files that differ from `old`, which is what there is, to `new`; whether it could be done."""
    patch = git([*_DIFF, old, new], git_dir=git_dir)
    return not patch or live.run_inside(_APPLY, patch)[0] == 0


def transplant(
    live: LiveSandbox,
    git_dir: str,
    mark: str,
    start: tuple[int, TreeId],
    new: TreeId,
    take: Callable[[bool], dict[str, Any]],
) -> tuple[bool, dict[str, Any]]:
    """`change_files`, and a snapshot of what came of it; whether it could be done, and what `take` gave.

    mark: file that lets the next command take back what a kill of this process leaves half done. start:
    number and tree of the snapshot of what there is. take: takes a snapshot, told whether it could be done.
    """
    with _marked(mark, start[0]):
        is_done = change_files(live, git_dir, start[1], new)
        return is_done, take(is_done)


@contextmanager
def _marked(mark: str, number: int) -> Iterator[None]:
    write_whole(mark, b"%d" % number, durable=False)
    try:
        yield
    finally:
        os.unlink(mark)
