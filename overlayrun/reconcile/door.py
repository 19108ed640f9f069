"""What a branch may bring to the target: nothing that leads git astray, and carriers if the user agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from overlayrun.carriers import Carrier
from overlayrun.incoming import Incoming
from overlayrun.reconcile.paths import entry_at
from overlayrun.reconcile.queue import Item, approve_words, is_approved, listed
from overlayrun.reconcile.settings import ExecPolicy, Settings
from overlayrun.store.repo import Repo

Ask = Callable[[Item, Sequence[Carrier]], bool]
"""Asks the user whether a branch may bring these."""

_SHOWN: Final = 3  # faults in a sentence


class Obstacle(Enum):
    """Why a branch is not let through."""

    CONSENT = "consent"
    RESOLUTION = "resolution"
    DECLINED = "declined"
    BARE = "bare"
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Withheld:
    """A branch that could land and is not let through. why: in words. carriers: that nobody agreed to."""

    item: Item
    obstacle: Obstacle
    why: str
    carriers: tuple[Carrier, ...] = ()


class Door:
    """Looks at what would land, and remembers what the user agreed to."""

    def __init__(self, repo: Repo, settings: Settings, ask: Ask | None) -> None:
        """ask: None where there is nobody to ask."""
        self._repo = repo
        self._settings = settings
        self._ask = ask
        self._agreed: set[tuple[str, Carrier]] = set()

    def withheld(self, item: Item, found: Incoming, *, is_resolved: bool) -> Withheld | None:
        """Why a branch that brings `found` may not pass; None where it may.

        is_resolved: a conflict of it was resolved, so that it brings what nobody may have seen yet.
        """
        if found.unsafe:
            return Withheld(item, Obstacle.UNSAFE, f"unsafe content: {'; '.join(found.unsafe[:_SHOWN])}")
        if found.bare and not self._settings.allow_bare_layout:
            why = f"it holds a bare git repository at {listed(found.bare)}"
            return Withheld(item, Obstacle.BARE, f"{why}: overlayrun merge {item.branch} --allow-bare-layout")
        new = tuple(
            carrier
            for carrier in found.carriers
            if not self._is_agreed(item, carrier, is_resolved=is_resolved)
        )
        if not new:
            return None
        if self._ask is None:
            return self._unasked(item, new, is_resolved=is_resolved)
        if not self._ask(item, new):
            return Withheld(item, Obstacle.DECLINED, "you did not want it", new)
        self._agreed |= {(item.record.id, carrier) for carrier in new}
        return None

    def _is_agreed(self, item: Item, carrier: Carrier, *, is_resolved: bool) -> bool:
        if self._settings.exec is ExecPolicy.ALLOW or (item.record.id, carrier) in self._agreed:
            return True
        seen = (
            not is_resolved
            or entry_at(self._repo, self._repo.tree_of(item.tip), carrier.path) == carrier.entry
        )
        return seen and is_approved(self._repo, item)

    @staticmethod
    def _unasked(item: Item, new: tuple[Carrier, ...], *, is_resolved: bool) -> Withheld:
        if not is_resolved:
            return Withheld(item, Obstacle.CONSENT, approve_words(item, new), new)
        paths = listed([carrier.path for carrier in new])
        why = f"its conflict is resolved, with files that run code ({paths}): overlayrun merge {item.branch}"
        return Withheld(item, Obstacle.RESOLUTION, why, new)
