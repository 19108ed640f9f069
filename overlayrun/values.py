"""Values as a user writes them, in options, in git configuration, in a file. On the launch path."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_TRUE: Final = frozenset({"true", "yes", "on", "1", ""})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


def seconds(text: str) -> float:
    """A span: `30s`, `20m`, `1.5h`, or plain seconds. Raises ValueError."""
    factor = _UNITS.get(text[-1:], 0)
    value = float(text[:-1]) * factor if factor else float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


def switch(text: str) -> bool:
    """A switch, as git-config(1) reads one. Raises ValueError."""
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(text)
    return word in _TRUE
