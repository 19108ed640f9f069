"""Text of the commits that a snapshot makes, and back."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

TRAILER: Final = "Overlayrun-"
_SUBJECT: Final = 100
# C0 and C1 controls, line and paragraph separators, and what turns text around, hides it or is hidden text
# itself (tags: a reader who is a model sees what a person does not).
_CONTROLS: Final = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def printable(text: str, *, one_line: bool = False) -> str:
    """`text` with control characters, and bytes that are no UTF-8, as visible escapes."""
    if one_line:
        text = text.replace("\n", "\\n").replace("\t", "\\t")
    text = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
    return text.encode("utf-8", "backslashreplace").decode()


def format_message(text: str, summary: str, trailers: Mapping[str, str]) -> str:
    """Subject and body of `text`, then `summary`, then a paragraph of trailers.

    The trailers stand last, so that nothing in `text` can pass for one.
    """
    subject, _, body = printable(text).strip().partition("\n")
    if len(subject) > _SUBJECT:
        subject, body = f"{subject[: _SUBJECT - 1]}…", f"{subject}\n{body}"
    lines = "\n".join(f"{TRAILER}{key}: {printable(value, one_line=True)}" for key, value in trailers.items())
    return "\n\n".join(part for part in (subject.strip(), body.strip(), summary, lines) if part) + "\n"


def parse_trailers(message: str) -> dict[str, str]:
    """Trailers of a message that `format_message` made, without their prefix; {} for any other message."""
    last = message.rstrip().rpartition("\n\n")[2]
    pairs = (line.partition(": ") for line in last.split("\n"))
    return {key.removeprefix(TRAILER): value for key, _, value in pairs if key.startswith(TRAILER)}


def format_commit(tree: bytes, parents: Sequence[str], identity: bytes, when: int, message: str) -> bytes:
    """Raw commit object; tree: raw id; when: seconds since the epoch, written in the host's time zone."""
    minutes = time.localtime(when).tm_gmtoff // 60
    zone = b"%b%02d%02d" % (b"-" if minutes < 0 else b"+", abs(minutes) // 60, abs(minutes) % 60)
    who = b"%b %d %b" % (identity, when, zone)
    lines = [b"tree " + tree.hex().encode(), *(b"parent " + parent.encode() for parent in parents)]
    lines += [b"author " + who, b"committer " + who, b"", message.encode("utf-8", "backslashreplace")]
    return b"\n".join(lines)
