"""After a kill or a power cut: take the missing snapshot, or rebuild from the last. Nothing is lost."""

from __future__ import annotations

import os
import stat
import time

from overlayrun.errors import OverlayrunError, WorkspaceBusy
from overlayrun.files import flush_disk, identity_of, read_bytes, remove_tree, write_whole
from overlayrun.report import printable
from overlayrun.workspace.flushed import is_torn, note_synced
from overlayrun.workspace.lock import is_locked, lock, unlock
from overlayrun.workspace.record import UNFILLED, Record, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout, WorkspaceLayout


_HALF_WRITTEN: Final = 3600.0  # seconds
_FEW: Final = 3
_INLINE: Final = 160  # bytes that ext4 may keep in the inode, beside the blocks (inline_data)
_MARGIN: Final = 0.1  # seconds; a file is stamped by a coarser clock than ours, of 10 ms at most


def is_interrupted(layout: Layout, record: Record, common_dir: str) -> bool:
    """Whether a run, a fork or a merge came to no end, or the power went; nobody holds the workspace.

    Or its record names another repository than that of `common_dir`, because it was moved or copied since.
    """
    place = layout.workspace(record.id)
    is_moved = record.common_dir != common_dir
    is_half = record.is_open or _is_unfilled(layout, record) or _is_absorbing(place)
    return (
        (is_moved or is_half or is_torn(place, record))
        and not is_locked(place.lock)
        and not is_locked(place.folder_lock)
    )


def _is_unfilled(layout: Layout, record: Record) -> bool:
    """Whether nothing ever ran here, and the upper is not the one that the record means."""
    return record.last_run is None and _inode(layout, record) not in (None, record.inode)


def _is_absorbing(place: WorkspaceLayout) -> bool:
    """Whether a merge began to change the files, and came to no end."""
    return os.path.exists(place.absorbing)


def _inode(layout: Layout, record: Record) -> int | None:
    try:
        return identity_of(layout.workspace(record.id).upper)
    except FileNotFoundError:
        return None


def recover_all(repository: Repository, layout: Layout, tell: Callable[[str], None]) -> None:
    """Recover every interrupted workspace; one that can't be is told of and left as it is."""
    from overlayrun.halfway import settle
    from overlayrun.workspace.catalogue import records

    mend_store(layout, repository.common_dir, tell)
    save_folders(layout, tell)
    settle(layout, repository.common_dir)
    for record in records(layout):
        if not is_interrupted(layout, record, repository.common_dir):
            continue
        try:
            _recover_one(repository, layout, record, tell)
        except WorkspaceBusy:
            continue
        except (OverlayrunError, OSError) as err:  # a full disk, for one
            why = err.brief if isinstance(err, OverlayrunError) else err
            tell(f"branch {record.branch} was interrupted and can't be recovered now: {why}")


