"""What of a workspace is on the disk: its mounts are volatile; a run that ends has them flushed."""

from __future__ import annotations

from overlayrun.errors import WorkspaceError
from overlayrun.files import read_bytes, write_whole
from overlayrun.workspace.record import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlayrun.workspace.layout import WorkspaceLayout
    from overlayrun.workspace.record import Record


def sync_stamp(record: Record) -> bytes:
    """What `WorkspaceLayout.synced` must say for the last run, or for the copies of a fork without one."""
    if record.last_run is None:
        return f"{record.filled} 0".encode()
    return f"{record.last_run.boot} {record.last_run.number}".encode()


def note_synced(place: WorkspaceLayout, record: Record) -> None:
    """Note that the files of a run are on the disk, unless that is noted of a later one."""
    stamp = sync_stamp(record)
    if _number(_noted(place)) <= _number(stamp):
        write_whole(place.synced, stamp, durable=True)


def _noted(place: WorkspaceLayout) -> bytes:
    try:
        return read_bytes(place.synced)
    except FileNotFoundError:
        return b""


def _number(stamp: bytes) -> int:
    return int(stamp.rpartition(b" ")[2] or 0)


def is_noted(place: WorkspaceLayout, record: Record) -> bool:
    """Whether the files of the last run, or of a fork, are known to be on the disk."""
    return _noted(place) == sync_stamp(record)


def is_torn(place: WorkspaceLayout, record: Record) -> bool:
    """Whether the power went before the files of the last run, or of a fork, were on the disk."""
    boot = record.last_run.boot if record.last_run else record.filled
    return boot not in (None, boot_id()) and not is_noted(place, record)


def refuse_torn(place: WorkspaceLayout, record: Record) -> None:
    """Raise WorkspaceError for files that nobody may take a snapshot or a copy of."""
    if is_torn(place, record):
        raise WorkspaceError(
            f"branch {record.branch} went through a power cut and is not rebuilt yet",
            hint=f"see what keeps it from that: overlayrun show {record.branch}",
        )
