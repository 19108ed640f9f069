"""What the user's git configuration says, read once by one git process (every scope, includes and all)."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from overlayrun.store.git import git

_TRUE = frozenset({"true", "yes", "on", "1"})
_CRUD = re.compile(r"[<>\n\r\0]")


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter driver of the user's; only `clean` matters to what is stored."""

    clean: str | None = None
    process: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of the configuration that decides what a snapshot stores.

    identity: `Name <address>` as a commit holds it. file_mode: whether the executable bit counts.
    converts: core.autocrlf is on. attributes: attribute files outside the tree exist. excludes: contents of
    core.excludesFile and info/exclude, weakest first. lfs_storage: directory of git-lfs.
    """

    identity: bytes
    file_mode: bool
    converts: bool
    attributes: bool
    excludes: tuple[bytes, ...]
    lfs_storage: str
    filters: Mapping[str, Filter] = field(default_factory=dict)


def read_settings(git_dir: str) -> Settings:
    """Settings in force for the repository at `git_dir`."""
    values = _read_config(git_dir)
    exclude = values.get("core.excludesfile", _xdg("ignore"))
    attributes = (values.get("core.attributesfile", _xdg("attributes")), "/etc/gitattributes")
    return Settings(
        identity=_identity(values),
        file_mode=values.get("core.filemode", "true").lower() in _TRUE,
        converts=values.get("core.autocrlf", "false").lower() in _TRUE | {"input"},
        attributes=any(
            os.path.exists(os.path.expanduser(path)) for path in (*attributes, f"{git_dir}/info/attributes")
        ),
        excludes=tuple(
            _content(os.path.expanduser(path)) for path in (exclude, f"{git_dir}/info/exclude") if path
        ),
        lfs_storage=os.path.join(git_dir, values.get("lfs.storage", "lfs")),
        filters=_filters(values),
    )


# By repository: what git said when its files looked like that. A supervisor asks at each snapshot (3 ms).
_READ: Final[dict[str, tuple[object, dict[str, str]]]] = {}


def _read_config(git_dir: str) -> dict[str, str]:
    """Last value of each key; a key without a value means true."""
    marks = _config_marks(git_dir)
    if git_dir in _READ and _READ[git_dir][0] == marks:
        return _READ[git_dir][1]
    values = _ask_git(git_dir)
    if not any(key.startswith(("include.", "includeif.")) for key in values):  # else other files count too
        _READ[git_dir] = (marks, values)
    return values


def _config_marks(git_dir: str) -> list[tuple[int, int, int] | None]:
    home = os.environ.get("HOME", "")
    own = os.environ.get("GIT_CONFIG_GLOBAL") or f"{home}/.gitconfig"
    system = os.environ.get("GIT_CONFIG_SYSTEM", "/etc/gitconfig")
    repository = (f"{git_dir}/config", f"{git_dir}/config.worktree")
    paths = (*repository, own, os.path.expanduser(_xdg("config")), system)
    return [_mark(path) for path in paths]


def _mark(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def _ask_git(git_dir: str) -> dict[str, str]:
    listed = os.fsdecode(git(["config", "--null", "--list"], git_dir=git_dir))
    pairs = (item.partition("\n") for item in listed.split("\0") if item)
    return {key: value if equals else "true" for key, equals, value in pairs}


def _xdg(name: str) -> str:
    return f"{os.environ.get('XDG_CONFIG_HOME') or '~/.config'}/git/{name}"


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _identity(values: Mapping[str, str]) -> bytes:
    name, address = values.get("user.name"), values.get("user.email")
    if not (name and address):
        login = _login()
        name, address = name or login, address or f"{login}@{os.uname().nodename}"
    cleaned = [_CRUD.sub("", part).strip(" .,:;\"'\\") for part in (name, address)]
    return "{} <{}>".format(*cleaned).encode("utf-8", "replace")


def _login() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user{os.geteuid()}"


def _filters(values: Mapping[str, str]) -> dict[str, Filter]:
    names = {key.removeprefix("filter.").rpartition(".")[0] for key in values if key.startswith("filter.")}
    return {
        name: Filter(values.get(f"filter.{name}.clean"), values.get(f"filter.{name}.process"))
        for name in names
    }
