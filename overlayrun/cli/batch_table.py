"""A batch as a live table, for a terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlayrun.batch.progress import Board, News, NewsKind, Phase, Row
from overlayrun.batch.task import Outcome
from overlayrun.cli.batch_lines import COLOURS, line_of, safe, unbroken
from overlayrun.cli.render import has_colours, span_text

_HEADS: Final = ("TASK", "STATE", "TRY", "FOR", "WHY")
_LASTING: Final = (NewsKind.ENDED, NewsKind.LOST, NewsKind.NOTE, NewsKind.STOPPING)
_ROWS_OF_OTHERS: Final = 6  # title, bar, heads, a line for what is left out, the prompt
_EVERY: Final = 0.25  # seconds between two pictures
_BAR: Final = 30
# What people look for stands at the top: what runs, what went wrong, what comes next.
_ORDER: Final = {Phase.RUNNING: 0, Phase.BACKING_OFF: 1, Phase.OVER: 2, Phase.READY: 3, Phase.BLOCKED: 4}


class LiveBatch:
    """A table of what runs, with a line above for each attempt that ended. A context manager."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, no_color=not has_colours())
        # No refresh of its own: that would be a second thread, and this process forks.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unbroken(Live.stop)(self._live)

    def hear(self, news: News) -> None:
        """Take a piece of news: what lasts stays as a line above the table."""
        line = line_of(news)
        if news.kind not in _LASTING or not line:
            return
        text = Text(f"{time.strftime('%H:%M:%S', time.localtime(news.at))}  {line}")
        if news.result is not None:
            text.stylize(colour_of(news.result.outcome), 10, 10 + len(news.result.task) + 1)
        unbroken(self._console.print)(text)

    def tick(self, board: Callable[[], Board]) -> None:
        """Draw the table anew, where it is time."""
        now = time.monotonic()
        if now - self._drawn >= _EVERY:
            self._drawn = now
            unbroken(self._draw)(picture(board(), self._console.height))

    def _draw(self, shown: Group) -> None:
        self._live.update(shown, refresh=True)


def colour_of(outcome: Outcome | None) -> str:
    """An outcome's colour."""
    return "default" if outcome is None else COLOURS.get(outcome, "red")


def picture(board: Board, height: int) -> Group:
    """The table, as many rows as `height` lines hold."""
    room = max(1, height - _ROWS_OF_OTHERS)
    rows = sorted(board.rows, key=lambda row: (_ORDER[row.phase], -(row.since or 0.0)))
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for head in _HEADS:  # the last one takes what the others leave
        table.add_column(head, no_wrap=True, overflow="ellipsis", ratio=1 if head == _HEADS[-1] else None)
    for row in rows[:room]:
        table.add_row(*_cells(row, board.now))
    left = len(rows) - room
    more = [Text(f"and {left} more", style="dim")] if left > 0 else []
    return Group(_title(board), table, *more)


def _title(board: Board) -> Text:
    done = Counter(row.outcome for row in board.rows if row.phase is Phase.OVER)
    good = done[Outcome.OK] + done[Outcome.NO_CHANGE]
    filled = _BAR * board.over // max(1, len(board.rows))
    text = Text(
        "━" * filled, style="green" if good == board.over else "yellow", no_wrap=True, overflow="ellipsis"
    )
    text.append("━" * (_BAR - filled), style="bright_black")
    parts = [f" {board.over}/{len(board.rows)}", f"{board.running} running"]
    parts += [f"{board.over - good} not ok"] if board.over > good else []
    parts.append(span_text(board.now - board.began))
    if board.cost:
        parts.append(f"${board.cost:.2f}" + (" and more" if board.unpriced else ""))
    text.append(", ".join(parts), style="default")
    ending = safe(board.why or "stopping") if board.stop else "Ctrl-C ends it, nothing is lost"
    text.append(f"; {ending}", style="dim")
    return text


def _cells(row: Row, now: float) -> list[Text]:
    state = Text(row.phase.value, style="bold yellow" if row.phase is Phase.RUNNING else "dim")
    span = ""
    if row.phase is Phase.OVER and row.outcome is not None:
        state = Text(row.outcome.value, style=colour_of(row.outcome))
    elif row.phase is Phase.RUNNING and row.since is not None:
        span = span_text(now - row.since)
    elif row.until is not None:
        span = f"in {span_text(row.until - now)}"
    why = row.detail if row.phase is not Phase.RUNNING else row.task.prompt or " ".join(row.task.command)
    number = str(row.attempt) if row.attempt else ""
    return [Text(row.task.id), state, Text(number), Text(span), Text(safe(why or ""), style="dim")]
