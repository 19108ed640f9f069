"""What a sandbox is to execute: directory, environment, and what is given up before. On the launch path."""

from __future__ import annotations

import os

from overlayrun.keeper import Command
from overlayrun.kernel import namespaces
from overlayrun.sandbox.confinement import Confinement
from overlayrun.sandbox.environment import sandbox_environment
from overlayrun.sandbox.limits import LimitOptions
from overlayrun.sandbox.plan import CONTROL, SSH_AGENT
from overlayrun.sandbox.profiles import own_variables, plugin_variables
from overlayrun.sandbox.switches import parse_without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from overlayrun.model import RunOptions
    from overlayrun.workspace.record import Record


def command_of(
    record: Record, options: RunOptions, argv: Sequence[str], directory: str, given: Mapping[str, str]
) -> Command:
    """The command of a run. directory: below the repository's root. given: variables that this run has."""
    cwd = os.path.join(record.root, directory).rstrip("/")
    own = {
        "OVERLAYRUN_BRANCH": record.branch,
        "OVERLAYRUN_ID": record.id,
        "OVERLAYRUN_SOCKET": f"{CONTROL}/control",
        **({"SSH_AUTH_SOCK": SSH_AGENT} if options.ssh_agent else {}),
        "PWD": cwd,
    }
    without = parse_without(options.without)
    left_out = own_variables(record.profile) if record.has_own_agent_state else ()
    environment = sandbox_environment(
        {name: value for name, value in os.environ.items() if name not in left_out},
        own={**given, **own},
        wanted=options.env,
        strict=options.strict,
        withhold="environment" not in without,
    )
    environment |= plugin_variables(record.profile, environment)
    if namespaces.is_root_of_host():
        # Root's tar gives files to the archive's owners, who don't exist inside, and ends with status 2.
        environment["TAR_OPTIONS"] = f"--no-same-owner {environment.get('TAR_OPTIONS', '')}".strip()
    command = Command(argv, cwd, environment)
    command.confinement = Confinement(without)
    command.confinement.ptrace = options.allow_ptrace
    command.confinement.userns = options.allow_userns
    command.confinement.root_uid = record.root_uid
    command.confinement.limits = LimitOptions(options.memory, options.pids, options.cpus, options.disk)
    return command


def idle_command(record: Record) -> Command:
    """Nothing to run, and what git's work inside is confined to."""
    command = Command([], record.root, sandbox_environment(os.environ, own={}, wanted=()))
    command.confinement.root_uid = record.root_uid
    return command
