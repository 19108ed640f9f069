"""How to run a batch: limits, rates and waits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from overlayrun.errors import UsageError
from overlayrun.values import count, seconds


@dataclass(frozen=True, slots=True)
class Rate:
    """At most so many starts in a span of seconds."""

    starts: int
    span: float


def parse_rate(text: str) -> Rate:
    """A rate as a user writes it: `30/m`, `5/10s`. Raises UsageError."""
    number, _, span = text.partition("/")
    try:
        rate = Rate(count(number), seconds(span if span[:1].isdigit() else f"1{span}"))
        if span and rate.span > 0:
            return rate
    except ValueError:
        pass
    raise UsageError(f"not a rate: {text[:80]!a}", hint="write it like: 30/m, or 5/10s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run a batch. Spans in seconds, money in US dollars, None for no limit.

    jobs: attempts at a time, all machines together. stagger: least span between two starts. rates: by
    provider. max_failures: failed tasks after which nothing more is started. fail_fast: the first failure
    ends what runs too. budget: of the whole run, all its starts together. deadline: span of one start or
    resumption. backoff, hold: before a second try, and before a provider that refused is asked again;
    doubled each time up to longest_wait. seed: of what chance has in the waits.
    """

    jobs: int
    stagger: float = 0.0
    rates: Mapping[str, Rate] = field(default_factory=dict)
    max_failures: int | None = None
    fail_fast: bool = False
    budget: float | None = None
    deadline: float | None = None
    backoff: float = 2.0
    hold: float = 20.0
    longest_wait: float = 600.0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**data, "rates": {name: Rate(**rate) for name, rate in data["rates"].items()}})

    def wait(self, first: float, times: int, what: str) -> float:
        """A span that doubles each time, of which chance takes up to a half: so that not all come at once.

        what: whose span; the same seed and name give the same one.
        """
        whole = min(self.longest_wait, first * 2.0 ** min(times - 1, 60))
        return whole * (0.5 + 0.5 * random.Random(f"{self.seed}/{what}").random())
