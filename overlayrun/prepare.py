"""Make a workspace, or open the one that a branch has. On the launch path: slow parts are imported late."""

from __future__ import annotations

import os
import stat
import time

from overlayrun.bases.gitdir import complete_git_directory, write_git_directory
from overlayrun.bases.ignored import known_ignored
from overlayrun.bases.stack import doubtful, stack_of
from overlayrun.chosen_backend import choose_backend, make_whole, mark_finished, refuse_other_backend
from overlayrun.errors import OverlayrunError, RefMoved, StoreError, UsageError, WorkspaceBusy
from overlayrun.files import identity_of, remove_tree, write_whole
from overlayrun.model import BranchName, DirtyPolicy, HomePolicy, RunOptions
from overlayrun.removal import await_maker, clear_half_made, drop
from overlayrun.sandbox.plan import OBJECTS
from overlayrun.sandbox.profiles import NO_PROFILE, parse_profile, profile_of
from overlayrun.sandbox.seeds import excluded
from overlayrun.sandbox.switches import parse_without
from overlayrun.store.location import resolve_commit
from overlayrun.store.refs import (
    RefUpdate,
    base_ref,
    blocked_name,
    branch_ref,
    dirty_ref,
    name_in_the_way,
    parse_branch_name,
    update_refs,
)
from overlayrun.view import Choices
from overlayrun.workspace.catalogue import broken, find_exact, remember_repository
from overlayrun.workspace.lock import is_locked, lock, share
from overlayrun.workspace.names import branch_names, workspace_id
from overlayrun.workspace.record import Record, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from overlayrun.model import CommitId, TreeId
    from overlayrun.store.location import Repository
    from overlayrun.workspace.layout import Layout


class Prepared:
    """A workspace whose lock we hold.

    lock: its descriptor. uncommitted: how many of the user's changes came along.
    resumed: it was there before. notes: what could not come and what else is special, for the header.
    """

    __slots__ = ("lock", "notes", "record", "resumed", "uncommitted")

    def __init__(self, record: Record, lock_fd: int, *, resumed: bool) -> None:
        self.record = record
        self.lock = lock_fd
        self.resumed = resumed
        self.uncommitted = 0
        self.notes: list[str] = []
        if record.has_own_agent_state:
            self.notes.append(f"agent state of {record.profile}: the branch's own")


def open_or_make(
    repository: Repository,
    layout: Layout,
    options: RunOptions,
    command: Sequence[str],
    tell: Callable[[str], None],
) -> Prepared:
    """The workspace for a run, locked. tell: called with a line before anything slow.

    Raises UsageError for a branch name that can't be used, WorkspaceBusy for a workspace that a run holds.
    """
    name = None if options.branch is None else parse_branch_name(options.branch)
    if name is not None and not is_new(repository, name):
        known = find_exact(layout, name)
        if known is not None:
            refuse_other_backend(options, known)
            return open_known(repository, layout, known)
        if not stack_of(layout, repository.head_tree):  # else taking the name finds out
            _refuse_taken(repository, layout, name)
    return _make(repository, layout, options, command, tell)


def is_new(repository: Repository, name: str) -> bool:
    """Whether it is known without a look that no workspace has a branch of this name."""
    return repository.known is not None and name == repository.known.new_branch


def open_known(repository: Repository, layout: Layout, record: Record) -> Prepared:
    """A workspace that is there, locked; raises WorkspaceBusy."""
    try:
        held = lock(layout.workspace(record.id).lock)
    except WorkspaceBusy as err:
        if err.hint is not None:  # a folder that is not given back
            raise
        raise WorkspaceBusy(
            f"branch {record.branch} is running already",
            hint=f"join it: overlayrun exec {record.branch} -- COMMAND",
        ) from err
    record = Record.load(layout.workspace(record.id).record)  # somebody may have finished with it meanwhile
    if record.common_dir != repository.common_dir:
        record.root, record.common_dir = repository.root, repository.common_dir
    _mend(repository, layout, record.stack)
    mark_finished(layout, record)
    return Prepared(record, held, resumed=True)


