"""A run from start to end: workspace, header, sandbox, last snapshot, summary. On the launch path."""

from __future__ import annotations

import fcntl
import os
import time

from overlayrun.bases.gitdir import is_touched
from overlayrun.command import command_of
from overlayrun.connections import Connections, blocked_lines
from overlayrun.errors import HostError, OverlayrunError
from overlayrun.files import remove_tree
from overlayrun.guide import GUIDE, write_guide
from overlayrun.keeper import Command
from overlayrun.kernel import namespaces
from overlayrun.live import OURS, LiveSandbox
from overlayrun.model import RunOptions, SnapshotReason
from overlayrun.ports import claim_ports, port_environment
from overlayrun.prepare import Prepared, open_or_make
from overlayrun.recover import mend_store, recover
from overlayrun.relay import Relay
from overlayrun.report import header, printable
from overlayrun.sandbox.aside import ASIDE
from overlayrun.sandbox.asking import asked_lines
from overlayrun.sandbox.landlock import has_landlock
from overlayrun.sandbox.limits import hold_by_group, words
from overlayrun.sandbox.network import parse_net
from overlayrun.sandbox.switches import parse_without
from overlayrun.supervisor import Outcome, Supervisor, block_signals
from overlayrun.terminal import Terminal, is_in_foreground
from overlayrun.view import Choices, layers_of, notes_of, view_of
from overlayrun.workspace.record import Run, boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from overlayrun.account import Account
    from overlayrun.answers import Answers
    from overlayrun.finish import Ending
    from overlayrun.guests import Guests
    from overlayrun.kernel.groups import Group
    from overlayrun.sandbox.plan import Layer
    from overlayrun.snapshot import Snapshot
    from overlayrun.store.location import Repository
    from overlayrun.supervisor import Entrust
    from overlayrun.workspace.layout import Layout
    from overlayrun.workspace.record import Record

_FLUSH_EVERY: Final = 5.0  # seconds


class Witness:
    """What a caller in this process learns of a run beside its exit status.

    made: called when the workspace is there; begin: when its sandbox stands, before the command starts.
    flush: called at the end in place of `durable.sync_in_background`. entrust: see `Supervisor`. largest: see
    `Relay`. ending: the last snapshot, None where nothing changed. unsaved: why that could not be taken.
    """

    __slots__ = ("begin", "ending", "entrust", "flush", "largest", "made", "outcome", "unsaved")

    def __init__(self) -> None:
        self.made: Callable[[Record], object] = lambda _: None
        self.begin: Callable[[], object] = lambda: None
        self.flush: Callable[[Record], object] | None = None
        self.entrust: Entrust | None = None
        self.largest: int | None = None
        self.outcome: Outcome | None = None
        self.ending: Ending | None = None
        self.unsaved: OverlayrunError | None = None


def run_command(
    repository: Repository,
    layout: Layout,
    options: RunOptions,
    argv: Sequence[str],
    tell: Callable[[str], None],
    witness: Witness | None = None,
) -> int:
    """Run `argv` in a workspace and give the exit status that the user's shell shall see.

    tell: shows a line to the user. Raises OverlayrunError where the command was not started.
    """
    quiet = (lambda _: None) if options.quiet else tell
    network = parse_net(options.net, strict=options.strict)
    mend_store(layout, repository.common_dir, quiet)
    with Connections(network, options.publish, tell) as connections:
        prepared = open_or_make(repository, layout, options, argv, quiet)
        run = _Run(repository, layout, options, prepared, connections, tell)
        run.witness = witness or run.witness
        run.witness.made(prepared.record)
        return run.through(list(argv), quiet)


