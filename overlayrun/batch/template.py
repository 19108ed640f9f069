"""Placeholders in the texts of a task, and names made from any text. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final

# A brace after `$` or `@` is a shell's, JavaScript's or a revision's own (`${HOME}`, `main@{upstream}`); one
# around anything but a name is JSON's or code's.
_PLACEHOLDER: Final = re.compile(
    r"(?<![$@{])(?:\{\{(?P<text>[A-Za-z_][A-Za-z0-9_]*)\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\})"
)
_OTHER: Final = re.compile(r"[^A-Za-z0-9._]+")
_LONGEST_NAME: Final = 60


def names_in(text: str) -> list[str]:
    """Names of the placeholders in a text, in order."""
    return [found["name"] for found in _PLACEHOLDER.finditer(text) if found["name"]]


def render(text: str, values: Mapping[str, str], quote: Callable[[str], str] = str) -> str:
    """`text` with `{name}` replaced by its value, quoted, and `{{name}}` by `{name}`; all else as it is.

    A value's own braces are not looked at. A name without a value stays as it is: ask `names_in` before.
    """

    def replaced(found: re.Match[str]) -> str:
        if found["text"]:
            return f"{{{found['text']}}}"
        return quote(values[found["name"]]) if found["name"] in values else found[0]

    return _PLACEHOLDER.sub(replaced, text)


def quoted_names(text: str) -> list[str]:
    """Names of the placeholders that stand inside quotes of a shell's text.

    A value that is quoted once more there would be open to the shell.
    """
    found = []
    end, mark = 0, ""
    for placeholder in _PLACEHOLDER.finditer(text):
        mark = _open_quote(text[end : placeholder.start()], mark)
        end = placeholder.end()
        if placeholder["name"] and mark:
            found.append(placeholder["name"])
    return found


def _open_quote(text: str, mark: str) -> str:
    """The quote of sh(1) that is open at the end of a text, where `mark` was at its start; "" for none."""
    escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\" and mark != "'":
            escaped = True
        elif letter == mark:
            mark = ""
        elif letter in "'\"" and not mark:
            mark = letter
    return mark


def slug(text: str, most: int = _LONGEST_NAME) -> str:
    """A name from any text: ASCII letters, digits and `._-`, at most so many; "" where nothing is left.

    It is good as a file's name and as a part of a ref: no `..`, no letter but a letter or digit at its ends,
    no `.lock`.
    """
    plain = unicodedata.normalize("NFKD", text[: 8 * most]).encode("ascii", "ignore").decode()
    name = _OTHER.sub("-", plain)
    name = re.sub(r"\.{2,}", ".", name).strip("-._")
    if len(name) > most:
        whole, dash, _ = name[: most + 1].rpartition("-")
        name = (whole if dash and len(whole) > most // 2 else name[:most]).strip("-._")
    return re.sub(r"\.lock$", "-lock", name, flags=re.IGNORECASE)
