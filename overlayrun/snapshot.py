"""Take a snapshot: what the upper changed becomes trees, commits and refs of the user's repository."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from overlayrun.account import Account, Session
from overlayrun.chain import Link, append, is_half_moved, tells, told_in
from overlayrun.collector import Collector, LeftOut, LeftOutReason, Limits, show_bytes
from overlayrun.errors import SnapshotError
from overlayrun.layers.upper import serve, serve_tree
from overlayrun.layers.walk import walk_upper
from overlayrun.layers.wire import KEPT, LimitReached
from overlayrun.model import EMPTY_TREE, SnapshotReason, TreeId
from overlayrun.reader import Reader
from overlayrun.snapshot_job import Snapshot, SnapshotJob
from overlayrun.store.convert import Converter
from overlayrun.store.hashes import HashCache, load_hashes, save_hashes
from overlayrun.store.ignore import base_rules
from overlayrun.store.importer import Imported, import_head
from overlayrun.store.pack import ObjectWriter
from overlayrun.store.refs import snapshots_ref
from overlayrun.store.repo import Repo, SnapshotInfo
from overlayrun.store.settings import Settings, read_settings
from overlayrun.store.trees import ChangeCount, count_changes
from overlayrun.survey import Survey
from overlayrun.wording import Occasion, digest

__all__ = ["LeftOut", "LeftOutReason", "Limits", "Snapshot", "SnapshotJob", "take_snapshot"]

# The kernel stamps files by a clock that ticks every 1 to 10 ms; two writes within a tick look like one.
_CLOCK_MARGIN: Final = 20_000_000
# A page that is mapped shared and already dirty takes stores without a new stamp until it is written back,
# after 30 s
# by default (vm.dirty_expire_centisecs) and 5 more. The last snapshot of a run must not miss such a store.
_MAPPED_MARGIN: Final = 60_000_000_000


@dataclass(frozen=True, slots=True)
class _Readers:
    """Who looks into the upper. survey: of a whole tree."""

    reader: Reader
    survey: Survey | None


@dataclass(frozen=True, slots=True)
class _Scene:
    """What holds before the walk."""

    repo: Repo
    settings: Settings
    previous: SnapshotInfo | None
    start: TreeId
    imported: Imported


@dataclass(frozen=True, slots=True)
class _Found:
    """What the walk gave."""

    tree: TreeId
    changes: ChangeCount
    left_out: tuple[LeftOut, ...]
    ignored: int
    raced: int
    largest: int
    cache: HashCache
    notes: tuple[str, ...]


def take_snapshot(job: SnapshotJob, *, reason: SnapshotReason, message: str | Account | None) -> Snapshot:
    """Commit the workspace's state to its snapshot chain and move its branch.

    message: subject and body of the commits, or the agent's account of the step; without either, what the
    session tells, else a summary. Nothing new since the last snapshot makes none, unless it is asked for with
    a message, recovers from a kill, or a turn is over that changed something: then the branch tells the
    agent's last words. The branch moves only from
    where the last snapshot left it, and not while the user has it checked out; the chain gets the snapshot
    all the same. Every object and ref is flushed.
    Raises SnapshotError, StoreError (RefMoved: another snapshot of this workspace was taken meanwhile).
    """
    # The reader gets ready while we look around; it reads nothing yet.
    with _reading(job, reason) as readers:
        scene = _look_around(job)
        text, account = (None, message) if isinstance(message, Account) else (message, None)
        return _take(job, scene, readers, Occasion(reason, text, account, job.session, job.task))


def _take(job: SnapshotJob, scene: _Scene, readers: _Readers, occasion: Occasion) -> Snapshot:
    with ObjectWriter(scene.repo.objects) as writer:
        try:
            found = _collect(job, scene, writer, readers, occasion.reason)
            if _is_unchanged(job, scene, found, occasion):
                return _unchanged(job, scene, found)
            return _record(job, scene, found, writer, occasion)
        except OSError as err:
            raise SnapshotError("the snapshot could not be written", details=str(err)) from err


def preview(job: SnapshotJob) -> Snapshot:
    """What a snapshot would hold, with nothing written: the tree's id and the counts, for a throwaway."""
    reason = SnapshotReason.REQUEST
    with _reading(job, reason) as readers:
        scene = _look_around(job)
        with ObjectWriter(scene.repo.objects) as writer:
            return _unchanged(job, scene, _collect(job, scene, writer, readers, reason))


@contextmanager
def _reading(job: SnapshotJob, reason: SnapshotReason) -> Iterator[_Readers]:
    """A reader of the upper, for as long as the limits say; what reaches a limit says how to go beyond it."""
    limits = job.limits
    seconds = limits.seconds
    if reason is SnapshotReason.INTERVAL:
        seconds = min(seconds, limits.interval_seconds)
    try:
        work = serve if job.index is None else serve_tree
        end = None if limits.force_large else seconds
        with ExitStack() as stack:
            survey = stack.enter_context(Survey(job.upper, job.index, end)) if job.index else None
            yield _Readers(stack.enter_context(Reader(job.upper, end, work)), survey)
    except LimitReached as err:
        raise SnapshotError(
            f"{err}; {KEPT}",
            hint=f"add what is not source to .gitignore, or take it all: {_force(job)}",
        ) from err


def _force(job: SnapshotJob) -> str:
    return f"overlayrun snapshot {shlex.quote(job.branch)} --force-large"


def _look_around(job: SnapshotJob) -> _Scene:
    repo = Repo(job.git_dir)
    latest = repo.ref(snapshots_ref(job.workspace_id))
    previous = repo.snapshot(latest) if latest else None
    imported = import_head(
        repo,
        job.agent_git,
        job.run_inside,
        base=job.base,
        known=previous.head if previous else None,
        carried=job.carried,
    )
    start = repo.tree_of(job.dirty or job.base)
    return _Scene(repo, read_settings(job.git_dir), previous, start, imported)


