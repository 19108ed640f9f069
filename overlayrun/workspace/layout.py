"""Every path below the state directory. On the launch path: str paths, no work but joining."""

from __future__ import annotations

import os
import stat

from overlayrun.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlayrun.model import TreeId


class Layout:
    """Paths of one repository's state; `root` is usually `.git/overlayrun`."""

    __slots__ = ("root",)

    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def lock(self) -> str:
        """File whose flock `gc` takes alone, and everybody who is choosing layers shares."""
        return f"{self.root}/lock"

    @property
    def bases(self) -> str:
        """Frozen full trees, one directory a git tree."""
        return f"{self.root}/bases"

    @property
    def layers(self) -> str:
        """Frozen deltas, one directory `<from tree>-<to tree>` each."""
        return f"{self.root}/layers"

    @property
    def carried(self) -> str:
        """Frozen ignored directories."""
        return f"{self.root}/carried"

    @property
    def workspaces(self) -> str:
        """One directory a workspace."""
        return f"{self.root}/workspaces"

    @property
    def masters(self) -> str:
        """Subvolumes of frozen trees, of which workspaces are snapshots; only on btrfs."""
        return f"{self.root}/masters"

    @property
    def backend(self) -> str:
        """File that says in which boot of the machine overlays were found to work here."""
        return f"{self.root}/backend"

    @property
    def boot(self) -> str:
        """File that says in which boot of the machine git's store was looked at for what a power cut tore."""
        return f"{self.root}/boot"

    @property
    def torn(self) -> str:
        """Git objects that a power cut tore."""
        return f"{self.root}/torn"

    @property
    def checks(self) -> str:
        """Logs and results of checks and resolvers, one directory a question."""
        return f"{self.root}/checks"

    @property
    def boards(self) -> str:
        """What reconcilers are doing now, one file each."""
        return f"{self.root}/boards"

    @property
    def batches(self) -> str:
        """Runs of batches, one directory each."""
        return f"{self.root}/batches"

    @property
    def folders(self) -> str:
        """What `overlayrun open` keeps: `lock`, `place`, `control`, `log`."""
        return f"{self.root}/open"

    def shown_in(self) -> str | None:
        """The directory in which `overlayrun open` showed folders last, or shows them now."""
        try:
            fd = os.open(f"{self.folders}/place", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.fsdecode(os.read(fd, 4096))
        finally:
            os.close(fd)

    def base(self, tree: TreeId) -> str:
        """Directory of one frozen tree: `tree/` and `git/`."""
        return f"{self.bases}/{tree}"

    def layer(self, old: TreeId, new: TreeId) -> str:
        """Directory of one delta: `tree/` and `git/`."""
        return f"{self.layers}/{old}-{new}"

    def workspace(self, workspace_id: str) -> WorkspaceLayout:
        """Paths of one workspace."""
        return WorkspaceLayout(f"{self.workspaces}/{workspace_id}")


class WorkspaceLayout:
    """Paths of one workspace; `root` is its directory."""

    __slots__ = ("root",)

    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def record(self) -> str:
        """The record, JSON."""
        return f"{self.root}/record.json"

    @property
    def claim(self) -> str:
        """File with the branch's name, while a workspace is made whose record is not written yet."""
        return f"{self.root}/claim"

    @property
    def unfinished(self) -> str:
        """Mark of a whole tree in which nothing ran yet: it is no work, where there is no record."""
        return f"{self.root}/unfinished"

    @property
    def absorbing(self) -> str:
        """While a merge changes the files: the number of the snapshot that holds them as they were."""
        return f"{self.root}/absorbing"

    @property
    def synced(self) -> str:
        """Says of which run and boot all is on the disk: see `flushed.sync_stamp`."""
        return f"{self.root}/synced"

    @property
    def flushed(self) -> str:
        """Says when all that was there then was on the disk, in seconds since the epoch, and in which run."""
        return f"{self.root}/flushed"

    @property
    def throwaway(self) -> str:
        """Mark of a throwaway, which has no record."""
        return f"{self.root}/throwaway"

    @property
    def attempt(self) -> str:
        """File with the ref that keeps what is made here, in a workspace of a batch's attempt."""
        return f"{self.root}/attempt"

    @property
    def lock(self) -> str:
        """File whose flock is held while a run lives."""
        return f"{self.root}/lock"

    @property
    def upper(self) -> str:
        """What the command changed in the tree, or the whole tree, as the record's backend has it."""
        return f"{self.root}/upper"

    @property
    def whole(self) -> str:
        """Where `upper` holds the whole tree: what it was as it was made, `index` and `size` (bytes)."""
        return f"{self.root}/whole"

    @property
    def git_upper(self) -> str:
        """What the command changed in its `.git`; nothing on the host opens it as a repository."""
        return f"{self.root}/git"

    @property
    def home_upper(self) -> str:
        """What the command changed in HOME."""
        return f"{self.root}/home"

    @property
    def work(self) -> str:
        """Overlayfs scratch, one directory a mount, fresh for each run."""
        return f"{self.root}/work"

    @property
    def dirty(self) -> str:
        """The user's uncommitted changes, as a layer."""
        return f"{self.root}/dirty"

    @property
    def hashes(self) -> str:
        """Blob ids of files already stored."""
        return f"{self.root}/hashes.json"

    @property
    def sockets(self) -> str:
        """Directory of the control sockets: `outside`, and `inside/` that the sandbox sees."""
        return f"{self.root}/sockets"

    @property
    def guests(self) -> str:
        """Ids of the workspaces that the last run opened beside this one, a line each: for `--disk`."""
        return f"{self.root}/guests"

    @property
    def folder(self) -> str:
        """The git directory of the branch's folder; only the user's programs ever write there."""
        return f"{self.root}/folder"

    @property
    def folder_lock(self) -> str:
        """File whose flock is held while the branch is shown as a folder, and no run has it."""
        return f"{self.root}/folder.lock"

    @property
    def server(self) -> str:
        """Where the agent's server of a run listens, JSON; believed only while it answers."""
        return f"{self.root}/server.json"

    @property
    def kept(self) -> str:
        """Upper layers that were put aside, never removed but by `gc` and `rm`."""
        return f"{self.root}/kept"

    def live(self, number: int) -> str:
        """What the command changed in the carried directory `number` of those that are shown live."""
        return f"{self.root}/live/{number}"


def state_directory(common_dir: str) -> str:
    """Where the state of a repository lies: OVERLAYRUN_STATE_DIR, else its common git directory."""
    chosen = os.environ.get("OVERLAYRUN_STATE_DIR")
    if not chosen:
        return f"{common_dir}/overlayrun"
    import hashlib  # 2 ms that only this choice pays

    digest = hashlib.sha256(os.fsencode(common_dir)).hexdigest()[:12]
    name = os.path.basename(os.path.dirname(common_dir)) or "repository"
    return os.path.abspath(f"{chosen}/{name}-{digest}")


def open_state(common_dir: str) -> Layout:
    """The repository's state directory, made if it is missing.

    Raises HostError where it is not ours alone: somebody else could have planted layers in it.
    """
    layout = Layout(state_directory(common_dir))
    try:
        if not os.path.lexists(layout.root):
            os.makedirs(os.path.dirname(layout.root), exist_ok=True)
            _mkdir(layout.root)
        info = os.lstat(layout.root)
        ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077
        for directory in (layout.bases, layout.layers, layout.carried, layout.workspaces) if ours else ():
            _mkdir(directory)
    except OSError as err:
        raise HostError(
            f"the state directory can't be made: {layout.root}: {err.strerror}",
            hint="choose another place: export OVERLAYRUN_STATE_DIR=~/.local/state/overlayrun/state",
        ) from err
    if not ours:
        raise HostError(
            f"the state directory is not yours alone: {layout.root}",
            hint=f"look at it, then: chown -R $USER {layout.root} && chmod 700 {layout.root}",
        )
    return layout


def _mkdir(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:  # the usual case, and another first run at the same time
        pass