def _recover_one(repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    held = lock(layout.workspace(record.id).lock)
    try:
        recover(repository, layout, Record.load(layout.workspace(record.id).record), tell)
    finally:
        unlock(held)


def save_folders(layout: Layout, tell: Callable[[str], None]) -> None:
    """Have what is written in open folders put into snapshots, for whoever looks at branches next."""
    if not is_locked(f"{layout.folders}/lock"):
        return
    from overlayrun.control import ask
    from overlayrun.errors import WorkspaceError

    try:
        answer, _ = ask(layout.folders, "control", {"op": "save"}, wait=0)
    except WorkspaceBusy as err:
        tell(f"what was written in the folders may have no snapshot yet: {err.brief}: {err.hint}")
        return
    except WorkspaceError:  # it begins or ends just now
        return
    for line in answer.get("troubles", ()):
        tell(line)


def mend_store(layout: Layout, common_dir: str, tell: Callable[[str], None]) -> None:
    """Once after each start of the machine: see that nothing torn keeps git from writing it again."""
    now = boot_id().encode()
    try:
        if not os.path.exists(layout.boot):  # nothing of ours was ever written here
            write_whole(layout.boot, now, durable=False)
        if read_bytes(layout.boot) == now:
            return
        from overlayrun.store.torn import put_torn_aside

        count = put_torn_aside(common_dir, layout.torn)
        write_whole(layout.boot, now, durable=False)
    except OSError:  # nobody can write there now, or there is no state yet
        return
    if count:
        tell(f"a power cut tore {count} of git's files that nobody had flushed: they are in {layout.torn}")


def recover(repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    """Bring a workspace whose lock we hold to a state that a run can start from.

    After a kill the upper layer is whole: the missing snapshot is taken. After a power cut it is doubtful
    unless it had reached the disk, and so is one that was copied, because copies lose marks: it is put aside
    and rebuilt from the last snapshot. A fork that nobody has opened yet gets its upper.
    """
    place = layout.workspace(record.id)
    if record.common_dir != repository.common_dir:  # it was moved since, or is a copy
        record.root, record.common_dir = repository.root, repository.common_dir
        record.save(place.record)
    if record.inode == UNFILLED:
        from overlayrun.restore import rebuild

        remove_tree(rebuild(repository, layout, record, number=None))  # what lay there was empty
        return
    is_another = identity_of(place.upper) != record.inode
    if is_another and not _is_completed(layout, record):
        tell(f"branch {record.branch} is a copy: rebuilding it from its last snapshot")
        _rebuild(repository, layout, record, tell)
    torn, is_half = is_torn(place, record), _is_absorbing(place)
    if torn:
        tell(f"branch {record.branch} went through a power cut")
        _rebuild(repository, layout, record, tell, is_doubtful=True)
    elif is_half:
        _take_back(repository, layout, record, tell)
    elif record.is_open:
        _take_missing(repository, layout, record, tell)
    else:
        return
    _note_recovered(layout, record, is_flushed=torn)
    if is_half:
        os.unlink(place.absorbing)


def _note_recovered(layout: Layout, record: Record, *, is_flushed: bool) -> None:
    """Close the record. is_flushed: wait for the disk, so that no later command tells of this power cut."""
    from overlayrun.durable import sync_aside

    run, place = record.last_run, layout.workspace(record.id)
    if run is not None:
        run.ended, run.boot = run.ended or time.time(), boot_id()
    elif is_flushed:
        record.filled = None
    record.save(place.record)
    if not is_flushed:
        sync_aside(layout, record)
        return
    flush_disk(layout.root)
    note_synced(place, record)


def _is_completed(layout: Layout, record: Record) -> bool:
    """Whether a sync or a restore was killed in the middle of its exchange, which is finished now."""
    from overlayrun.swap import complete

    return complete(layout, record) is not None


def _take_missing(
    repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]
) -> None:
    from overlayrun.capture import capture
    from overlayrun.folders.gitdir import hand_over, head_of
    from overlayrun.idle import idle_sandbox
    from overlayrun.model import SnapshotReason

    _clear_half_written(f"{record.common_dir}/objects")
    with idle_sandbox(repository, layout, record) as live:
        taken = capture(layout, record, SnapshotReason.RECOVERY, None, live)
        if record.last_run and record.last_run.folder:
            hand_over(live, layout.workspace(record.id), head_of(record))
    tell(f"branch {record.branch} was interrupted: its changes are in snapshot {taken.number}")


def _take_back(repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    """Let the files be as before a merge that was killed: half of it, if there, gets a snapshot first."""
    from overlayrun.capture import capture
    from overlayrun.idle import idle_sandbox
    from overlayrun.model import SnapshotReason
    from overlayrun.store.repo import Repo
    from overlayrun.transplant import change_files

    number = int(read_bytes(layout.workspace(record.id).absorbing))
    before = next(each for each in Repo(record.common_dir).snapshots(record.id) if each.number == number)
    with idle_sandbox(repository, layout, record) as live:
        now = capture(layout, record, SnapshotReason.REQUEST, None, live)
        is_done = change_files(live, record.common_dir, now.tree, before.tree)
        if is_done:
            capture(layout, record, SnapshotReason.REQUEST, f"Restore snapshot {number}", live)
    end = "it is as it was before" if is_done else f"to go back: overlayrun restore {record.branch}@{{1}}"
    tell(f"a merge into branch {record.branch} was interrupted: {end}")


def _clear_half_written(objects: str) -> None:
    """Remove what a killed snapshot left of objects and packs, once nobody can be writing it any more."""
    for directory in os.scandir(objects):
        if len(directory.name) != 2 and directory.name != "pack":
            continue
        for entry in os.scandir(directory.path):
            half = entry.name.startswith(("tmp_obj_", "tmp_pack_", "tmp_idx_"))
            if half and time.time() - entry.stat().st_mtime > _HALF_WRITTEN:
                os.unlink(entry.path)


def whole_before(place: WorkspaceLayout, record: Record) -> float:
    """When all that was there had reached the disk: at a snapshot, or as the last run began; else 0.

    The last of them, not the latest: the clock may have been set back between. One ahead is not believed.
    """
    when, _, run = _note(place.flushed).partition(" ")
    flushed, number = float(when or 0), _note(place.synced).rpartition(" ")[2]
    last = record.last_run
    if last is not None and number == str(last.number - 1) and run != str(last.number):
        flushed = max(flushed, last.started)
    return flushed - _MARGIN if 0 < flushed <= time.time() else 0.0


def _note(path: str) -> str:
    try:
        return read_bytes(path).decode()
    except FileNotFoundError:
        return ""


def _rebuild(
    repository: Repository,
    layout: Layout,
    record: Record,
    tell: Callable[[str], None],
    *,
    is_doubtful: bool = False,
) -> None:
    from overlayrun.restore import ALWAYS, rebuild

    limit = whole_before(layout.workspace(record.id), record) if is_doubtful else ALWAYS
    aside = rebuild(repository, layout, record, number=None, whole_before=limit)
    tell(f"branch {record.branch} is rebuilt from its last snapshot; what was there is in {aside}")
    if is_doubtful:
        _sift(layout.workspace(record.id), limit, aside, tell)


def _sift(place: WorkspaceLayout, limit: float, aside: str, tell: Callable[[str], None]) -> None:
    """Put aside what the cut has emptied in HOME, of which there is no snapshot; tell of what is doubtful.

    limit: what has not changed since is whole.
    """
    emptied, doubtful = 0, []
    for directory, _, names in os.walk(place.home_upper):
        for name in names:
            path = f"{directory}/{name}"
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or info.st_ctime < limit:
                continue
            below = os.path.relpath(path, place.home_upper)
            if info.st_blocks or 0 < info.st_size <= _INLINE:
                doubtful.append(below)
                continue
            os.makedirs(os.path.dirname(f"{aside}/home/{below}"), exist_ok=True)
            os.rename(path, f"{aside}/home/{below}")
            emptied += 1
    if emptied:
        tell(f"empty files of its HOME ({emptied}), which the cut may have emptied, are in {aside}/home")
    if doubtful:
        some = ", ".join(printable(f"~/{name}") for name in sorted(doubtful)[:_FEW])
        more = f" and {len(doubtful) - _FEW} more" if len(doubtful) > _FEW else ""
        tell(f"look at what its HOME got in the last moments: {some}{more}")
