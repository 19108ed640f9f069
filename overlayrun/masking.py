"""Secrets in text: what people and agents paste into prompts must not reach a commit or a record."""

from __future__ import annotations

import re
from typing import Final

from overlayrun.sandbox.environment import is_withheld

MASK: Final = "[masked]"

# Repetitions are bounded, possessive or end at what can't begin another: the text may be made to be slow.
# No possessive groups, only sets: Python 3.11.2 matches too much with them.
_START: Final = r"(?<![A-Za-z0-9_])"
_TOKENS: Final = (
    r"A(?:KIA|SIA|GPA|IDA|ROA)[0-9A-Z]{16}+",  # AWS
    r"AIza[0-9A-Za-z_-]{30,}+",  # Google
    r"gh[oprsu]_[0-9A-Za-z]{16,}+",  # GitHub
    r"github_pat_[0-9A-Za-z_]{16,}+",
    r"gl(?:pat|ptt|dt|rt|cbt|ft|soat|oas)-[0-9A-Za-z_.-]{16,}+",  # GitLab
    r"xox[a-z](?:\.xox[a-z])?-[0-9A-Za-z-]{8,}+",  # Slack
    r"xapp-[0-9A-Za-z-]{8,}+",
    r"[prs]k_(?:live|test)_[0-9A-Za-z]{10,}+",  # Stripe
    r"sk-(?=[A-Za-z_-]{0,80}[0-9])[0-9A-Za-z_-]{16,}+",  # models; "sk-" of words alone has no digit
    r"npm_[0-9A-Za-z]{30,}+",
    r"pypi-[0-9A-Za-z_-]{16,}+",
    r"hf_[0-9A-Za-z]{30,}+",
    r"eyJ[0-9A-Za-z_-]{8,2000}+\.[0-9A-Za-z_-]{8,}+\.[0-9A-Za-z_-]{8,}+",  # JSON web tokens
)
_TOKEN: Final = re.compile(rf"{_START}(?:{'|'.join(_TOKENS)})")
_KEY: Final = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:.*?-----END (?P=kind)-----|.*)",  # one that is cut off goes to the end
    re.DOTALL,
)
_URL: Final = re.compile(r"(?P<before>://[^\s/:@]*+:)[^\s/]+(?P<after>@)")
_HEADER: Final = re.compile(
    rf"{_START}(?P<before>(?:(?:proxy-)?authorization|(?:x-)?api-key|x-auth-token|private-token)"
    r"\\?[\"']?[ \t]{0,4}[:=][ \t]{0,4}\\?[\"']?(?:(?:basic|bearer|digest|negotiate|token)[ \t]{1,4})?)"
    r"[^\s\"',\\]++",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(
    rf"{_START}(?P<before>bearer[ \t]{{1,4}})"
    r"(?:(?=[A-Za-z._~+/=-]{0,200}[0-9])[0-9A-Za-z._~+/=-]{8,}+|[0-9A-Za-z._~+/=-]{20,}+)",
    re.IGNORECASE,
)
# NAME=value, and what YAML, JSON and programs write for it; a backslash stands before quotes within quotes.
_ASSIGNED: Final = re.compile(
    rf"{_START}(?P<name>[A-Za-z_][A-Za-z0-9_]*+)\\?[\"']?(?P<sign>=(?!=)|[ \t]{{0,4}}[:=](?!=)[ \t]{{0,4}})"
    r"(?:\\?\"(?P<double>[^\"\\\n]++)|\\?'(?P<single>[^'\\\n]++)"
    r"|(?P<bare>[^\s\"'&\\](?:[^\s&]|&(?![A-Za-z_][A-Za-z0-9_]{0,80}=))*))"
)


def mask_text(text: str) -> str:
    """`text` with `[masked]` for every secret that its form or its name gives away.

    Known forms: private key blocks, tokens of the usual services, Authorization values, `user:password@` in
    URLs, and NAME=value where the sandbox withholds a variable of that name, or NAME alone says that it is a
    secret. A secret without form or name stays: nobody can tell it from a word.
    """
    text = _KEY.sub(MASK, text)
    text = _URL.sub(rf"\g<before>{MASK}\g<after>", text)
    text = _HEADER.sub(rf"\g<before>{MASK}", text)
    text = _BEARER.sub(rf"\g<before>{MASK}", text)
    text = _TOKEN.sub(MASK, text)
    return _ASSIGNED.sub(_assigned, text)


def _assigned(found: re.Match[str]) -> str:
    name, sign, kind = found["name"], found["sign"], found.lastgroup or ""
    if not _is_secret(name) or (kind == "bare" and sign != "=" and _is_loose(name, sign, found[kind])):
        return found[0]
    begin, end = (place - found.start() for place in found.span(kind))
    return f"{found[0][:begin]}{MASK}{found[0][end:]}"


def _is_loose(name: str, sign: str, value: str) -> bool:
    """Whether it is prose ("token: the one of yesterday") or code ("api_key = make()"), and no value."""
    return "=" in sign or ("_" not in name and not (len(value) > 5 and any(map(str.isdigit, value))))


def _is_secret(name: str) -> bool:
    """Whether a value of this name is one: what the sandbox withholds, and the model's keys too."""
    upper = name.upper()
    is_ours = upper.startswith("OVERLAYRUN_")  # such name a branch or a path, and are withheld all the same
    return (
        (is_withheld(name) and not is_ours)
        or is_withheld(f"_{upper}")
        or upper.endswith(("API_KEY", "APIKEY"))
    )