def _mend(repository: Repository, layout: Layout, stack: Sequence[str]) -> None:
    """Make layers again that a power cut may have torn: a base is only a copy of what git holds."""
    if torn := doubtful(layout, stack):
        from overlayrun.bases.freeze import remake  # after a power cut alone

        for layer in reversed(torn):
            remake(layout, repository, layer)


def _undo(layout: Layout, record: Record, *, claimed: bool) -> None:
    """Leave nothing of a workspace that could not be made; what a full disk keeps, a later run clears."""
    try:
        if claimed:
            drop(layout, record, branch=True)
        remove_tree(layout.workspace(record.id).root)
    except OverlayrunError:
        pass


def _refuse_what_is_missing(repository: Repository, options: RunOptions) -> None:
    if (options.keep or options.apply) and not options.rm:
        raise UsageError("--keep and --apply belong to --rm", hint="an ordinary run keeps its branch anyway")
    if options.rm and options.branch is not None:
        raise UsageError("a throwaway has no branch", hint="leave -b out, or --rm")
    parse_without(options.without)
    parse_profile(options.profile or NO_PROFILE)
    Choices.of(options)
    for path in (*options.bind_ro, *options.bind_rw):
        if not os.path.lexists(path):
            raise UsageError(
                f"there is nothing to bind at {path}", hint="make it first, or leave the option out"
            )
    if options.into is not None:
        into = parse_branch_name(options.into)
        if into != repository.branch:
            resolve_commit(repository, branch_ref(into))


def _refuse_taken(repository: Repository, layout: Layout, name: BranchName, own: str = "") -> None:
    """Raise for a name that another branch has or blocks, before anything slow begins.

    own: see `await_maker`.
    """
    clear_half_made(layout, repository.common_dir)
    if name == repository.branch:
        raise UsageError(
            f"branch {name} is checked out in {repository.root}", hint="choose a new name: -b NAME"
        )
    try:
        resolve_commit(repository, branch_ref(name))
    except UsageError:
        if other := name_in_the_way(repository.common_dir, branch_ref(name)):
            raise blocked_name(branch_ref(name), other) from None
        return
    if await_maker(layout, name, own):
        _refuse_taken(repository, layout, name, own)
        return
    for place in broken(layout):
        if not is_locked(f"{place}/lock"):  # else it is being made: ours may be
            Record.load(f"{place}/record.json")  # says what is wrong with the one that may be this branch's
    raise UsageError(
        f"branch {name} exists already, and no workspace belongs to it",
        hint=f"start a new branch from it: overlayrun --base {name} -b NEW-NAME -- COMMAND",
    )


def _make(
    repository: Repository,
    layout: Layout,
    options: RunOptions,
    command: Sequence[str],
    tell: Callable[[str], None],
) -> Prepared:
    commit, tree = repository.head, repository.head_tree
    if options.base is not None:
        commit, tree = resolve_commit(repository, options.base)
    _refuse_what_is_missing(repository, options)
    record = Record(workspace_id(), BranchName(options.branch or ""), repository.root, tree)
    record.base, record.created, record.prompt = commit, time.time(), options.message
    record.target = BranchName(options.into) if options.into else repository.branch
    record.common_dir = repository.common_dir
    record.home = HomePolicy.PRIVATE.value if options.strict else options.home.value
    record.throwaway = options.rm
    record.root_uid = options.allow_root_uid
    record.profile = options.profile or profile_of(command[0])
    record.agent_state = options.agent_state.value
    if options.strict and not options.profile:
        record.agent_state = "none"  # unless it is named: its database may hold what the host obeys
    place = layout.workspace(record.id)
    notes = choose_backend(layout, options, record)
    choosing = share(layout.lock)  # no `gc` between the choice of a layer and the record that names it
    # Locked before it has its name: without a lock it would look like one that a killed process left.
    nameless = layout.workspace(f".{record.id}")
    os.mkdir(nameless.root, 0o700)
    held = lock(nameless.lock)
    os.rename(nameless.root, place.root)
    prepared = Prepared(record, held, resumed=False)
    prepared.notes += notes
    claimed = False
    try:
        _gather(repository, layout, options, prepared, tell)
        claim(repository, layout, record, command, record.branch or None)
        claimed = True
        _fill(repository, layout, record, tell)
        # Else its first run writes it; but a whole tree without a record would look like work.
        if record.throwaway or record.is_whole or not is_new(repository, record.branch):
            keep_record(layout, record)
        mark_finished(layout, record)
    except BaseException:
        _undo(layout, record, claimed=claimed)
        os.close(held)
        raise
    finally:
        os.close(choosing)
    return prepared


