"""Merge the merge commits of real repositories again, by overlayrun's engine; see scripts/replay."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Final

from overlayrun.errors import StoreError
from overlayrun.model import CommitId
from overlayrun.store.merger import MergeEngine
from overlayrun.store.repo import Repo

_WHAT: Final = """\
Merge the merge commits of real repositories again, by overlayrun's engine, and compare
with what people committed. Takes the last merges of two parents that HEAD reaches.
"""
_RESULTS: Final = """\
results:
  clean, same    no conflict, and the tree that was committed
  clean, other   no conflict, another tree: whoever committed it changed something more
  conflict       at least one path is left to resolve
  not merged     git could not: objects are missing, or there is no common history

The repositories are only read: merges go into scratch stores that borrow their objects.
"""
KINDS: Final = ("clean, same", "clean, other", "conflict", "not merged")
Row = dict[str, Any]


def main() -> int:
    """Replay, show the table; 1 where a repository can't be read."""
    options = _options()
    reports = []
    for repository in options.repository:
        try:
            reports.append(_report(repository, options.start, options.last))
        except subprocess.CalledProcessError as err:
            sys.stderr.write(f"{os.fsdecode(err.stderr).strip() or err}\n")
            return 1
    if options.json:
        json.dump({"schema": 1, "repositories": reports}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(_table(reports))
    return 0


def _options() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("replay", description=_WHAT, epilog=_RESULTS, formatter_class=raw)
    parser.add_argument("repository", metavar="REPOSITORY", nargs="+", help="with a working tree or bare")
    parser.add_argument("--last", metavar="N", type=_positive, default=500, help="merges (default: 500)")
    parser.add_argument("--from", metavar="REVISION", dest="start", default="HEAD", help="instead of HEAD")
    parser.add_argument("--json", action="store_true", help="print every merge, as JSON")
    return parser.parse_args()


def _report(repository: str, start: str, last: int) -> Row:
    """Counts and rows of one repository. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="overlayrun-replay-") as scratch:
        store = _borrow(repository, f"{scratch}/store.git")
        merges = _list_merges(store, repository, start, last)
        began = time.perf_counter()
        rows = list(_with_progress(_replay(store, merges), len(merges)))
        seconds = time.perf_counter() - began
    name = os.path.basename(os.path.abspath(repository).removesuffix("/.git").removesuffix(".git"))
    paths = sum(len(row.get("conflicts", ())) for row in rows)
    counts = {kind: sum(row["result"] == kind for row in rows) for kind in KINDS}
    count = {"merges": len(rows), **counts, "conflicted paths": paths, "seconds": seconds}
    return {"repository": name, **count, "rows": rows}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _git(directory: str, *words: str) -> str:
    command = ["git", "-C", directory, *words]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return os.fsdecode(done.stdout).strip()


def _borrow(repository: str, store: str) -> str:
    """Make an empty repository that reads the objects of another one."""
    common = _git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir")
    _git(os.path.dirname(store), "init", "--quiet", "--bare", store)
    with open(f"{store}/objects/info/alternates", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{common}/objects\n")
    return store


def _list_merges(store: str, repository: str, start: str, last: int) -> list[list[str]]:
    """Merge, first parent, second parent; newest first."""
    tip = _git(repository, "rev-parse", "--verify", "--end-of-options", f"{start}^{{commit}}")
    exactly_two = ["--min-parents=2", "--max-parents=2", f"--max-count={last}"]
    listed = _git(store, "rev-list", "--parents", *exactly_two, tip)
    return [line.split() for line in listed.splitlines()]


def _replay(store: str, merges: list[list[str]]) -> Iterator[Row]:
    """Merge again, oldest first; a new engine whenever the attributes of the target are others."""
    repo = Repo(store)
    engine: MergeEngine | None = None
    try:
        for merge, target, source in reversed(merges):
            began = time.perf_counter()
            engine = _fitting(engine, store, CommitId(target))
            row = _merge(engine, CommitId(target), CommitId(source), repo.tree_of(CommitId(merge)))
            yield {"commit": merge, **row, "seconds": time.perf_counter() - began}
    finally:
        if engine:
            engine.close()


def _fitting(engine: MergeEngine | None, store: str, target: CommitId) -> MergeEngine:
    if engine:
        if engine.fits(target):
            return engine
        engine.close()
    return MergeEngine(store, target)


def _merge(engine: MergeEngine, target: CommitId, source: CommitId, committed: str) -> Row:
    try:
        merged = engine.merge(target, source)
    except StoreError as err:
        return {"result": "not merged", "why": err.brief, "details": err.details}
    if merged.is_clean:
        return {"result": "clean, same" if merged.tree == committed else "clean, other"}
    paths = [{"path": os.fsdecode(one.path), "kind": one.kind} for one in merged.conflicts if one.stages]
    return {"result": "conflict", "conflicts": paths}


def _with_progress(rows: Iterator[Row], total: int) -> Iterator[Row]:
    """Count on a terminal's last line while they come."""
    shown = sys.stderr.isatty()
    for number, row in enumerate(rows, 1):
        if shown and (number % 10 == 0 or number == total):
            sys.stderr.write(f"\r{number} of {total} merges")
            sys.stderr.flush()
        yield row
    if shown and total:
        sys.stderr.write("\r\033[K")


def _table(reports: list[Row]) -> str:
    """Markdown, for a terminal and for a page."""
    heads = ("repository", "merges", *KINDS, "conflicted paths", "seconds")
    lines = [heads, *(tuple(_cell(report[head]) for head in heads) for report in reports)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    shown = [
        " | ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines
    ]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "".join(
        f"{line}\n" for line in (f"| {shown[0]} |", f"|{rule}|", *(f"| {row} |" for row in shown[1:]))
    )


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
