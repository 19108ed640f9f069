"""Files of the user's that a delivery displaced and could not put back: kept under a ref."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence

from overlayrun.files import flush_disk, read_bytes
from overlayrun.model import CommitId
from overlayrun.store.commits import format_commit
from overlayrun.store.git import git
from overlayrun.store.refs import QUEUE, RefUpdate, flush_refs, update_refs
from overlayrun.store.settings import read_settings


def record(common_dir: str, index: str, displaced: Sequence[tuple[str, bytes]]) -> str:
    """Commit displaced files, each under the path it had, and return the ref that keeps them.

    index: a file to work with.
    """
    env = {"GIT_INDEX_FILE": index}

    def ask(*words: str, data: bytes = b"") -> str:
        return git(words, git_dir=common_dir, env=env, input=data).decode().strip()

    lines = b"".join(line for side, path in displaced for line in _index_lines(common_dir, side, path))
    ask("read-tree", "--empty")
    ask("update-index", "-z", "--index-info", data=lines)
    tree, identity = bytes.fromhex(ask("write-tree")), read_settings(common_dir).identity
    commit = format_commit(tree, [], identity, int(time.time()), "Saved while a branch was delivered\n")
    oid = CommitId(ask("hash-object", "-w", "-t", "commit", "--stdin", data=commit))
    flush_disk(f"{common_dir}/objects")  # the ref is flushed, and must not name what is not on the disk
    ref = f"{QUEUE}user-backup/{time.time_ns()}"
    update_refs(common_dir, [RefUpdate(ref, oid, None)], why="backup")
    flush_refs(common_dir, [ref])
    return ref


def _index_lines(common_dir: str, source: str, path: bytes) -> Iterator[bytes]:
    mode = os.lstat(source).st_mode
    if stat.S_ISDIR(mode):
        for entry in os.scandir(source):
            yield from _index_lines(common_dir, entry.path, path + b"/" + os.fsencode(entry.name))
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        is_link = stat.S_ISLNK(mode)
        data = os.fsencode(os.readlink(source)) if is_link else read_bytes(source)
        oid = git(["hash-object", "-w", "--stdin"], git_dir=common_dir, input=data).strip()
        kind = b"120000" if is_link else b"100755" if mode & stat.S_IXUSR else b"100644"
        yield kind + b" " + oid + b"\t" + path + b"\0"
