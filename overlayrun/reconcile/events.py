"""What the reconciler tells while it works, for a table, for plain lines and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class EventKind(Enum):
    """What happened."""

    CHECKING = "checking"
    CHECKED = "checked"
    LANDED = "landed"
    CONFLICT = "conflict"
    RESOLVING = "resolving"
    RESOLVED = "resolved"
    REFUSED = "refused"
    FAILED = "failed"
    PARKED = "parked"
    HELD = "held"
    DELIVERED = "delivered"
    NOTE = "note"
    TICK = "tick"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. branch: whose. text: a line for the user. data: plain values for programs."""

    kind: EventKind
    branch: str | None
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
