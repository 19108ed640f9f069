"""What coordinator and worker send each other about an attempt: plain values, bounded, checked on arrival."""

from __future__ import annotations

import base64
import binascii
import importlib.metadata
import math
import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from overlayrun.batch.layout import AttemptLayout
from overlayrun.batch.result import CheckResult, Result
from overlayrun.batch.task import Attempt, Outcome
from overlayrun.errors import StoreError
from overlayrun.files import write_whole

LARGEST_BUNDLE: Final = 8 << 20  # bytes
_LARGEST_FILE: Final = 4 << 20  # bytes, of one artifact as text
_FILES: Final = ("stdout", "stderr", "events", "overlayrun", "check", "judge", "diff")
_LONGEST: Final = 2000  # characters of a text
_MOST_NOTES: Final = 100
_ID: Final = re.compile(r"[0-9a-f]{40}")


def version() -> str:
    """Of this overlayrun; a coordinator and its workers have the same."""
    return importlib.metadata.version("overlayrun")


def pack_files(place: AttemptLayout) -> dict[str, str]:
    """An attempt's artifacts by their names in `AttemptLayout`; what is too long lacks its middle."""
    packed = {}
    for name in _FILES:
        text = _shortened(getattr(place, name))
        if text is not None:
            packed[name] = base64.b64encode(zlib.compress(text)).decode("ascii")
    return packed


def unpack_files(place: AttemptLayout, packed: Mapping[str, Any]) -> None:
    """Write what `pack_files` gave; other names are left out. Raises StoreError for what is no such thing."""
    os.makedirs(place.root, mode=0o700, exist_ok=True)
    for name in _FILES:
        if name not in packed:
            continue
        squeezed = decode(packed[name], 2 * _LARGEST_FILE)
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(squeezed, 2 * _LARGEST_FILE)
        except zlib.error as err:
            raise StoreError(f"the artifact {name} is damaged: {err}") from err
        write_whole(getattr(place, name), text, durable=False)


def decode(text: Any, most: int) -> bytes:
    """Bytes of a base64 text, at most so many. Raises StoreError."""
    if not isinstance(text, str) or len(text) > most // 3 * 4 + 4:
        raise StoreError("a part of the answer is missing or too large")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise StoreError(f"a part of the answer is damaged: {err}") from err


def checked_result(attempt: Attempt, host: str, data: Any) -> Result:
    """A result that a host sent, as far as it can be believed. Raises StoreError for what is none.

    Names, refs and commands are the attempt's own, whatever the host says; times are put on this machine's
    clock. tip: an id, which nobody has seen yet.
    """
    if not isinstance(data, Mapping):
        raise StoreError("the answer holds no result")
    ended, tip = time.time(), data.get("tip")
    try:
        outcome = Outcome(data.get("outcome"))
    except ValueError as err:
        raise StoreError(f"the answer holds no outcome: {str(data.get('outcome'))[:40]!a}") from err
    if tip is not None and not (isinstance(tip, str) and _ID.fullmatch(tip)):
        raise StoreError("the answer names no commit")
    notes = data.get("notes")
    return replace(
        ours_result(attempt, host, outcome, _text(data.get("detail"))),
        started=ended - _seconds(data),
        ended=ended,
        tip=tip,
        status=_status(data.get("status")),
        files=_count(data.get("files")) or 0,
        insertions=_count(data.get("insertions")) or 0,
        deletions=_count(data.get("deletions")) or 0,
        cost=_number(data.get("cost"), least=0.0),
        tokens_in=_count(data.get("tokens_in")),
        tokens_out=_count(data.get("tokens_out")),
        model=_text(data.get("model")),
        session=_text(data.get("session")),
        check=_check(attempt, data.get("check")),
        score=_number(data.get("score")),
        notes=tuple(str(note)[:_LONGEST] for note in notes[:_MOST_NOTES]) if isinstance(notes, list) else (),
    )


def ours_result(attempt: Attempt, host: str, outcome: Outcome, detail: str | None) -> Result:
    """The result of an attempt of which there is none, or none that could be taken over."""
    now = time.time()
    return Result(
        run=attempt.run,
        task=attempt.task.id,
        attempt=attempt.number,
        outcome=outcome,
        started=now,
        ended=now,
        host=host,
        branch=attempt.task.branch,
        base=attempt.base,
        ref=attempt.ref,
        detail=detail,
    )


def _check(attempt: Attempt, data: Any) -> CheckResult | None:
    if not isinstance(data, Mapping) or attempt.task.check is None:
        return None
    status = _status(data.get("status"))
    seconds = _number(data.get("seconds"), least=0.0)
    return CheckResult(
        command=attempt.task.check, status=125 if status is None else status, seconds=seconds or 0.0
    )


def _seconds(data: Mapping[str, Any]) -> float:
    started, ended = _number(data.get("started")), _number(data.get("ended"))
    return max(0.0, ended - started) if started is not None and ended is not None else 0.0


def _text(value: Any) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) else None


def _number(value: Any, *, least: float = -math.inf) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= least else None


def _count(value: Any) -> int | None:
    number = _number(value, least=0.0)
    return None if number is None else int(number)


def _status(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 256 else None


def _shortened(path: str) -> bytes | None:
    """A file of ours, at most so long: the first and the last half, whole lines."""
    half = _LARGEST_FILE // 2
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _LARGEST_FILE:
                return file.read()
            head = file.read(half)
            file.seek(size - half)
            tail = file.read()
    except FileNotFoundError:
        return None
    head = head[: head.rfind(b"\n") + 1]
    tail = tail[tail.find(b"\n") + 1 :]
    if path.endswith(".jsonl"):
        return head + tail
    return head + b"[%d bytes stayed on the worker]\n" % (size - len(head) - len(tail)) + tail
