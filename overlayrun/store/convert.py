"""Blobs as `git add` would store them by the start tree's attributes, without running anybody's program here.

Text, eol, ident and encodings are git's own work: it adds the bytes in a scratch work tree that has the
start tree's
.gitattributes and no filter drivers. LFS pointers are made here; every other filter runs inside the sandbox
or the
path is left out, because the plain text of an encrypting filter must not reach the store.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Final, Self

from overlayrun.store.git import GitFailed, config_environment, git
from overlayrun.store.importer import RunInside
from overlayrun.store.lfs import store_for_lfs
from overlayrun.store.pack import ObjectWriter, copy_exactly, join_exactly, pieces_of
from overlayrun.store.repo import Repo
from overlayrun.store.scratch import Scratch
from overlayrun.store.settings import Settings
from overlayrun.store.trees import EXECUTABLE, FILE, Entry

_IN_MEMORY: Final = 32 << 20  # bytes of all files together; more goes to scratch files
_ATTRIBUTES: Final = ("text", "crlf", "eol", "ident", "filter", "working-tree-encoding")
_OFF: Final = ("unspecified", "unset")
_RULES: Final = b".gitattributes"
_PLACEHOLDER: Final = re.compile("%[f%]")  # gitattributes(5), "filter"


@dataclass(slots=True)
class _Taken:
    """A file whose blob is not known yet. data: None while it is in the scratch file."""

    path: bytes
    before: Entry | None
    data: bytes | None
    scratch: str | None

    def read(self) -> bytes:
        """Its content."""
        if self.data is None and self.scratch is not None:
            with open(self.scratch, "rb") as file:
                return file.read()
        return self.data or b""

    def may_hold(self, *parts: bytes) -> bool:
        """Whether one of `parts` could be in it; not looked up in scratch files."""
        data = self.data
        return data is None or any(part in data for part in parts)


class Converter:
    """Takes files that attributes may reach, and answers with their blob ids at the end.

    beside: a file of ours; scratch files go into its directory.
    """

    def __init__(
        self,
        repo: Repo,
        settings: Settings,
        writer: ObjectWriter,
        *,
        beside: str,
        run_inside: RunInside | None,
    ) -> None:
        self._repo = repo
        self._settings = settings
        self._writer = writer
        self._beside = os.path.dirname(beside)
        self._run_inside = run_inside
        self._scratch: Scratch | None = None
        self._rules: dict[bytes, bytes] = {}
        self._taken: list[_Taken] = []
        self._in_memory = 0
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scratch:
            self._scratch.remove()

    def sees(self, path: bytes, entries: Mapping[bytes, Entry]) -> bool:
        """Note a directory of the start tree; whether attributes may reach the files in it, or below."""
        rules = entries.get(_RULES)
        if rules and rules[0] in (FILE, EXECUTABLE):
            self._rules[path] = rules[1]
            return True
        return not path and (self._settings.converts or self._settings.attributes)

    def take(self, path: bytes, pieces: Iterable[bytes], size: int, before: Entry | None) -> None:
        """Take a file in. before: what the start tree has there. Raises ShortRead if it has shrunk."""
        if self._in_memory + size <= _IN_MEMORY:
            self._in_memory += size
            self._taken.append(_Taken(path, before, join_exactly(pieces, size), None))
            return
        scratch = f"{self._place()}/{len(self._taken)}"
        with open(scratch, "xb") as file:
            copy_exactly(pieces, size, file)
        self._taken.append(_Taken(path, before, None, scratch))

    def finish(self) -> dict[bytes, bytes | None]:
        """Raw blob id by path; None where a filter could not be run. The ids git wrote are flushed."""
        if not self._taken:
            return {}
        self._write_rules()
        attributes = self._read_attributes()
        ids: dict[bytes, bytes | None] = {}
        for_git: list[_Taken] = []
        for one in self._taken:
            found = attributes[one.path]
            if not self._filter(one, found["filter"]):
                ids[one.path] = None
            elif self._needs_git(one, found):
                for_git.append(one)
            else:
                ids[one.path] = self._store(one)
        return ids | self._add_by_git(for_git)

    def _filter(self, one: _Taken, name: str) -> bool:
        """Put a file through its filter; False where that can't be done. An unknown driver does nothing."""
        driver = self._settings.filters.get(name)
        if driver is None or not (driver.clean or driver.process):
            return True
        if name == "lfs":
            one.data = store_for_lfs(self._settings.lfs_storage, one.data, one.scratch)
            return True
        if not driver.clean or self._run_inside is None:
            return False
        words = {"%f": shlex.quote(os.fsdecode(one.path)), "%%": "%"}
        command = _PLACEHOLDER.sub(lambda found: words[found[0]], driver.clean)
        status, data = self._run_inside(["sh", "-c", command], one.read())
        one.data = data
        return status == 0

    def _needs_git(self, one: _Taken, found: Mapping[str, str]) -> bool:
        """Whether git's built-in conversions could change the bytes; when in doubt, yes."""
        if found["working-tree-encoding"] not in _OFF:
            return True
        if found["ident"] not in _OFF and one.may_hold(b"$Id"):
            return True
        if found["text"] == "unset":
            return False
        is_text = self._settings.converts or any(found[name] not in _OFF for name in ("text", "crlf", "eol"))
        return is_text and one.may_hold(b"\r")

    def _store(self, one: _Taken) -> bytes:
        if one.before:
            self._writer.trust(one.before[1])
        if one.data is not None:
            return self._writer.add(b"blob", one.data)
        assert one.scratch is not None
        with open(one.scratch, "rb") as file:
            return self._writer.add_file(pieces_of(file), os.fstat(file.fileno()).st_size)

    def _add_by_git(self, files: Sequence[_Taken]) -> dict[bytes, bytes | None]:
        placed: list[_Taken] = []
        alone: list[_Taken] = []
        for one in files:
            (placed if self._materialise(one) else alone).append(one)
        ids: dict[bytes, bytes | None] = {}
        try:
            ids |= self._add(placed) if placed else {}
        except GitFailed:
            alone += placed  # one file that its encoding does not fit stops all of them
        for one in alone:
            ids[one.path] = self._hash_alone(one)
        return ids

    def _add(self, files: Sequence[_Taken]) -> dict[bytes, bytes]:
        """Add files to a scratch index that has the start tree's: git keeps CRLF where it stored some."""
        self._git("read-tree", "--empty")
        known = [
            (one.before, one.path) for one in files if one.before and one.before[0] in (FILE, EXECUTABLE)
        ]
        lines = (b"%b %b\t%b\0" % (mode, oid.hex().encode(), path) for (mode, oid), path in known)
        self._git("update-index", "-z", "--index-info", data=b"".join(lines))
        names = b"".join(one.path + b"\0" for one in files)
        self._git("update-index", "--add", "-z", "--stdin", data=names)
        listed = self._git("ls-files", "-s", "-z").split(b"\0")[:-1]
        pairs = (line.partition(b"\t") for line in listed)
        return {path: bytes.fromhex(info.split(b" ")[1].decode()) for info, _, path in pairs}

    def _hash_alone(self, one: _Taken) -> bytes:
        path = os.fsdecode(one.path)
        try:
            answer = self._git("hash-object", "-w", "--stdin", f"--path={path}", data=one.read())
            return bytes.fromhex(answer.decode().strip())
        except GitFailed as err:
            self.notes.append(f"{path!a} was stored as it is: {(err.details or str(err)).splitlines()[-1]}")
            return self._store(one)

    def _materialise(self, one: _Taken) -> bool:
        """Put a file at its path in the scratch work tree; False where a .gitattributes stands in its way."""
        path = self._work_tree() + b"/" + one.path
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                self._pour(one, file)
        except (FileExistsError, NotADirectoryError):
            return False
        except OSError as err:
            if err.errno != errno.ENAMETOOLONG:
                raise
            return False
        return True

    def _pour(self, one: _Taken, to: BinaryIO) -> None:
        if one.data is not None or one.scratch is None:
            to.write(one.read())
            return
        with open(one.scratch, "rb") as file:
            shutil.copyfileobj(file, to)

    def _write_rules(self) -> None:
        for directory, oid in self._rules.items():
            place = os.path.join(self._work_tree(), directory)
            os.makedirs(place, exist_ok=True)
            with suppress(IsADirectoryError), open(os.path.join(place, _RULES), "wb") as file:
                file.write(self._repo.read_blob(oid.hex()))

    def _read_attributes(self) -> dict[bytes, dict[str, str]]:
        names = b"".join(one.path + b"\0" for one in self._taken)
        words = self._git("check-attr", "-z", "--stdin", *_ATTRIBUTES, data=names).split(b"\0")
        found: dict[bytes, dict[str, str]] = {one.path: {} for one in self._taken}
        for path, name, value in zip(words[::3], words[1::3], words[2::3], strict=False):
            found[path][name.decode()] = os.fsdecode(value)
        return found

    def _git(self, *args: str, data: bytes = b"") -> bytes:
        work_tree = os.fsdecode(self._work_tree())
        off = [
            (f"filter.{name}.{key}", value)
            for name in self._settings.filters
            for key, value in (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
        ]
        environment = config_environment(
            [
                *off,
                ("core.hooksPath", "/dev/null"),
                ("core.fsmonitor", "false"),
                ("core.splitIndex", "false"),
                ("core.safecrlf", "false"),  # refusing bytes would lose them
                ("core.fsync", "loose-object"),
            ]
        )
        environment |= {"GIT_WORK_TREE": work_tree, "GIT_INDEX_FILE": f"{self._place()}/index"}
        return git(args, git_dir=self._repo.git_dir, cwd=work_tree, input=data, env=environment)

    def _work_tree(self) -> bytes:
        path = os.fsencode(self._place()) + b"/tree"
        os.makedirs(path, exist_ok=True)
        return path

    def _place(self) -> str:
        if self._scratch is None:
            self._scratch = Scratch(self._beside)
        return self._scratch.path