def _gather(
    repository: Repository,
    layout: Layout,
    options: RunOptions,
    prepared: Prepared,
    tell: Callable[[str], None],
) -> None:
    """Fill in the layers: the frozen tree, uncommitted changes, ignored files."""
    record = prepared.record
    changed: list[bytes] = []
    if options.dirty is DirtyPolicy.IGNORE or record.base != repository.head:
        ignored = repository.known.ignored if repository.known else known_ignored(repository, layout)
        if options.dirty is not DirtyPolicy.IGNORE:
            prepared.notes.append(
                "uncommitted changes stay out: they belong to HEAD, and --base names another commit"
            )
    else:
        from overlayrun.bases.dirty import look  # with --dirty ignore no git status runs

        seen = look(repository)
        changed, ignored = seen.changed, seen.ignored
        prepared.notes += [
            f"not carried: {os.fsdecode(path)}: a repository of its own" for path in seen.left_out
        ]
    if changed and options.dirty is DirtyPolicy.FAIL:
        raise UsageError(
            f"{len(changed)} uncommitted change{'s' * (len(changed) != 1)} in {repository.root}",
            hint="commit them, or: --dirty include",
        )
    if os.path.exists(f"{repository.root}/.gitmodules"):
        prepared.notes.append(
            "submodules come as empty directories: their commits are kept, their files stay at home"
        )
    record.stack = frozen_tree(repository, layout, record.tree, tell)
    if changed:
        _take_dirty(repository, layout, prepared, changed)
    ignored = _without_folders(repository, layout, ignored)
    if ignored:
        _take_carried(layout, options, prepared, ignored, tell)


def _without_folders(repository: Repository, layout: Layout, ignored: Sequence[bytes]) -> list[bytes]:
    """Leave out where `overlayrun open` shows the branches: it would be a copy of them all."""
    shown = layout.shown_in()
    if shown is None or not shown.startswith(f"{repository.root}/"):
        return list(ignored)
    place = os.fsencode(shown[len(repository.root) + 1 :])
    return [path for path in ignored if path.rstrip(b"/") != place]


def frozen_tree(
    repository: Repository, layout: Layout, tree: TreeId, tell: Callable[[str], None]
) -> list[str]:
    """The stack of a tree, whole and just used; made now where it is missing."""
    stack = stack_of(layout, tree)
    if stack:
        _mend(repository, layout, stack)
        os.utime(f"{layout.root}/{stack[0]}")  # `gc` goes by the last use
        return stack
    from overlayrun.bases.freeze import freeze  # the first run on a commit alone

    remember_repository(layout)
    return freeze(layout, repository, tree, tell)


def _take_dirty(repository: Repository, layout: Layout, prepared: Prepared, changed: list[bytes]) -> None:
    from overlayrun.bases.dirty import record_dirty

    record = prepared.record
    place = layout.workspace(record.id).dirty
    record.dirty = record_dirty(repository, changed, place, "Uncommitted changes when a branch began")
    prepared.uncommitted = len(changed)


