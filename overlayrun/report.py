"""What a run says of itself: a header before, a summary after; one line a fact, data from outside escaped."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlayrun.model import RunOptions
    from overlayrun.prepare import Prepared
    from overlayrun.snapshot import Snapshot
    from overlayrun.store.repo import DiffStat
    from overlayrun.workspace.record import Record

_SHOWN = 5  # left-out paths
_NEXT = ("diff", "merge", "apply", "rm")


def printable(text: str) -> str:
    """Text from outside, safe for a terminal: control and bidirectional characters as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def header(prepared: Prepared, options: RunOptions) -> Iterator[str]:
    """First lines of a run: branch, base, what came along, backend, limits."""
    record = prepared.record
    kind = "throwaway" if record.throwaway else f"branch {record.branch}"
    state = "resumed" if prepared.resumed else "new"
    base = record.base[:10] if record.base else "the empty tree"
    yield f"{kind} ({state}) from {base}" + (f", for {record.target}" if record.target else "")
    if not prepared.resumed:
        yield (
            f"taken along: {_count(prepared.uncommitted, 'uncommitted change')}, "
            f"{_count(len(record.carried), 'ignored path')}"
        )
    home = "private" if record.home == "private" else "copy-on-write"
    yield f"{record.backend} at {printable(record.root)}; HOME {home}; {_limits(options)}"
    for note in prepared.notes:
        yield printable(note)


def _limits(options: RunOptions) -> str:
    limits = [
        f"{name} {value:g} s"
        for name, value in (("timeout", options.timeout), ("idle timeout", options.idle_timeout))
        if value is not None
    ]
    return ", ".join(limits) or "no time limit"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def summary(taken: Snapshot, stat: DiffStat) -> Iterator[str]:
    """Last lines of a run: size of the change, snapshot, what was left out."""
    yield f"{_changed(stat)}; snapshot {taken.number}" + (f" ({taken.tip[:10]})" if taken.tip else "")
    yield from left_out(taken)
    for note in taken.notes:
        yield printable(note)


def next_commands(record: Record) -> str:
    """What to type next."""
    into = {} if record.target else {"merge": " --into BRANCH"}
    return "next: overlayrun " + " | ".join(f"{verb} {record.branch}{into.get(verb, '')}" for verb in _NEXT)


def _changed(stat: DiffStat) -> str:
    return f"{_count(stat.files, 'file')} changed, +{stat.insertions} -{stat.deletions} lines"


def throwaway_summary(taken: Snapshot) -> Iterator[str]:
    """What a throwaway run would have changed."""
    counts = taken.changes
    yield f"would have changed: {counts.added} added, {counts.modified} modified, {counts.deleted} deleted"
    yield from left_out(taken)
    yield "nothing was kept (--keep makes a branch of it, --apply brings it into your tree)"


def left_out(taken: Snapshot) -> Iterator[str]:
    """Paths that the snapshot does not hold, with the reasons."""
    for item in taken.left_out[:_SHOWN]:
        name = item.path.decode("utf-8", "surrogateescape")
        yield f"left out: {printable(name)}: {item.reason.value}"
    if len(taken.left_out) > _SHOWN:
        yield f"left out: {len(taken.left_out) - _SHOWN} more"
    if taken.ignored:
        yield f"ignored by git's rules: {taken.ignored}"
