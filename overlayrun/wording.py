"""What the commits of a snapshot say: an agent's account where there is one, and the user's words with it."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from overlayrun.account import SUBJECT, Account, Session, cut, first_line
from overlayrun.model import SnapshotReason
from overlayrun.store.commits import printable

_QUOTE: Final = ">"
TOLD: Final = "Prompt"  # trailer: which prompt the step belongs to


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why a snapshot is taken, and in whose words. message: given for this one; task: for the whole run."""

    reason: SnapshotReason
    message: str | None
    account: Account | None = None
    session: Session = field(default_factory=Session)
    task: str | None = None

    @property
    def spoken(self) -> Account:
        """Whose step it is: the account's, else the session's."""
        return self.session.fill(self.account) if self.account else self.session.account()

    @property
    def known(self) -> Session:
        """The session with this account in it; a sub-agent's stays out."""
        if self.account is None or not self.session.owns(self.account):
            return self.session
        return self.session.after(self.account)


def snapshot_text(occasion: Occasion, told: str, default: str) -> str:
    """Subject and body of a snapshot: the step, and the prompt quoted below it where it is another.

    told: the trailer of the snapshot before, for the prompt that it belongs to.
    """
    step = occasion.spoken
    is_told = bool(step.prompt) and digest(step.prompt) == told
    head, rest = _head_and_rest(occasion.message or "")
    if not head:
        head = _head_of(step, is_account=occasion.account is not None, is_told=is_told)
        rest = step.said if head != step.said else ""
    quotes = [step.prompt] if step.prompt and not is_told else []
    return _compose(head or default, quotes, rest)


def _head_of(step: Account, *, is_account: bool, is_told: bool) -> str:
    """One line for a step; the prompt's only where a reader has not just read it."""
    asked, said = first_line(step.prompt), first_line(step.said)
    if not is_account:
        return step.title or asked
    return step.subject or (said if is_told and said else asked) or step.title


def branch_text(occasion: Occasion, default: str) -> str:
    """Subject and body of what the branch stands for: all that was asked, and what the agent said last.

    The user's own words for the run come first, then the session's title, then the first prompt.
    """
    session = occasion.known
    if session == Session():
        return occasion.message or (occasion.spoken.subject if occasion.account else "") or default
    head, rest = _head_and_rest(occasion.message or occasion.task or "")
    first = next(iter(session.prompts), "")
    if rest and (occasion.message or occasion.task or "").strip() == first:
        rest = ""  # it is quoted below
    head = head or session.title or first_line(first) or occasion.spoken.subject or default
    return _compose(head, session.prompts, "\n\n".join(part for part in (rest, session.said) if part))


def trailers_of(occasion: Occasion) -> dict[str, str]:
    """Trailers of a snapshot: whose step it is."""
    step = occasion.spoken
    prompt = digest(step.prompt) if step.prompt else ""
    found = {**_of_agent(step), "Tool": step.tool, TOLD: prompt}
    return {name: value for name, value in found.items() if value}


def branch_trailers(occasion: Occasion) -> dict[str, str]:
    """Trailers of what the branch stands for."""
    return _of_agent(occasion.known.fill(Account()))


def _of_agent(step: Account) -> dict[str, str]:
    found = {"Agent": step.agent, "Session": step.session, "Model": step.model}
    return {name: value for name, value in found.items() if value}


def command_text(argv: Sequence[str]) -> str:
    """A command as a shell would read it; of its program's absolute path the name alone."""
    program, *words = argv or [""]
    return shlex.join([os.path.basename(program) if os.path.isabs(program) else program, *words])


def digest(prompt: str) -> str:
    """Name of a prompt in a trailer."""
    return hashlib.sha256(prompt.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def quoted(message: str) -> str:
    """The prompt that `snapshot_text` quoted in a message; "" where it quoted none."""
    lines = message.partition("\n\n")[2].split("\n")
    count = next((at for at, line in enumerate(lines) if not line.startswith(_QUOTE)), len(lines))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:count])


def _quote(prompt: str) -> str:
    return "\n".join(f"{_QUOTE} {line}".rstrip() for line in prompt.split("\n"))


def _head_and_rest(text: str) -> tuple[str, str]:
    head, _, rest = text.strip().partition("\n")
    return head.strip(), rest.strip()


def _compose(head: str, quotes: Sequence[str], rest: str) -> str:
    # Cut here and not by `format_message`, which would put the whole of it between subject and quote.
    line = printable(head)
    if len(line) > SUBJECT and line not in map(first_line, (*quotes, rest)):
        rest = "\n\n".join(part for part in (line, rest) if part)
    return "\n\n".join(part for part in (cut(line, SUBJECT), *map(_quote, quotes), rest) if part)
