"""Git's ignore rules over byte paths, from patterns handed in.

pathspec gives a verdict on whole paths for one list of patterns; git decides directory by directory (nothing
below
an ignored directory can be taken back), over layered files, and names are bytes. So patterns are translated
here.
Source: gitignore(5), wildmatch.c's rules as its manual states them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
_NEVER: Final = rb"(?!)"
_SPECIAL: Final = re.compile(rb"[*?\[\\]")
_DIRS, _REST, _STAR, _SLASH = (object() for _ in range(4))
_ASCII: Final = frozenset(range(128))
_CLASSES: Final = {
    b"alnum": frozenset(c for c in _ASCII if chr(c).isalnum()),
    b"alpha": frozenset(c for c in _ASCII if chr(c).isalpha()),
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset({*range(32), 127}),
    b"digit": frozenset(b"0123456789"),
    b"graph": frozenset(range(33, 127)),
    b"lower": frozenset(c for c in _ASCII if chr(c).islower()),
    b"print": frozenset(range(32, 127)),
    b"punct": frozenset(c for c in range(33, 127) if not chr(c).isalnum()),
    b"space": frozenset(b" \t\n\r"),
    b"upper": frozenset(c for c in _ASCII if chr(c).isupper()),
    b"xdigit": frozenset(b"0123456789abcdefABCDEF"),
}


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[bytes]
    negative: bool
    directories_only: bool
    by_name: bool  # no slash in it: matches the last part of a path


@dataclass(frozen=True, slots=True)
class _File:
    """Patterns of one file, last one first, and one regex a kind that says whether any could match."""

    patterns: tuple[_Pattern, ...]
    any_name: re.Pattern[bytes]
    any_path: re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """Pattern files in force in one directory, the strongest first.

    Each stands with the length of the prefix (its directory and a slash) that its patterns don't see.
    """

    files: tuple[tuple[int, _File], ...] = ()

    def within(self, directory: bytes, content: bytes) -> IgnoreRules:
        """Add the .gitignore of `directory` (root-relative, b"" for the root); it wins over those above."""
        parsed = _parse(content)
        if not parsed.patterns:
            return self
        return IgnoreRules(((len(directory) + 1 if directory else 0, parsed), *self.files))

    def is_ignored(self, path: bytes, *, directory: bool) -> bool:
        """Whether the last matching pattern of the strongest file excludes `path`; parents do not count."""
        name = path[path.rfind(b"/") + 1 :]
        for prefix, file in self.files:
            inner = path[prefix:]
            if not (file.any_name.fullmatch(name) or file.any_path.fullmatch(inner)):
                continue
            for pattern in file.patterns:
                subject = name if pattern.by_name else inner
                if (directory or not pattern.directories_only) and pattern.regex.fullmatch(subject):
                    return not pattern.negative
        return False


def base_rules(contents: Sequence[bytes]) -> IgnoreRules:
    """Rules that hold everywhere; contents: weakest first (core.excludesFile, then info/exclude)."""
    rules = IgnoreRules()
    for content in contents:
        rules = rules.within(b"", content)
    return rules


@lru_cache(maxsize=256)
def _parse(content: bytes) -> _File:
    lines = content.removeprefix(_BOM).split(b"\n")
    patterns = [p for p in (_parse_line(line) for line in lines) if p]
    patterns.reverse()
    return _File(
        tuple(patterns),
        _any(p.regex.pattern for p in patterns if p.by_name),
        _any(p.regex.pattern for p in patterns if not p.by_name),
    )


def _any(sources: Iterable[bytes]) -> re.Pattern[bytes]:
    joined = b"|".join(b"(?:%b)" % source for source in sources)
    return re.compile(joined or _NEVER, re.DOTALL)


def _parse_line(line: bytes) -> _Pattern | None:
    if line.startswith(b"#"):
        return None
    line = _without_trailing_spaces(line.removesuffix(b"\r").split(b"\0")[0])
    negative = line.startswith(b"!")
    line = line[negative:]
    directories_only = line.endswith(b"/")
    line = line[: len(line) - directories_only]
    if not line:
        return None
    by_name = b"/" not in line
    source = _translate(line.removeprefix(b"/"), by_name=by_name)
    return _Pattern(re.compile(source, re.DOTALL), negative, directories_only, by_name)


def _without_trailing_spaces(line: bytes) -> bytes:
    """Cut trailing spaces, but none that a backslash protects."""
    end, at = 0, 0
    while at < len(line):
        if line[at] == ord("\\"):
            if at + 1 == len(line):
                return line
            at += 1
            end = at + 1
        elif line[at] != ord(" "):
            end = at + 1
        at += 1
    return line[:end]


def _translate(glob: bytes, *, by_name: bool) -> bytes:
    """Expression for fullmatch; atomic where a star can't gain by going back, to keep time linear."""
    tokens = _tokens(glob, by_name=by_name)
    if tokens is None:
        return _NEVER
    parts: list[list[object]] = [[]]
    for token in tokens:
        if token is _DIRS:
            parts.append([])
        else:
            parts[-1].append(token)
    source = _segments(parts[0])
    for part in parts[1:-1]:
        source += rb"(?>(?:[^/]*/)*?%b)" % _segments(part)
    if len(parts) > 1:
        source += rb"(?:[^/]*/)*%b" % _segments(parts[-1])
    return source


