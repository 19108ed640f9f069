"""The command's own `.git`: HEAD, refs, index and configuration of its own; the history by alternates.

It holds no credential, no hook and no path back to the real one. Its index comes from the frozen tree; what
is written here is small and lies in the upper layer of the `.git` mount.
"""

from __future__ import annotations

import os

from overlayrun.files import copy_file, read_bytes, write_new
from overlayrun.store.git import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

    from overlayrun.store.location import Repository

# Settings that change what git stores or shows, and can neither run a program nor hold a secret.
_PLAIN: Final = (
    "user.name",
    "user.email",
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.filemode",
    "core.symlinks",
    "core.ignorecase",
    "core.abbrev",
    "core.quotepath",
    "i18n.commitencoding",
    "merge.conflictstyle",
    "pull.rebase",
    "rebase.autosquash",
)
# gc would copy whole packs up; a warm cache of untracked files would name the user's directories.
_OWN: Final = (
    ("core.repositoryformatversion", "0"),
    ("core.bare", "false"),
    ("core.logallrefupdates", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
)
# What `write_git_directory` makes, and what a mere `git status` adds.
_MADE: Final = frozenset(
    {"HEAD", "config", "packed-refs", "info", "objects", "shallow", "index", "alternates", "pack"}
)


def write_git_directory(
    repository: Repository,
    place: str,
    objects: str,
    head: str,
    refs: Mapping[str, str],
    excluded: Iterable[str],
) -> None:
    """Fill the upper layer of a workspace's `.git`.

    objects: path of the history's objects as the command sees it. head: ref name that HEAD stands for.
    refs: full ref names and commits; the repository's tags come on top. excluded: patterns for info/exclude,
    after the user's own.
    """
    os.makedirs(f"{place}/info")
    os.makedirs(f"{place}/objects/info")
    lines = [f"{commit} {name}" for name, commit in {**dict(_tags(repository.common_dir)), **refs}.items()]
    files = {
        "HEAD": f"ref: {head}\n",
        "config": repository.known.configuration if repository.known else configuration(repository),
        "packed-refs": "".join(
            f"{line}\n" for line in sorted(lines, key=lambda line: line.partition(" ")[2])
        ),
        "objects/info/alternates": f"{objects}\n",
    }
    for name, text in files.items():
        write_new(f"{place}/{name}", text.encode("utf-8", "surrogateescape"), mode=0o644)
    for name in ("info/exclude", "info/attributes", "shallow"):
        try:
            write_new(f"{place}/{name}", read_bytes(f"{repository.common_dir}/{name}"), mode=0o644)
        except FileNotFoundError:
            continue
    with open(f"{place}/info/exclude", "a", encoding="ascii") as file:
        file.writelines(f"\n{pattern}" for pattern in excluded)


def complete_git_directory(place: str, index: str) -> None:
    """Add what else comes from the template below, for a `.git` that is shown without an overlay."""
    for directory in ("objects/info", "objects/pack", "refs/heads", "info"):
        os.makedirs(f"{place}/{directory}", exist_ok=True)
    copy_file(index, f"{place}/index")


def is_touched(upper: str, git_upper: str) -> bool:
    """Whether a command changed anything of the tree or committed, told by names alone."""
    names = set(os.listdir(upper)) - {".git"}
    try:
        made = {*os.listdir(f"{git_upper}/objects"), *os.listdir(git_upper)}
    except OSError:  # it emptied its own repository
        return True
    return bool(names or made - _MADE)


def _tags(common_dir: str) -> Iterator[tuple[str, str]]:
    """Tags, because builds ask `git describe` for a version; from the files: a process costs 4 ms."""
    try:
        packed = read_bytes(f"{common_dir}/packed-refs").decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        packed = ""
    for line in packed.split("\n"):
        commit, _, name = line.partition(" ")
        if name.startswith("refs/tags/"):
            yield name, commit
    for directory, _, names in os.walk(f"{common_dir}/refs/tags"):
        for name in names:
            path = f"{directory}/{name}"
            yield path[len(common_dir) + 1 :], read_bytes(path).decode("ascii", "replace").strip()


def configuration(repository: Repository) -> str:
    """Text of the command's `.git/config`: what of the user's it may know, and our own."""
    listed = git(["config", "--local", "-z", "--list"], git_dir=repository.git_dir, check=False)
    pairs = [item.partition("\n") for item in listed.decode("utf-8", "surrogateescape").split("\0") if item]
    settings = {name: value for name, _, value in pairs if name in _PLAIN}
    lines = []
    for name, value in {**settings, **dict(_OWN)}.items():
        section, _, key = name.partition(".")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines.append(f'[{section}]\n\t{key} = "{quoted}"\n')
    for name, _, value in pairs:
        if name.startswith("remote.") and name.endswith(".url"):
            remote = (
                name.removeprefix("remote.").removesuffix(".url").replace("\\", "\\\\").replace('"', '\\"')
            )
            lines.append(f'[remote "{remote}"]\n\turl = "{_without_credentials(value)}"\n')
    return "".join(lines)


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
