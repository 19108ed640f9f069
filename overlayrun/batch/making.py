"""From a draft to a task: placeholders filled in, spans and sizes as numbers, every fault noted."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Protocol

from overlayrun.batch.drafts import Draft, as_text
from overlayrun.batch.fields import Note
from overlayrun.batch.reading import shown
from overlayrun.batch.task import Outcome, Task
from overlayrun.batch.template import names_in, quoted_names, render, slug
from overlayrun.errors import UsageError
from overlayrun.model import RunOptions
from overlayrun.sandbox.network import parse_net
from overlayrun.sandbox.profiles import parse_profile
from overlayrun.sandbox.switches import parse_without
from overlayrun.store.refs import parse_branch_name
from overlayrun.values import seconds, size

DEFAULT_BRANCH: Final = "batch/{run}/{id}"
_FIELDS: Final = {field.name: field for field in dataclasses.fields(Task)}
# Run options that a task has no field of its own for.
_OPTIONS: Final = tuple(name for name in RunOptions.__annotations__ if name not in _FIELDS)
_PARSERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "into": parse_branch_name,
    "net": lambda text: parse_net(text, strict=False),
    "profile": parse_profile,
    "without": parse_without,
}
_OWN_NAMES: Final = frozenset({"id", "group", "n", "run"})
_LONGEST_WORD: Final = (128 << 10) - 1  # bytes; MAX_ARG_STRLEN of linux/binfmts.h less the final zero
_LONGEST_FILE: Final = 1 << 20
_LONGEST_PART: Final = 100


class AgentCommand(Protocol):
    """An agent that can be given a prompt."""

    def command(self, prompt: str, model: str | None, /) -> tuple[str, ...]:
        """Argv of a run that needs no person."""


class Maker:
    """Makes tasks of one batch. directory: what paths in the file are relative to."""

    def __init__(self, run: str, agents: Mapping[str, AgentCommand], directory: str, note: Note) -> None:
        self.run = run
        self.agents = agents
        self.directory = directory
        self.note = note
        self._files: dict[str, str] = {}

    def task(self, draft: Draft) -> Task:
        """The task of a draft, with its needs as they were written; what is wrong is noted and left out."""
        return _Making(self, draft).task()

    def read(self, path: str) -> str:
        """Text of a prompt's file. Raises ValueError with what is wrong."""
        if path not in self._files:
            self._files[path] = _read_text(os.path.join(self.directory, path))
        return self._files[path]


