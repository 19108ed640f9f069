"""What is kept of an attempt: logs, diff and bundle, bounded, and with secrets masked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from overlayrun.batch.bundles import write_bundle
from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.transcript import Transcript, parse_event
from overlayrun.errors import StoreError
from overlayrun.files import write_whole
from overlayrun.masking import MASK, mask_text
from overlayrun.sandbox.environment import is_withheld
from overlayrun.store.git import config_environment, git

LARGEST: Final = 10 << 20
"""Bytes of one log or diff, by default."""
_SHORTEST: Final = 6  # shorter values are words like "1" or "main", which would blank half of a log
_DEEPEST: Final = 200
_MARGIN: Final = 64 << 10  # masked with what is kept, so that no secret is cut in two and half of it shown
_SHORT: Final = 200
# A file of more is named, not shown: git would hold all of it in memory.
_LARGEST_FILE: Final = "8m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an attempt made. ref: that keeps the tip. bundle: whether to write one."""

    git_dir: str
    base: str
    tip: str
    ref: str
    bundle: bool = False


def secret_values(host: Mapping[str, str], let_in: Mapping[str, str]) -> tuple[str, ...]:
    """Values to mask: of variables whose names say secret. let_in: of the task's `env` and of --env.

    Host variables count though they are withheld from the command: other ways may lead to them. The model's
    own keys, which it is given, count too. Longest first, so that no value masks a part of another. A value
    of several lines counts by line.
    """
    found = (value for one in (host, let_in) for name, value in one.items() if _is_secret(name))
    lines = {line.strip() for value in found for line in value.splitlines()}
    return tuple(sorted((line for line in lines if len(line) >= _SHORTEST), key=lambda one: (-len(one), one)))


def _is_secret(name: str) -> bool:
    """By the ends of names that the sandbox goes by; not its handles (DISPLAY, PWD), which are no secrets."""
    upper = name.upper()
    return (
        is_withheld(f"_{upper}") or upper.endswith(("API_KEY", "APIKEY")) or upper.startswith("AWS_BEARER_")
    )


def mask(text: str, secrets: Sequence[str]) -> str:
    """`masking.mask_text`, and every secret of `secrets` in the form of text, JSON or a URL."""
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}:
            text = text.replace(form, MASK)
    return mask_text(text)


def write_artifacts(
    place: AttemptLayout,
    transcript: Transcript,
    secrets: Sequence[str],
    made: Made | None,
    *,
    limit: int = LARGEST,
) -> tuple[str, ...]:
    """Write what people and CI read of an attempt, and remove the raw files.

    overlayrun.log, check.log and judge.log are masked in place, where they are there. limit: bytes of each
    text; of a longer one, beginning and end are kept. The bundle is exact and whole: what the agent
    committed, secrets included. result: notes of what was cut or could not be written.
    Raises OSError where the folder can't be written.
    """
    keep = _Keeper(secrets, limit)
    if transcript.agent:
        keep.text(place.stdout, transcript.text)
        keep.events(place.output, place.events)
    else:
        keep.file(place.output, place.stdout)
    keep.file(place.errors, place.stderr)
    for path in (place.overlayrun, place.check, place.judge):
        if os.path.lexists(path):
            keep.file(path, path)
    if made:
        keep.made(place, made)
    for raw in (place.output, place.errors):
        with suppress(FileNotFoundError):
            os.unlink(raw)
    return tuple(keep.notes)