def _take_carried(
    layout: Layout, options: RunOptions, prepared: Prepared, ignored: list[bytes], tell: Callable[[str], None]
) -> None:
    from overlayrun.bases.carried import carry, default_policy

    record = prepared.record
    carried = carry(layout, record.root, ignored, options.carry or default_policy(layout), tell)
    record.carried = [os.fsdecode(path) for path in carried.paths]
    record.carried_layers = carried.layers
    record.live = [os.fsdecode(path) for path in carried.live]
    prepared.notes += carried.notes


def _target_commit(repository: Repository, record: Record) -> CommitId | None:
    if record.target is None or record.target == repository.branch:
        return repository.head
    try:
        return resolve_commit(repository, branch_ref(record.target))[0]
    except UsageError:  # a branch that its first commit will make
        return None


def claim(
    repository: Repository, layout: Layout, record: Record, command: Sequence[str], given: BranchName | None
) -> None:
    """Take the branch's name: its refs are made, from nothing; a throwaway takes none.

    given: the name that the user chose; without one a free name is found, after the command.
    """
    if record.throwaway:
        record.branch = BranchName(next(branch_names(command[0])))
        return
    for name in [given] if given else branch_names(command[0]):
        record.branch = BranchName(name)
        # Flushed before the refs, else the name is nobody's after a power cut: 0.4 ms that a batch saves.
        is_alone = repository.known is None
        write_whole(layout.workspace(record.id).claim, name.encode(), durable=is_alone)
        try:
            _make_refs(repository, name, list(_first_refs(record)))
        except RefMoved:
            if given:
                _refuse_taken(repository, layout, given, record.id)
                update_refs(repository.common_dir, list(_first_refs(record)), why="start")
                return
            continue
        return


def _make_refs(repository: Repository, name: str, updates: Sequence[RefUpdate]) -> None:
    if repository.known is not None and is_new(repository, name):
        try:
            return repository.known.make_refs(updates)
        except StoreError:  # git itself says better what is in the way
            pass
    return update_refs(repository.common_dir, updates, why="start")


def _first_refs(record: Record) -> Iterator[RefUpdate]:
    if record.base:
        yield RefUpdate(branch_ref(record.branch), record.base, None)
        yield RefUpdate(base_ref(record.id), record.base, None)
    if record.dirty:
        yield RefUpdate(dirty_ref(record.id), record.dirty, None)


def keep_record(layout: Layout, record: Record) -> None:
    """Write the record; a throwaway has an empty mark instead, by which `gc` knows one that was killed."""
    place = layout.workspace(record.id)
    if record.throwaway:
        os.close(os.open(place.throwaway, os.O_CREAT | os.O_CLOEXEC, 0o600))
    else:
        record.save(place.record)


def _fill(repository: Repository, layout: Layout, record: Record, tell: Callable[[str], None]) -> None:
    """Directories and the command's own `.git`."""
    place = layout.workspace(record.id)
    live = [place.live(number) for number in range(len(record.live))]
    for directory in (place.home_upper, f"{place.sockets}/inside", *live):
        os.makedirs(directory, mode=0o700)
    mode = stat.S_IMODE(os.stat(record.root).st_mode)
    if record.is_whole:
        make_whole(layout, record, mode, tell)
    else:
        os.mkdir(place.upper, 0o700)
        os.chmod(place.upper, mode)  # the top of an overlay shows the upper's own
    record.inode, record.filled = identity_of(place.upper), boot_id()  # what is copied is not flushed
    refs = {}
    target = _target_commit(repository, record)
    if record.target and target:
        refs[branch_ref(record.target)] = target
    if record.base:
        refs[branch_ref(record.branch)] = record.base
    own = branch_ref(record.branch)
    write_git_directory(repository, place.git_upper, OBJECTS, own, refs, excluded(record.profile))
    if record.is_whole:
        complete_git_directory(place.git_upper, f"{place.whole}/index")