def _read_text(path: str) -> str:
    try:
        # Not to wait for a writer, where it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("is no regular file")
            data = file.read(_LONGEST_FILE + 1)
        text = data.decode("utf-8-sig").strip("\n")
    except OSError as err:
        raise ValueError(f"can't be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ValueError("is no text in UTF-8") from err
    if len(data) > _LONGEST_FILE or not text.strip() or "\0" in text:
        raise ValueError("is empty, binary or larger than 1 MiB")
    return text


class _Making:
    def __init__(self, maker: Maker, draft: Draft) -> None:
        self.maker = maker
        self.draft = draft
        self.given = draft.fields.values
        self.values = {
            **draft.values,
            "id": draft.id,
            "group": draft.group,
            "n": str(draft.number),
            "run": maker.run,
        }

    def task(self) -> Task:
        prompt = self._prompt()
        if prompt is not None:
            self.values["prompt"] = prompt
        command = self._command(prompt)
        variables, let_in = self._environment()
        fields = {
            "base": self._text("base"),
            "check": self._shell("check"),
            "judge": self._shell("judge"),
            "needs": tuple(self._needs()),
            "provider": self.given.get("provider"),
            **self._limits(),
        }
        return Task(
            id=self.draft.id,
            command=command,
            branch=self._branch(),
            group=self.draft.group,
            agent=self.given.get("agent"),
            prompt=prompt,
            env=variables,
            options=self._options(let_in),
            values=self.draft.values,
            **{name: value for name, value in fields.items() if value is not None},
        )

    def wrong(self, name: str, message: str) -> None:
        self.maker.note(self.draft.fields.problem(name, message))

    def _filled(self, name: str, text: str, quote: Callable[[str], str] = str) -> str:
        for unknown in dict.fromkeys(names_in(text)):
            if unknown not in self.values:
                self.wrong(name, self._unknown(unknown))
        if quote is shlex.quote:
            for quoted in dict.fromkeys(quoted_names(text)):
                self.wrong(name, f"{{{quoted}}} stands in quotes: take them away, it is quoted already")
        return render(text, self.values, quote)

    def _unknown(self, name: str) -> str:
        if name == "attempt":
            return "{attempt} is not known before the attempt: its command has it as $OVERLAYRUN_ATTEMPT"
        known = ", ".join(sorted(self.values))
        return f"{{{name[:40]}}} has no value; write {{{{{name[:40]}}}}} for that very text; known: {known}"

    def _text(self, name: str) -> str | None:
        return self._filled(name, self.given[name]) if name in self.given else None

    def _shell(self, name: str) -> str | None:
        return self._filled(name, self.given[name], shlex.quote) if name in self.given else None

    def _prompt(self) -> str | None:
        path = self._text("prompt_file")
        if path is None:
            return self._text("prompt")
        try:
            return self._filled("prompt_file", self.maker.read(path))
        except ValueError as err:
            self.wrong("prompt_file", f"{shown(path)} {err}")
            return None

    def _command(self, prompt: str | None) -> tuple[str, ...]:
        words = self._words(prompt)
        if any(len(os.fsencode(word)) > _LONGEST_WORD for word in words):
            self.wrong("command", "has a word longer than 128 KiB, which no command can take")
        return words

    def _words(self, prompt: str | None) -> tuple[str, ...]:
        agent, command = self.given.get("agent"), self.given.get("command")
        if agent is None and self.draft.fields.is_own("model"):
            self.wrong("model", "goes with an agent, and there is none")
        if agent is not None and agent not in self.maker.agents:
            self.wrong("agent", _no_agent(agent, sorted(self.maker.agents)))
        if isinstance(command, str):
            return "/bin/sh", "-c", self._filled("command", command, shlex.quote)
        if command is not None:
            words = tuple(self._filled("command", word) for word in command)
            if not words or not words[0]:
                self.wrong("command", "has no name of a command")
            return words
        if agent is None:
            self.wrong(
                "command",
                "there is neither a command nor an agent: say one after --, by --agent or in the file",
            )
        elif prompt is None:
            self.wrong("agent", "has no prompt")
        elif agent in self.maker.agents:
            return self.maker.agents[agent].command(prompt, self.given.get("model"))
        return ()

    def _branch(self) -> str:
        text = self.given.get("branch", DEFAULT_BRANCH)
        self._filled("branch", text)
        parts = {
            name: value if name in _OWN_NAMES else "/".join(slug(part) for part in value.split("/"))
            for name, value in self.values.items()
        }
        branch = render(text, parts)
        try:
            return parse_branch_name(branch)
        except UsageError as err:
            self.wrong("branch", err.brief)
            return branch

    def _needs(self) -> Iterator[str]:
        needs = self.given.get("needs", ())
        for text in (needs,) if isinstance(needs, str) else needs:
            yield self._filled("needs", text)

    def _environment(self) -> tuple[dict[str, str], list[str]]:
        """Variables with values, and names of those that are let in."""
        env = self.given.get("env", {})
        variables = {
            name: self._filled("env", as_text(value)) for name, value in env.items() if value is not None
        }
        return variables, [name for name, value in env.items() if value is None]

    def _limits(self) -> dict[str, Any]:
        """Numbers and outcomes, by the names of `Task`."""
        found: dict[str, Any] = {}
        for name in ("timeout", "idle_timeout", "check_timeout"):
            if name in self.given:
                found[name] = _span(self.given[name]) or None
        for name in ("retry_on", "accept"):
            if name in self.given:
                found[name] = tuple(Outcome(word) for word in dict.fromkeys(self.given[name]))
        resources = self.given.get("resources", {})
        found |= {name: _size(resources[name]) for name in ("memory", "disk") if name in resources}
        if "cpus" in resources:
            found["cpus"] = float(resources["cpus"])
        kinds = {"attempts": int, "priority": int, "budget": float}
        return found | {name: kind(self.given[name]) for name, kind in kinds.items() if name in self.given}

    def _options(self, let_in: Sequence[str]) -> dict[str, Any]:
        options = {name: self.given[name] for name in _OPTIONS if name in self.given}
        if "every" in options:
            options["every"] = _span(options["every"])
        if "publish" in options:
            options["publish"] = list(map(int, options["publish"]))
        if "pids" in self.given.get("resources", {}):
            options["pids"] = int(self.given["resources"]["pids"])
        if let_in:
            options["env"] = list(let_in)
        for name, parse in _PARSERS.items():
            try:
                if name in options:
                    parse(options[name])
            except UsageError as err:
                self.wrong(name, re.sub(r"^--", "", err.brief))
        return options


def _no_agent(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name[:40], known, 1)
    return f"{shown(name)} is none of: {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")


def _span(value: str | float) -> float:
    return seconds(value) if isinstance(value, str) else float(value)


def _size(value: str | float) -> int:
    return size(value) if isinstance(value, str) else int(value)
