"""What an agent tells of its work: the account of one step, and the session that the steps belong to.

Both are an agent's words: data, bounded and masked here, never an identity, a date or a path of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

from overlayrun.masking import mask_text
from overlayrun.store.commits import printable

SUBJECT: Final = 100  # characters
_LINES: Final = {"title": 200, "agent": 200, "session": 200, "model": 200, "tool": 200, "subject": SUBJECT}
_TEXTS: Final = {"prompt": 4000, "said": 8000}
_PROMPTS: Final = 20
_OF_PROMPTS: Final = 16_000  # characters of all that a session keeps


@dataclass(frozen=True, slots=True)
class Account:
    """One step in the agent's words; every field may be empty.

    session: its id. tool: what did the step, "" at the end of a turn. prompt: the user's words; said: the
    assistant's. Safe to print, secrets masked; all but prompt and said have one line.
    """

    agent: str = ""
    session: str = ""
    title: str = ""
    model: str = ""
    tool: str = ""
    subject: str = ""
    prompt: str = ""
    said: str = ""

    @classmethod
    def parse(cls, data: object) -> Self | None:
        """From what an agent sent; None where that is no object. What is no text in it is left out."""
        if not isinstance(data, Mapping):
            return None
        told = {name: value for name in (*_LINES, *_TEXTS) if isinstance(value := data.get(name), str)}
        return cls(**{name: _clean(name, value) for name, value in told.items()})

    @property
    def closes_turn(self) -> bool:
        """Whether the agent has answered, and waits for the user."""
        return bool(self.said) and not self.tool


@dataclass(frozen=True, slots=True)
class Session:
    """What is known of the session that works in a workspace.

    prompts: the user's, oldest first; where there are many, the first and the newest. said: the assistant's
    last words. waits: it has answered, and the user has asked nothing since.
    """

    agent: str = ""
    id: str = ""
    title: str = ""
    model: str = ""
    prompts: tuple[str, ...] = ()
    said: str = ""
    waits: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self:
        """From a record; without one, or from an odd one, a session of which nothing is known."""
        known = {each.name for each in fields(cls)}
        told = {name: value for name, value in (data or {}).items() if name in known}
        return cls(**{**told, "prompts": tuple(told.get("prompts", ()))})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**told, "prompts": list(self.prompts)}

    @property
    def prompt(self) -> str:
        """What the user asked last."""
        return self.prompts[-1] if self.prompts else ""

    @property
    def last_message(self) -> str:
        """First line of what the assistant said last."""
        return first_line(self.said)

    def owns(self, account: Account) -> bool:
        """Whether an account is of this session, and not of another beside it (a sub-agent's)."""
        return not self.id or account.session in ("", self.id)

    def after(self, account: Account) -> Session:
        """The session once an account of its own came in; one with another id is the next session.

        The next keeps the prompts: they tell what the branch is for.
        """
        if not self.owns(account):
            return Session(prompts=self.prompts).after(account)
        is_asked = bool(account.prompt) and account.prompt != self.prompt
        waits = account.closes_turn or (self.waits and not is_asked and not account.tool)
        return Session(
            agent=account.agent or self.agent,
            id=account.session or self.id,
            title=account.title or self.title,
            model=account.model or self.model,
            prompts=_bounded((*self.prompts, account.prompt)) if is_asked else self.prompts,
            said=account.said or self.said,
            waits=waits,
        )

    def fill(self, account: Account) -> Account:
        """An account with what it leaves out, where it is of this session."""
        if not self.owns(account):
            return account
        return replace(
            account,
            agent=account.agent or self.agent,
            session=account.session or self.id,
            title=account.title or self.title,
            model=account.model or self.model,
            prompt=account.prompt or self.prompt,
        )

    def account(self) -> Account:
        """What a snapshot says for which nobody gave an account."""
        return self.fill(Account(said=self.said if self.waits else ""))


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")


def cut(text: str, length: int) -> str:
    """`text`, with an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _clean(name: str, text: str) -> str:
    # Masked before it is cut: a part of a secret is not known for one.
    masked = mask_text(text)
    if name in _LINES:
        return cut(printable(" ".join(masked.split()), one_line=True), _LINES[name])
    return cut(printable(masked.replace("\r\n", "\n")).strip(), _TEXTS[name])


def _bounded(prompts: tuple[str, ...]) -> tuple[str, ...]:
    first, *later = prompts
    while len(later) >= _PROMPTS or (len(later) > 1 and sum(map(len, later)) + len(first) > _OF_PROMPTS):
        later.pop(0)
    return (first, *later)
