"""What an agent tells at the control socket goes to the workspace's record, and into its snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from overlayrun.account import SUBJECT, Account, Session, cut, first_line
from overlayrun.masking import mask_text
from overlayrun.store.commits import printable
from overlayrun.workspace.layout import Layout
from overlayrun.workspace.record import Record


def hear(layout: Layout, record: Record, told: object, *, leads: bool) -> Account | None:
    """Read an account, and keep in the record what it says of the session. None where it is no account.

    leads: the account's session is the workspace's from now on; else one that is another's, a sub-agent's,
    leaves the record as it is. The caller holds the lock.
    """
    account = Account.parse(told)
    if account is None:
        return None
    session = Session.from_json(record.session)
    if leads or session.owns(account):
        _keep(layout, record, session.after(account))
    return account


def words_of(layout: Layout, record: Record, request: Mapping[str, Any]) -> str | Account | None:
    """In whose words a snapshot was asked for; a message beside an account is the step's subject."""
    account = hear(layout, record, request.get("account"), leads=False)
    message = request.get("message")
    words = mask_text(message) if isinstance(message, str) else None
    if account is None or not words or account.subject:
        return account or words
    return replace(account, subject=cut(printable(first_line(words)), SUBJECT))


def _keep(layout: Layout, record: Record, session: Session) -> None:
    told = session.to_json()
    if told == record.session:
        return
    record.session = told
    # Where there is no room for it, the snapshot that follows says so.
    with suppress(OSError):
        if not record.throwaway:
            record.save(layout.workspace(record.id).record)
