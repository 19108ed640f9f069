"""Which prefixes of a chain of candidates to check next. Pure: numbers in, numbers out.

A chain of n candidates stands on a base that is known to pass. Prefix k is the candidates 1 to k, tested as
one tree. Several prefixes are checked at the same time; the longest that passes lands, and where one fails
the gap below it is split into as many parts as there are slots. A failure counts against a candidate only
when everything before it has landed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A chain of n candidates that fail alone with probability p passes with (1 - p)^n: about a half at 0.7 / p.
_EVEN_ODDS: Final = 0.7


@dataclass(frozen=True, slots=True)
class Odds:
    """How often candidates have failed so far. It begins as if one in twenty had."""

    judged: float = 1.0
    failed: float = 0.05

    def after(self, *, passed: int, failed: int) -> Odds:
        """With more of them judged."""
        return Odds(self.judged + passed + failed, self.failed + failed)

    def reach(self, slots: int) -> int:
        """How many candidates to take into one segment."""
        return max(slots, round(_EVEN_ODDS * self.judged / self.failed))


def prefixes(length: int, failing: int | None, slots: int, reach: int) -> list[int]:
    """Lengths of the prefixes to check next, shortest first; at most `slots`.

    length: of the chain. failing: the shortest prefix known to fail. Empty when the first candidate alone is
    known to fail, or when there is none.
    """
    if failing is None:
        limit = min(length, reach)
        count = min(slots, limit)
        return sorted({round(part * limit / count) for part in range(1, count + 1)})
    count = min(slots, failing - 1)
    return sorted({max(1, round(part * failing / (count + 1))) for part in range(1, count + 1)})


def each_prefix(length: int, slots: int) -> list[int]:
    """The same where every single candidate must pass."""
    return list(range(1, min(length, slots) + 1))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one round of checks says.

    lands: length of the prefix that lands. failing: the shortest prefix of what is left that is known to
    fail, counted from there.
    """

    lands: int
    failing: int | None


def judge(passed: dict[int, bool], failing: int | None, *, each: bool = False) -> Verdict:
    """Draw the conclusion from prefix lengths and whether they passed.

    A longer prefix that passes covers a shorter one that failed, unless each candidate must pass alone.
    """
    bad = sorted(length for length, good in passed.items() if not good)
    if failing is not None:
        bad.append(failing)
    good = [length for length, fine in passed.items() if fine and not (each and bad and length > min(bad))]
    lands = max(good, default=0)
    left = [length - lands for length in bad if length > lands]
    return Verdict(lands, min(left, default=None))
