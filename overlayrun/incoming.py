"""What a change of trees would bring to the user, looked at before it does: carriers, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from overlayrun.carriers import LARGEST, Carrier, carriers_of
from overlayrun.errors import StoreError
from overlayrun.layers.names import is_dotgit, is_dotgitmodules
from overlayrun.model import TreeId
from overlayrun.store.commits import printable
from overlayrun.store.compare import Change, changed_directories
from overlayrun.store.git import git
from overlayrun.store.repo import Repo
from overlayrun.store.trees import SYMLINK, Entry, is_tree

MEANING: Final = "files that run code on your machine when opened or built"
_LONGEST_RULE: Final = 2048
_CONTROL: Final = re.compile("[\0-\x1f\x7f]")
_HELPER: Final = re.compile(r"[A-Za-z0-9]+::")  # gitremote-helpers(7): runs a program of that name
_UPDATES: Final = frozenset({"checkout", "rebase", "merge", "none"})  # gitmodules(5); `!command` runs one


@dataclass(frozen=True, slots=True)
class Incoming:
    """What differs. files: how many. carriers: sorted by path.

    bare: directories, with a slash at the end, that git takes for a repository, and obeys its configuration,
    once somebody stands in them; `./` for the top. unsafe: a printable sentence for each fault of a
    .gitmodules or .gitattributes file.
    """

    files: int = 0
    carriers: tuple[Carrier, ...] = ()
    bare: tuple[bytes, ...] = ()
    unsafe: tuple[str, ...] = ()


def incoming(repo: Repo, old: TreeId, new: TreeId) -> Incoming:
    """Look at all that differs between what the user has and what he would get. Cost follows the change."""
    directories = list(changed_directories(repo, old, new))
    changes = [change for directory in directories for change in directory.changes()]
    return Incoming(
        len(changes),
        tuple(carriers_of(changes, repo.read_blob)),
        tuple(sorted(each.prefix or b"./" for each in directories if _is_bare(each.after))),
        tuple(dict.fromkeys(fault for change in changes for fault in _faults(repo, change))),
    )


def _is_bare(entries: Mapping[bytes, Entry]) -> bool:
    """Whether git could take a directory for a repository (git's setup.c, is_git_directory)."""
    kinds = {name.lower(): entry for name, entry in entries.items()}
    head = kinds.get(b"head")
    return (
        head is not None
        and not is_tree(head)
        and (kinds.keys() >= {b"objects", b"refs"} or b"commondir" in kinds)
    )


def _faults(repo: Repo, change: Change) -> Iterator[str]:
    name = change.path.rpartition(b"/")[2]
    attributes = name.lower() == b".gitattributes"
    if change.after is None or not (attributes or is_dotgitmodules(name)):
        return
    shown = printable(change.path.decode("utf-8", "surrogateescape"), one_line=True)
    if change.after[0] == SYMLINK:
        yield f"{shown} is a symlink"
    elif attributes:
        yield from (f"{shown} {fault}" for fault in _attribute_faults(repo, change.after[1].hex()))
    else:
        yield from _module_faults(repo, change.after[1].hex(), shown)


def _attribute_faults(repo: Repo, oid: str) -> Iterator[str]:
    """What git reads no further than, and a server refuses (git-fsck(1), gitattributesLineLength)."""
    if any(len(line) > _LONGEST_RULE for line in repo.read_blob(oid).split(b"\n")):
        yield f"has a line of more than {_LONGEST_RULE} bytes"


def _module_faults(repo: Repo, oid: str, shown: str) -> Iterator[str]:
    try:
        settings = _settings(repo, oid)
    except StoreError:
        yield f"{shown} can't be read as git's configuration"
        return
    yield from (f"{shown}: {fault}" for key, value in settings for fault in _setting_faults(key, value))


def _settings(repo: Repo, oid: str) -> list[tuple[str, str]]:
    """Keys and values as git reads them. Raises StoreError for what it doesn't, or what is too large."""
    if len(repo.read_blob(oid)) > LARGEST:
        raise StoreError(f"blob {oid} is too large")
    words = ["config", f"--blob={oid}", "--no-includes", "-z", "--list"]
    listed = git(words, git_dir=repo.git_dir).decode("utf-8", "surrogateescape").split("\0")[:-1]
    return [(key, value) for key, _, value in (item.partition("\n") for item in listed)]


def _setting_faults(key: str, value: str) -> Iterator[str]:
    section, _, rest = key.partition(".")
    name, dot, what = rest.rpartition(".")
    if section != "submodule" or not dot:
        return
    if not name or ".." in re.split(r"[/\\]", name) or _CONTROL.search(name):
        yield f"submodule name {name!a}"
    if _is_bad(what, value):
        yield f"{what} {value!a}"


def _is_bad(what: str, value: str) -> bool:
    """Whether git, of this version or an older one, could be led astray by a value."""
    if _CONTROL.search(value):
        return True
    if what == "update":
        return value not in _UPDATES
    if what == "path":
        parts = value.encode("utf-8", "surrogateescape").split(b"/")
        return value[:1] in ("-", "/", "") or b".." in parts or any(map(is_dotgit, parts))
    if what == "url":
        return (
            value[:1] in ("-", "") or "://-" in value or "%0a" in value.lower() or bool(_HELPER.match(value))
        )
    return value.startswith("-")
