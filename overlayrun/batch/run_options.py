"""The options of an attempt's run: the batch's, and over them the task's own; as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from overlayrun.batch.task import Attempt
from overlayrun.batch.transcript import AGENTS
from overlayrun.errors import UsageError
from overlayrun.model import AgentState, BackendKind, CarryPolicy, DirtyPolicy, HomePolicy, RunOptions

_CHOICES: Final[Mapping[str, type[Enum]]] = {
    "dirty": DirtyPolicy,
    "carry": CarryPolicy,
    "backend": BackendKind,
    "home": HomePolicy,
    "agent_state": AgentState,
}
# An attempt has a branch of its own, and leaves it.
_OF_BRANCH: Final[Mapping[str, Any]] = {"rm": False, "keep": False, "apply": False, "quiet": False}


def options_of(base: RunOptions, attempt: Attempt) -> RunOptions:
    """Options of an attempt's run: the batch's, and over them the task's own. Raises UsageError."""
    task = attempt.task
    own = {
        "timeout": task.timeout,
        "idle_timeout": task.idle_timeout,
        "memory": task.memory,
        "disk": task.disk,
        "cpus": task.cpus,
        "message": task.prompt,
    }
    given = {
        **vars(base),
        **{name: value for name, value in own.items() if value is not None},
        **{name: _option(name, value) for name, value in task.options.items()},
        **_OF_BRANCH,
    }
    variables = {
        **(AGENTS[task.agent].environment if task.agent and task.agent in AGENTS else {}),
        **task.env,
        "OVERLAYRUN_BATCH": attempt.run,
        "OVERLAYRUN_TASK": task.id,
        "OVERLAYRUN_ATTEMPT": str(attempt.number),
    }
    own_variables = [f"{name}={value}" for name, value in variables.items()]
    given["env"] = [*base.env, *task.options.get("env", ()), *own_variables]
    return RunOptions(**{**given, "branch": task.branch, "base": attempt.base})


def let_in(env: Sequence[str]) -> dict[str, str]:
    """Variables that `--env` lets in (`RunOptions.env`), with their values."""
    named = (one.partition("=") for one in env)
    return {name: value if given else os.environ.get(name, "") for name, given, value in named}


def options_to_json(options: RunOptions) -> dict[str, Any]:
    """Plain values."""
    return {name: value.value if isinstance(value, Enum) else value for name, value in vars(options).items()}


def options_from_json(data: Mapping[str, Any]) -> RunOptions:
    """The inverse of `options_to_json`. Raises UsageError."""
    return RunOptions(**{name: _option(name, value) for name, value in data.items()})


def _option(name: str, value: Any) -> Any:
    """A run option's value from its form in JSON."""
    if name not in _CHOICES or value is None:
        return value
    try:
        return _CHOICES[name](value)
    except ValueError as err:
        raise UsageError(f"option {name} can't be {value!a}") from err