def _collect(
    job: SnapshotJob, scene: _Scene, writer: ObjectWriter, readers: _Readers, reason: SnapshotReason
) -> _Found:
    repo, settings = scene.repo, scene.settings
    rules = hashlib.sha256(repr((scene.start, settings)).encode()).hexdigest()
    previous = scene.previous.commit if scene.previous else None
    known = load_hashes(job.hashes, rules, previous)
    for oid in known.objects():
        writer.trust(oid)
    base = _raw(repo.tree_of(job.base))
    final = reason in (SnapshotReason.EXIT, SnapshotReason.RECOVERY)
    started = time.time_ns()
    with Converter(repo, settings, writer, beside=job.hashes, run_inside=job.run_inside) as converter:
        collector = Collector(
            repo=repo,
            writer=writer,
            converter=converter,
            known=known,
            margin=_MAPPED_MARGIN if final else _CLOCK_MARGIN,
            carried=frozenset(job.carried),
            limits=job.limits,
            file_mode=settings.file_mode,
            found=HashCache(rules, started=started),
            made=readers.survey.made(repo.read_tree, base, _raw(scene.start)) if readers.survey else None,
        )
        head = scene.imported.head
        top = partial(
            collector.top, _raw(scene.start), _raw(repo.tree_of(head)), base_rules(settings.excludes)
        )
        walk_upper(readers.reader.channel, top, collector, largest=job.limits.largest)
        readers.reader.end()
        tree = collector.finish()
    return _Found(
        TreeId((tree or writer.add(b"tree", b"")).hex()),
        count_changes(collector.read_tree, _raw(scene.start), tree),
        tuple(collector.left_out),
        collector.ignored,
        collector.raced,
        collector.largest,
        collector.found,
        tuple(converter.notes),
    )


def _raw(tree: TreeId) -> bytes | None:
    return None if tree == EMPTY_TREE else bytes.fromhex(tree)


def _is_unchanged(job: SnapshotJob, scene: _Scene, found: _Found, occasion: Occasion) -> bool:
    reason, message = occasion.reason, occasion.message
    if reason is SnapshotReason.RECOVERY or (reason is SnapshotReason.REQUEST and message is not None):
        return False
    if job.index is not None and scene.previous is None and not (found.left_out or found.ignored):
        return (scene.start, None) == (found.tree, scene.imported.head)  # as it was made
    if reason is SnapshotReason.EXIT and (is_half_moved(job) or not _says(scene, occasion)):
        return False
    last = (scene.previous.tree, scene.previous.head) if scene.previous else (scene.start, None)
    return last == (found.tree, scene.imported.head) and not _is_last_word(scene, occasion)


def _says(scene: _Scene, occasion: Occasion) -> bool:
    """Whether there is a last snapshot, the branch stands at it, and it has the words this one would have."""
    previous, message = scene.previous, occasion.message
    if previous is None or previous.written != previous.tip:
        return False
    if occasion.session != Session():
        return tells(scene.repo, previous, occasion)
    return message is None or previous.subject == message.partition("\n")[0].strip()


def _is_last_word(scene: _Scene, occasion: Occasion) -> bool:
    """Whether an agent closes the turn in which the last snapshot was made, with words the branch lacks."""
    previous, account = scene.previous, occasion.account
    if previous is None or account is None or not account.closes_turn:
        return False
    told = told_in(scene.repo, previous)
    # A prompt that is not the session's is a sub-agent's, who worked for this turn.
    in_turn = told and told not in map(digest, occasion.known.prompts[:-1])
    return bool(in_turn) and occasion.session.owns(account) and not tells(scene.repo, previous, occasion)


def _record(
    job: SnapshotJob, scene: _Scene, found: _Found, writer: ObjectWriter, occasion: Occasion
) -> Snapshot:
    link = Link(
        job,
        scene.repo,
        scene.settings.identity,
        scene.previous,
        scene.imported.head,
        found.tree,
        found.changes,
    )
    added = append(link, writer, occasion)
    found.cache.commit = added.commit
    save_hashes(job.hashes, found.cache)
    return Snapshot(
        commit=added.commit,
        tip=added.tip,
        tree=found.tree,
        number=added.number,
        unchanged=False,
        changes=found.changes,
        start_tree=scene.start,
        left_out=found.left_out,
        ignored=found.ignored,
        notes=_notes(job, scene, found) + ((added.note,) if added.note else ()),
    )


def _unchanged(job: SnapshotJob, scene: _Scene, found: _Found) -> Snapshot:
    last = scene.previous
    if last:
        found.cache.commit = last.commit
        save_hashes(job.hashes, found.cache)
    return Snapshot(
        commit=last.commit if last else None,
        tip=last.tip if last else job.base,
        tree=found.tree,
        number=last.number if last else 0,
        unchanged=True,
        changes=found.changes,
        start_tree=scene.start,
        left_out=found.left_out,
        ignored=found.ignored,
        notes=_notes(job, scene, found),
    )


def _notes(job: SnapshotJob, scene: _Scene, found: _Found) -> tuple[str, ...]:
    notes = [*([scene.imported.note] if scene.imported.note else []), *found.notes]
    if found.raced:
        notes.append(f"{found.raced} entries changed while they were read; the next snapshot takes them")
    if found.largest:
        notes.append(
            f"a file has {show_bytes(found.largest)}, the limit is {show_bytes(job.limits.file_bytes)};"
            f" to take it: {_force(job)}"
        )
    return tuple(notes)
