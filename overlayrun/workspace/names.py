"""Names for workspaces that were given none. On the launch path."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_WORDS: Final = (
    "amber ash basil bay birch brook cedar clay clover cobalt coral crane dale dawn delta dune ember fern "
    "finch flint fox frost gale glen grove hazel heron hill iris ivy jade juniper kestrel lake lark "
    "laurel linden lotus lynx maple marsh meadow mint moss oak olive onyx opal orchid otter pearl pine "
    "plum quartz quill rain reed ridge river robin rowan sage sand slate sorrel spruce star stone swan "
    "teal thorn thyme tide topaz tulip vale violet wave willow wren "
).split()
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def workspace_id() -> str:
    """Twelve random letters: 62 bits, never reused, no time in it."""
    return "".join(_LETTERS[byte % 36] for byte in os.urandom(12))


def branch_names(command: str) -> Iterator[str]:
    """`overlay/<command>-<word>`, each word once in random order, then with a number."""
    name = os.path.basename(command)
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    stem = plain.strip("-")[:40] or "run"
    start = int.from_bytes(os.urandom(2), "big")
    for turn in range(10_000):
        word = _WORDS[(start + turn) % len(_WORDS)]
        yield f"overlay/{stem}-{word}" + (f"-{turn // len(_WORDS) + 1}" if turn >= len(_WORDS) else "")
