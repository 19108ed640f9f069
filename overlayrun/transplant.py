"""Change a workspace's files from one tree to another from inside, and leave all others as they are.

`git apply` changes all of its files or none, and nothing where somebody has changed one meanwhile; it removes
them before it writes them anew, so a kill leaves less than either tree has.
"""

from __future__ import annotations

from typing import Final

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