class _Run:
    """One run of one command; `tell` shows what must be seen, `quiet` in `through` what is a courtesy."""

    def __init__(
        self,
        repository: Repository,
        layout: Layout,
        options: RunOptions,
        prepared: Prepared,
        connections: Connections,
        tell: Callable[[str], None],
    ) -> None:
        self.repository = repository
        self.layout = layout
        self.options = options
        self.prepared = prepared
        self.record = prepared.record
        self.place = layout.workspace(prepared.record.id)
        self.tell = tell
        self.connections = connections
        self.known: Answers | None = None
        self.guests: Guests | None = None
        self.without = parse_without(options.without)
        self.witness = Witness()
        self.flushed = -_FLUSH_EVERY

    def through(self, argv: list[str], quiet: Callable[[str], None]) -> int:
        record = self.record
        record.root_uid = self.options.allow_root_uid
        if self.prepared.resumed:
            self._recover(quiet)
        view = view_of(self.repository, self.layout, record, Choices.of(self.options))
        view.memory = self.options.memory
        terminal = Terminal()
        block_signals()
        try:
            # Nobody inside could mount a /proc of his own below one of which a part is covered.
            covered = frozenset({"keyring"}) if self.options.allow_userns else frozenset()
            layers = layers_of(view, self.without | covered)
            self.prepared.notes += notes_of(view)
            return self._in_sandbox(layers, argv, terminal, quiet)
        except HostError as err:
            from overlayrun.doctor import explain  # tries what this machine can do, to name what it lacks

            if record.last_run is None and not self.prepared.resumed:  # it never ran: leave nothing of it
                self._drop()
            brief, hint = explain(err, self.layout.root, record.backend)
            raise HostError(brief, hint=hint) from err
        finally:
            # Overlayfs leaves directories of mode 000 in it, at which `rm -rf` of the repository would
            # stumble.
            remove_tree(self.place.work)
            if self.guests:
                self.guests.release()
            # Who flushes in the background has the descriptor too, for some moments.
            fcntl.flock(self.prepared.lock, fcntl.LOCK_UN)

    def _in_sandbox(
        self, layers: Sequence[Layer], argv: list[str], terminal: Terminal, quiet: Callable[[str], None]
    ) -> int:
        command = self._command(argv)
        write_guide(f"{self.place.sockets}/inside", self.record)
        relay = Relay(files="streams" not in self.without, timed=self.options.idle_timeout is not None)
        relay.largest = self.witness.largest
        command.streams = relay.streams
        with self._group(command) as group, LiveSandbox(layers, command, group) as live:
            # Open only now: a sandbox that could not be made leaves nothing to recover.
            self._begin(argv)
            for line in (*header(self.prepared, self.options), self._sandbox_line(live)):
                quiet(line)
            self.connections.open(live.joined)
            self.witness.begin()
            take = None if self.record.throwaway else self._taker(live)
            supervisor = Supervisor(live, self.options, self.place.sockets, take, self.tell, relay)
            supervisor.watched = self.connections.watched
            supervisor.entrust = self.witness.entrust
            supervisor.is_untouched = self._is_untouched
            supervisor.answers = lambda: self._answers(supervisor)
            outcome = supervisor.run()
            self.connections.finish()
            terminal.take_back(abnormal=outcome.status > 128)
            for line in self.guests.finish(outcome.status) if self.guests else ():
                quiet(line)
            with self._whole(live, outcome) as whole:
                return self._close(whole, outcome, quiet)

    def _whole(self, live: LiveSandbox, outcome: Outcome) -> LiveSandbox:
        """Where its death has cut a rename short, another sandbox, which has put all in its place."""
        if outcome.killed and os.path.lexists(f"{self.place.upper}/{ASIDE}"):
            from overlayrun.idle import idle_sandbox

            try:
                return idle_sandbox(self.repository, self.layout, self.record)
            except OverlayrunError as err:
                self.tell(f"a rename that was cut short waits for the next run: {err.brief}")
        return live

    def _begin(self, argv: list[str]) -> None:
        record = self.record
        number = record.last_run.number + 1 if record.last_run else 1
        record.last_run = Run(number, argv, boot_id(), time.time())
        if not record.throwaway:
            # Not flushed, an empty file may take the place of a record that was whole (0.4 ms).
            record.save(self.place.record, durable=self.witness.flush is None)

    def _group(self, command: Command) -> Group:
        options, limits = self.options, command.confinement.limits
        root_uid = command.confinement.root_uid
        return hold_by_group(
            limits, self.record.id, freeze=options.freeze, root_uid=root_uid, without=self.without
        )

    def _sandbox_line(self, live: LiveSandbox) -> str:
        """What holds in this run that does not in every other."""
        confinement = live.command.confinement
        parts = [self.connections.network.describe(), words(confinement.limits, live.group)]
        if namespaces.is_root_of_host():
            parts.append("THE HOST'S ROOT (--allow-root-uid)" if confinement.root_uid else "nobody, not root")
        if "landlock" not in self.without and not has_landlock():
            parts.append("this kernel has no Landlock")
        for given, option in ((confinement.ptrace, "--allow-ptrace"), (confinement.userns, "--allow-userns")):
            parts += [option] if given else []
        if self.without:
            parts.append(f"WITHOUT {' '.join(sorted(self.without))}")
        return f"sandbox: {'; '.join(part for part in parts if part)}"

    def _recover(self, quiet: Callable[[str], None]) -> None:
        recover(self.repository, self.layout, self.record, quiet)

    def _command(self, argv: list[str]) -> Command:
        # Held to the end of this process: nobody closes the descriptor.
        ports = claim_ports(self.record.id)
        given = port_environment(ports and ports[0], self.record.id, self.record.branch)
        given["OVERLAYRUN_HELP"] = GUIDE
        given |= self.connections.environment
        here = self.record.root == self.repository.root
        command = command_of(self.record, self.options, argv, self.repository.prefix if here else "", given)
        command.confinement.shares_group = is_in_foreground()
        command.confinement.network = self.connections.network.is_own
        return command

    def _taker(self, live: LiveSandbox) -> Callable[..., Snapshot]:
        def take(
            reason: SnapshotReason, message: str | Account | None, *, force_large: bool = False
        ) -> Snapshot:
            from overlayrun.capture import capture  # pygit2: 60 ms, once something is to be taken

            if reason is SnapshotReason.INTERVAL and self.guests:
                self.guests.take_all(self.tell)
            words = message or self.options.message
            taken = capture(self.layout, self.record, reason, words, live, force_large=force_large)
            self._flush_meanwhile()
            return taken

        return take

    def _flush_meanwhile(self) -> None:
        """HOME, which no snapshot holds, follows the tree to the disk; not again and again at every step."""
        now = time.monotonic()
        if self.witness.flush is None and now - self.flushed >= _FLUSH_EVERY:
            from overlayrun.durable import flush_meanwhile

            self.flushed = now
            flush_meanwhile(self.layout, self.record)

    def _is_untouched(self) -> bool:
        """Whether a snapshot would find nothing: not in the tree, and not in a branch opened beside it."""
        return not self.guests and self._is_as_it_began()

    def _is_as_it_began(self) -> bool:
        place = self.place
        if self.record.is_whole:  # only a snapshot can tell
            return False
        # A snapshot leaves its hashes: what it took may have been removed since.
        return not os.path.exists(place.hashes) and not is_touched(place.upper, place.git_upper)

    def _answers(self, supervisor: Supervisor) -> Answers:
        from overlayrun.guests import Guests

        if self.known is None:
            live = supervisor.live
            self.known = self._answers_for(live, self.record, supervisor.take)
            self.guests = Guests(self.repository, self.layout, self.record, self.options, live)
            self.guests.door, self.guests.answering = supervisor, self._answers_for
            self.known.guests = self.guests
        return self.known

    def _answers_for(
        self, live: LiveSandbox, record: Record, take: Callable[..., Snapshot] | None
    ) -> Answers:
        from overlayrun.answers import Answers  # pygit2: 60 ms, once somebody asks
        from overlayrun.fork import Forks

        forks = Forks(self.layout, record)
        return Answers(live, self.layout, record, take, forks)

    def _close(self, live: LiveSandbox, outcome: Outcome, quiet: Callable[[str], None]) -> int:
        record = self.record
        assert record.last_run is not None
        self.witness.outcome = outcome
        if outcome.missing is not None:
            self.tell(f"{record.last_run.command[0]}: {os.strerror(outcome.missing)}")
        for text in (outcome.failure, outcome.note):
            if text:
                self.tell(text)
        for line in asked_lines(outcome.asked):
            (self.tell if outcome.status else quiet)(line)
        record.last_run.status = outcome.status
        record.last_run.blocked = self.connections.blocked
        for line in blocked_lines(self.connections.blocked):
            quiet(printable(line))
        was_throwaway = record.throwaway
        if self._is_as_it_began():
            return self._leave_untouched(outcome, quiet, is_throwaway=was_throwaway)
        from overlayrun.finish import finish  # pygit2, now that something changed

        try:
            self.witness.ending = finish(self.repository, self.layout, record, self.options, live, quiet)
        except OverlayrunError as err:
            self.witness.unsaved = err
            self.tell(f"the last snapshot failed: {err.brief}" + (f": {err.details}" if err.details else ""))
            self.tell(f"nothing is lost: the changes are in {self.place.upper}")
            self.tell(err.hint or f"make room, then: overlayrun snapshot {record.branch}")
            return outcome.status or OURS
        ending = self.witness.ending
        if record.is_whole and ending is not None and ending.taken.is_empty:
            return self._leave_untouched(outcome, quiet, is_throwaway=was_throwaway)
        self._end_run()
        if os.path.isdir(self.place.root):
            self._flush()
        return outcome.status

    def _leave_untouched(self, outcome: Outcome, quiet: Callable[[str], None], *, is_throwaway: bool) -> int:
        self._end_run()
        started = outcome.missing is None and outcome.failure is None
        if is_throwaway or not (started or self.prepared.resumed):
            self._drop()
        else:  # HOME may have changed; and what is not flushed looks torn after the next boot
            self._flush()
        quiet("nothing changed")
        return outcome.status

    def _flush(self) -> None:
        if self.witness.flush is not None:
            self.witness.flush(self.record)
            return
        from overlayrun.durable import sync_in_background

        sync_in_background(self.layout, [self.record])

    def _end_run(self) -> None:
        if not os.path.isdir(self.place.root):
            return
        assert self.record.last_run is not None
        self.record.last_run.ended = time.time()
        if not self.record.throwaway:
            # Who flushes for many flushes this too; until then an open run would only be recovered again.
            self.record.save(self.place.record, durable=self.witness.flush is None)

    def _drop(self) -> None:
        from overlayrun.removal import drop

        drop(self.layout, self.record, branch=True)
