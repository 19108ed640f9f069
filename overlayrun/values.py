"""Values as a user writes them, in options, in git configuration, in a file. On the launch path."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
_SIZES: Final = {"k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
_SUCH_AS: Final = {
    "SPAN": "90s or 20m",
    "SIZE": "512M or 4G",
    "PROVIDER=N/SPAN": "anthropic=30/m",
    "N": "4",
    "I/N": "2/8",
}
_TRUE: Final = frozenset({"true", "yes", "on", "1", ""})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


def seconds(text: str) -> float:
    """A span: `30s`, `20m`, `1.5h`, or plain seconds. Raises ValueError."""
    factor = _UNITS.get(text[-1:], 0)
    value = float(text[:-1]) * factor if factor else float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


def size(text: str) -> int:
    """A size in bytes: `512M`, `4G`, `1.5g`, or plain bytes. Raises ValueError."""
    power = _SIZES.get(text[-1:].lower(), 0)
    value = float(text[:-1] if power else text) * (1 << power)
    if not 0 < value < 1 << 63:
        raise ValueError(text)
    return int(value)


def count(text: str) -> int:
    """A number of things, at least one. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError(text)
    return int(text)


def cores(text: str) -> float:
    """Processors' worth of time, more than none: `2`, `0.5`. Raises ValueError."""
    value = float(text)
    if not 0 < value < 1 << 20:
        raise ValueError(text)
    return value


def port(text: str) -> int:
    """A TCP port. Raises ValueError."""
    number = count(text)
    if number > 65535:
        raise ValueError(text)
    return number


def wanted(metavar: str) -> str:
    """What an option takes, in a message about a value that it can't take."""
    example = _SUCH_AS.get(metavar)
    return f"{metavar}, such as {example}" if example else metavar


def shown(value: object) -> str:
    """A default as it would be typed; "" for none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s"
    if isinstance(value, int) and value >= 1 << 30 and not value % (1 << 30):
        return f"{value >> 30}G"
    return str(value) if value else ""


def switch(text: str) -> bool:
    """A switch, as git-config(1) reads one. Raises ValueError."""
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(text)
    return word in _TRUE
