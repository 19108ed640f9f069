"""Judge what a resolver left, believing nothing that it says. Pure: trees in, a verdict out.

A proposal is taken when all of this holds:

- each conflicted path was decided: changed against the automatic merge, or declared as right as it lies;
- nothing else changed but declared paths, and a declared change takes back no change of either side (what
  one of them changed may move to another declared path);
- no conflict marker is left that the three versions lacked;
- every line of the automatic merge outside its marker blocks is still there, in order (more may come in);
- where there are no blocks (binary files, deletions, renames) the result is one side's version, or its
  absence where a side lacks it, or a declared new one; of a rename in two directions one side's paths stay;
- modes, symlinks and submodules are one of the sides'.

Whether the result works is for the gate to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from overlayrun.model import TreeId
from overlayrun.reconcile.paths import entry_at
from overlayrun.store.commits import printable
from overlayrun.store.compare import Change, Objects, changed_paths
from overlayrun.store.merger import Conflict, Merged
from overlayrun.store.trees import EXECUTABLE, FILE, Entry

# Where a block of git's begins or ends: the label after the arrows is the id of what was merged.
_EDGE: Final = re.compile(rb"(<+|>+) [0-9a-f]{40}(?=[:\r]|$)")
_AFTER: Final = (b" ", b"\r", b"")
# What may be a marker in any file; seven of `=` alone, for longer rows underline headings.
_MARKER: Final = re.compile(rb"(?:<{7,}|\|{7,}|>{7,})(?: .*)?|={7}")
# Kinds of conflict whose message names several paths that belong together.
_TIES: Final = re.compile(r"CONFLICT \((?:rename|file|directory|distinct|implicit)")
# What git appends to the name of a file that it had to put elsewhere.
_SET_ASIDE: Final = re.compile(rb"~[0-9a-f]{40}(?:_\d+)?$")
_OURS: Final = 2
_THEIRS: Final = 3


@dataclass(frozen=True, slots=True)
class Sides:
    """Trees of the three versions that were merged."""

    base: TreeId
    ours: TreeId
    theirs: TreeId


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a resolver left. declared: paths that it says it means; one that ends in `/` covers all below."""

    tree: TreeId
    declared: tuple[bytes, ...] = ()

    def declares(self, path: bytes) -> bool:
        """Whether it names a path."""
        return any(path == name or (name[-1:] == b"/" and path.startswith(name)) for name in self.declared)


@dataclass(frozen=True, slots=True)
class Verdict:
    """refused: why, None where it is taken. beyond: paths it changed that were not in conflict."""

    refused: str | None
    beyond: tuple[bytes, ...] = ()


def judge(objects: Objects, merged: Merged, sides: Sides, proposal: Proposal) -> Verdict:
    """Say whether a proposal is a resolution of `merged`; the first fault found is the reason."""
    court = _Court(objects, merged, sides, proposal)
    refused = next(court.faults(), None)
    return Verdict(refused, () if refused else tuple(sorted(court.changes.keys() - court.conflicted.keys())))


def lines_of(data: bytes) -> list[bytes]:
    """Lines without their ends; a last line need not have one."""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


@dataclass(frozen=True, slots=True)
class Marked:
    """A file with conflict markers: lines outside its blocks, and the marker lines themselves."""

    outside: list[bytes]
    markers: frozenset[bytes]


def read_blocks(data: bytes) -> Marked | None:
    """Blocks that git's merge left in a file; None where it has none."""
    outside: list[bytes] = []
    markers: set[bytes] = set()
    size = 0
    for line in lines_of(data):
        edge = _EDGE.match(line)
        if size:
            if line[size:][:1] in _AFTER and line[:size] in (b"=" * size, b"|" * size):
                markers.add(line)
            elif edge and edge[1] == b">" * size:
                markers.add(line)
                size = 0
        elif edge and edge[1][:1] == b"<":
            markers.add(line)
            size = len(edge[1])
        else:
            outside.append(line)
    return Marked(outside, frozenset(markers)) if markers and not size else None