def _segments(tokens: list[object]) -> bytes:
    """Expression of tokens between two `**/`."""
    groups: list[list[object]] = [[]]
    for token in tokens:
        if token is _STAR:
            groups.append([])
        else:
            groups[-1].append(token)
    source = _plain(groups[0])
    for group in groups[1:-1]:
        # The first place where the text up to the next star fits is as good as any later one, unless a slash
        # pins it.
        source += (rb"[^/]*%b" if _SLASH in group else rb"(?>[^/]*?%b)") % _plain(group)
    return source + (rb"[^/]*%b" % _plain(groups[-1]) if len(groups) > 1 else b"")


def _plain(tokens: list[object]) -> bytes:
    words = {id(_SLASH): b"/", id(_REST): b".*"}
    return b"".join(token if isinstance(token, bytes) else words[id(token)] for token in tokens)


def _tokens(glob: bytes, *, by_name: bool) -> list[object] | None:
    """Tokens of a glob; None for one that can never match (open bracket, trailing backslash)."""
    tokens: list[object] = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        if char == b"*":
            token, at = _stars(glob, at, by_name=by_name)
        elif char == b"[":
            found = _bracket(glob, at)
            if found is None:
                return None
            token, at = found
        elif char == b"\\":
            if at + 1 == len(glob):
                return None
            token, at = _literal(glob[at + 1 : at + 2]), at + 2
        else:
            token, at = (rb"[^/]" if char == b"?" else _literal(char)), at + 1
        tokens.append(token)
    return tokens


def _literal(char: bytes) -> object:
    return _SLASH if char == b"/" else re.escape(char)


def _stars(glob: bytes, start: int, *, by_name: bool) -> tuple[object, int]:
    end = start
    while glob[end : end + 1] == b"*":
        end += 1
    # Git compares the plain text before the first special character by itself, so a `**` right there counts
    # as first.
    bounded = glob[start - 1 : start] == b"/" or not _SPECIAL.search(glob, 0, start)
    if end - start < 2 or by_name or not bounded:
        return _STAR, end
    if end == len(glob):
        return _REST, end
    for slash in (b"/", b"\\/"):
        if glob.startswith(slash, end):
            return _DIRS, end + len(slash)
    return _STAR, end


def _bracket(glob: bytes, start: int) -> tuple[bytes, int] | None:
    """Expression of a bracket that opens at `start`, and where it ends; None if it is broken."""
    at = start + 1
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    chosen: set[int] = set()
    previous: int | None = None
    first = True
    while first or glob[at : at + 1] != b"]":
        first = False
        step = _bracket_item(glob, at, previous)
        if step is None:
            return None
        members, previous, at = step
        chosen |= members
    allowed = (frozenset(range(1, 256)) - chosen if negated else chosen) - {ord("/")}
    if not allowed:
        return _NEVER, at + 1
    return b"[%b]" % b"".join(rb"\x%02x" % c for c in sorted(allowed)), at + 1


def _bracket_item(
    glob: bytes, at: int, previous: int | None
) -> tuple[frozenset[int] | set[int], int | None, int] | None:
    """Members of one item, the character that could start a range after it, and where it ends."""
    char = glob[at : at + 1]
    if char == b"[" and glob[at + 1 : at + 2] == b":":
        return _bracket_class(glob, at)
    if char == b"-" and previous is not None and glob[at + 1 : at + 2] not in (b"", b"]"):
        high = _escaped(glob, at + 1)
        return high and (set(range(previous, high[0] + 1)), None, high[1])
    one = _escaped(glob, at)
    return one and ({one[0]}, one[0], one[1])


def _escaped(glob: bytes, at: int) -> tuple[int, int] | None:
    at += glob[at : at + 1] == b"\\"
    return (glob[at], at + 1) if at < len(glob) else None


def _bracket_class(glob: bytes, at: int) -> tuple[frozenset[int], int | None, int] | None:
    end = glob.find(b"]", at + 2)
    if end < 0:
        return None
    if end == at + 2 or glob[end - 1 : end] != b":":
        return frozenset(b"["), ord("["), at + 1
    members = _CLASSES.get(glob[at + 2 : end - 1])
    return None if members is None else (members, None, end + 1)