class _Keeper:
    """Writes masked, bounded files."""

    def __init__(self, secrets: Sequence[str], limit: int) -> None:
        self._secrets = secrets
        self._limit = limit
        self._mask_short = lru_cache(4096)(self._mask)  # most texts in events are names, again and again
        self.notes: list[str] = []

    def text(self, path: str, text: str) -> None:
        """Mask and write."""
        write_whole(path, self._mask(text).encode("utf-8", "replace"), durable=False, mode=0o644)

    def file(self, source: str, path: str) -> None:
        """Mask a file's text, of a long one its ends; `path` may be `source` itself."""
        with suppress(FileNotFoundError):
            self.text(path, self._ends(source, path))

    def _ends(self, source: str, path: str) -> str:
        half, size = self._limit // 2, os.path.getsize(source)
        with open(source, "rb") as file:
            if size <= self._limit:
                return file.read(self._limit).decode("utf-8", "replace")
            head = self._mask(file.read(half + _MARGIN).decode("utf-8", "replace"))[:half]
            file.seek(size - half - _MARGIN if size > half + _MARGIN else 0)
            tail = self._mask(file.read(half + _MARGIN).decode("utf-8", "replace"))[-half:]
        return f"{head}{self._cut(path, size - 2 * half)}{tail}"

    def events(self, source: str, path: str) -> None:
        """Mask a file of JSON lines so that they stay JSON; what is no JSON becomes a text event."""
        with suppress(FileNotFoundError), open(source, "rb") as file:
            half, size = self._limit // 2, os.path.getsize(source)
            lines = list(self._events(file.read(half if size > self._limit else size)))
            if size > self._limit:
                file.seek(size - half)
                tail = file.read(half)
                note = {"type": "text", "text": self._cut(path, size - 2 * half).strip()}
                # What was cut in two is no event.
                lines = [*lines[:-1], json.dumps(note), *self._events(tail.partition(b"\n")[2])]
            write_whole(path, "".join(f"{line}\n" for line in lines).encode(), durable=False, mode=0o644)

    def _events(self, data: bytes) -> Iterator[str]:
        for line in data.split(b"\n"):
            if line.strip():
                event: object = parse_event(line)
                if event is None:
                    event = {"type": "text", "text": line.decode("utf-8", "replace")}
                yield json.dumps(self._masked(event))

    def _masked(self, value: Any, depth: int = 0) -> Any:
        """A JSON value with every text in it masked, keys and what stands under a secret's name included."""
        if isinstance(value, str):
            return self._mask_short(value) if len(value) <= _SHORT else self._mask(value)
        if isinstance(value, list | dict) and depth > _DEEPEST:
            return "[nested too deep]"
        if isinstance(value, list):
            return [self._masked(each, depth + 1) for each in value]
        if isinstance(value, dict):
            return {self._masked(name): self._entry(name, each, depth + 1) for name, each in value.items()}
        is_number = not isinstance(value, float) or math.isfinite(
            value
        )  # Python alone reads and writes "NaN"
        return value if is_number else None

    def _entry(self, name: str, value: Any, depth: int) -> Any:
        hidden = isinstance(value, str) and value and self._mask_short(f"{name}=0value0").endswith(MASK)
        return MASK if hidden else self._masked(value, depth)

    def made(self, place: AttemptLayout, made: Made) -> None:
        """Diff and bundle."""
        with self._noted("diff"):
            self._diff(place.diff, made)
        if made.bundle:
            with self._noted("bundle"):
                write_bundle(place.bundle, made.git_dir, made.base, made.ref)

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """What git can't write is noted, and the rest is written."""
        try:
            yield
        except StoreError as err:
            why = f"{err.brief}: {err.details.splitlines()[-1]}" if err.details else err.brief
            self.notes.append(f"no {what} was written: {why}")

    def _diff(self, path: str, made: Made) -> None:
        raw = f"{path}.raw"
        try:
            write_diff(raw, made)
            self.file(raw, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(raw)

    def _cut(self, path: str, left_out: int) -> str:
        self.notes.append(f"{os.path.basename(path)}: {left_out:,} bytes in the middle were left out")
        return f"\n[{left_out:,} bytes left out]\n"

    def _mask(self, text: str) -> str:
        return mask(text, self._secrets)


def write_diff(path: str, made: Made) -> None:
    """Write what was made as a patch for people: a binary or huge file is named, not shown.

    Nothing is masked. No program and no attributes of the checkout have a say in it. Raises StoreError.
    """
    rules = config_environment(
        [("core.attributesFile", os.devnull), ("core.bigFileThreshold", _LARGEST_FILE)]
    )
    options = ["--no-ext-diff", "--no-textconv", "--no-color", "--find-renames", "--no-commit-id", "-p", "-r"]
    # Attributes are looked for below the current directory.
    git(
        ["diff-tree", *options, f"--output={path}", made.base, made.tip, "--"],
        git_dir=made.git_dir,
        cwd=made.git_dir,
        env=rules,
    )