def first_missing(wanted: Sequence[bytes], lines: Sequence[bytes]) -> bytes | None:
    """The first of `wanted` that `lines` lack; they must come in the same order, others may stand between."""
    rest = iter(lines)
    return next((line for line in wanted if line not in rest), None)


class _Court:
    """One case: who may have changed what."""

    def __init__(self, objects: Objects, merged: Merged, sides: Sides, proposal: Proposal) -> None:
        self.objects = objects
        self.merged = merged
        self.sides = sides
        self.proposal = proposal
        # One without a stage is about the name alone; where there is a file, that was merged.
        self.conflicted = {
            conflict.path: conflict
            for conflict in merged.conflicts
            if conflict.stages or entry_at(objects, merged.tree, conflict.path) is None
        }
        changes = changed_paths(objects, merged.tree, proposal.tree)
        self.changes = {change.path: change for change in changes}
        self.groups = list(self._groups())
        self.tied = {conflict.path: group for group in self.groups for conflict in group}

    def faults(self) -> Iterator[str]:
        if not self.changes and not any(map(self.proposal.declares, self.conflicted)):
            return iter(("it changed nothing",))
        return chain.from_iterable(
            chain(
                (self._elsewhere(change) for change in self.changes.values()),
                (self._conflict(conflict) for conflict in self.conflicted.values()),
                (self._group(group) for group in self.groups),
            )
        )

    def _elsewhere(self, change: Change) -> Iterator[str]:
        """Faults of a change outside the conflict."""
        if change.path in self.conflicted:
            return
        name = shown(change.path)
        if not self.proposal.declares(change.path):
            yield f"it changed {name}, which is neither in conflict nor declared"
        if self._takes_back(change):
            yield f"it takes back what was changed in {name}"
        if change.after is None:
            return
        modes = {FILE} if change.before is None else {change.before[0]}
        if change.after[0] not in modes & {FILE, EXECUTABLE}:
            yield f"it changed what kind of file {name} is"
        elif self._markers(change.after) - self._markers(change.before):
            yield f"conflict markers are left in {name}"

    def _takes_back(self, change: Change) -> bool:
        """Whether a declared change puts an older version back, or deletes what a side changed."""
        trees = (self.sides.base, self.sides.ours, self.sides.theirs)
        base, *both = (entry_at(self.objects, tree, change.path) for tree in trees)
        if change.after is not None:
            return change.after in (base, *both)
        is_moved = any(change.before == other.after for other in self.changes.values() if not other.before)
        return change.before != base and not is_moved

    def _conflict(self, conflict: Conflict) -> Iterator[str]:
        """Faults of one conflicted path."""
        before, after = (
            entry_at(self.objects, tree, conflict.path) for tree in (self.merged.tree, self.proposal.tree)
        )
        marked = read_blocks(self._content(before))
        if marked is None:
            return self._plain(conflict, before, after)
        return self._text(conflict, marked, before, after)

    def _text(
        self, conflict: Conflict, marked: Marked, before: Entry | None, after: Entry | None
    ) -> Iterator[str]:
        """Faults of a path whose automatic merge has marker blocks."""
        name, versions = shown(conflict.path), _versions(conflict)
        if after is None:
            if None not in (versions[_OURS], versions[_THEIRS]):
                yield f"it deleted {name}, which both sides have"
            return
        # What only one side changed of the mode was merged; two that added the file may differ.
        allowed = (before,) if versions[1] else (before, versions[_OURS], versions[_THEIRS])
        if after[0] not in {entry[0] for entry in allowed if entry} & {FILE, EXECUTABLE}:
            yield f"it changed what kind of file {name} is"
            return
        if self._markers(after, marked.markers) - self._known_markers(versions, marked.markers):
            yield f"conflict markers are left in {name}"
        missing = first_missing(marked.outside, lines_of(self._content(after)))
        if missing is not None:
            yield f"it changed {name} outside the conflict: this line is gone: {shown(missing[:120])}"

    def _plain(self, conflict: Conflict, before: Entry | None, after: Entry | None) -> Iterator[str]:
        """Faults of a path without blocks: a binary file, a deletion, a rename, a symlink, a submodule."""
        name, versions = shown(conflict.path), _versions(conflict)
        sides = (versions[_OURS], versions[_THEIRS], *self._set_aside(conflict))
        if after == before or after in sides:
            return
        if after is None:
            yield f"it deleted {name}, which both sides have"
        elif not self.proposal.declares(conflict.path):
            yield f"{name} is neither side's version, and it is not declared"
        elif after[0] not in {entry[0] for entry in sides if entry} & {FILE, EXECUTABLE}:
            yield f"it changed what kind of file {name} is"
        elif self._markers(after) - self._known_markers(versions):
            yield f"conflict markers are left in {name}"

    def _set_aside(self, conflict: Conflict) -> Iterator[Entry]:
        """Versions that git put under another name, and that belong here as well."""
        for other in self.tied[conflict.path]:
            if not conflict.stages or _SET_ASIDE.sub(b"", other.path) == conflict.path != other.path:
                yield from filter(None, (_versions(other)[side] for side in (_OURS, _THEIRS)))

    def _group(self, group: list[Conflict]) -> Iterator[str]:
        """Faults of paths that one message of git's ties together."""
        paths = [conflict.path for conflict in group]
        names = ", ".join(map(shown, paths))
        if not any(path in self.changes or self.proposal.declares(path) for path in paths):
            yield f"it left {names} as it lay, and did not declare it"
        there = {path for path in paths if entry_at(self.objects, self.proposal.tree, path)}
        if not self._is_complete(group, there):
            yield f"neither side's paths are all there: {names}"

    def _is_complete(self, group: list[Conflict], there: set[bytes]) -> bool:
        """Whether nothing was lost with the paths of a group that are not there."""
        if any(not change.before and change.path not in self.conflicted for change in self.changes.values()):
            return True  # it may have moved: each new path is declared
        if not any(_versions(conflict)[1] for conflict in group):
            return bool(there)  # no side removed what a side added: it stands under one of its names
        wanted = ({c.path for c in group if _versions(c)[side]} for side in (_OURS, _THEIRS))
        return any(side <= there for side in wanted)

    def _groups(self) -> Iterator[list[Conflict]]:
        """Conflicts that are tied together by a rename or a clash of names; every other path alone."""
        left = dict(self.conflicted)
        for message in filter(_TIES.match, self.merged.messages):
            group = [left.pop(path) for path in list(left) if _names(message, path)]
            if group:
                yield group
        yield from ([conflict] for conflict in left.values())

    def _known_markers(
        self, versions: Mapping[int, Entry | None], own: frozenset[bytes] = frozenset()
    ) -> Counter[bytes]:
        """As many of each as a union of both sides' changes has."""
        base, ours, theirs = (self._markers(versions[number], own) for number in (1, _OURS, _THEIRS))
        return ours | theirs | (ours + theirs - base)

    def _markers(self, entry: Entry | None, own: frozenset[bytes] = frozenset()) -> Counter[bytes]:
        """Lines of a file that look like markers; own: others that are some."""
        lines = lines_of(self._content(entry))
        return Counter(line for line in lines if _MARKER.fullmatch(line.rstrip(b"\r")) or line in own)

    def _content(self, entry: Entry | None) -> bytes:
        regular = entry is not None and entry[0] in (FILE, EXECUTABLE)
        return self.objects.read_blob(entry[1].hex()) if entry and regular else b""


def _versions(conflict: Conflict) -> dict[int, Entry | None]:
    """Entry of each stage; None where a version has no such path."""
    found: dict[int, Entry | None] = {1: None, _OURS: None, _THEIRS: None}
    return found | {stage.number: (stage.mode, bytes.fromhex(stage.oid)) for stage in conflict.stages}


def _names(message: str, path: bytes) -> bool:
    """Whether a message of git's has a path in it, as words of their own."""
    wanted = _SET_ASIDE.sub(b"", path).decode("utf-8", "replace")  # as the message was read
    words = re.escape(wanted)
    return re.search(rf"(?<![^\s']){words}(?=[\s.,;:~']|$)", message) is not None


def shown(path: bytes) -> str:
    """A path or line as a message shows it."""
    return printable(path.decode("utf-8", "surrogateescape"), one_line=True)
