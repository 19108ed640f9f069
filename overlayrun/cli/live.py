"""The queue as a table that follows a reconciler at work, for a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from overlayrun.cli.opened import Opened
from overlayrun.cli.queue import COLOURS, HEADS, row
from overlayrun.cli.render import has_colours, span_text
from overlayrun.model import BranchName
from overlayrun.reconcile.board import Work, boards
from overlayrun.reconcile.events import Event, EventKind
from overlayrun.reconcile.queue import Item, Queue
from overlayrun.reconcile.settings import Settings
from overlayrun.report import printable

# What is worth a line that stays above the table.
_LASTING: Final = frozenset(EventKind) - {EventKind.TICK, EventKind.CHECKING, EventKind.CHECKED}
_ROWS_OF_OTHERS: Final = 6  # title, heads, a line for what is left out, the prompt


class LiveTable:
    """Rows change as things happen; landings and refusals stay as lines above. A context manager."""

    def __init__(self, opened: Opened, target: BranchName, settings: Settings) -> None:
        self._opened = opened
        self._target = target
        self._settings = settings
        self._began = time.monotonic()
        self._console = Console(highlight=False, no_color=not has_colours())
        # No refresh of its own: that would be a second thread, and this process forks.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """One event: a line if it lasts, and the table anew."""
        if event.kind in _LASTING:
            self._console.print(Text(f"{time.strftime('%H:%M:%S')}  {printable(event.text)}"))
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        queue = Queue(self._opened.layout, self._opened.repo, self._target, self._settings)
        work = {one.branch: one for one in boards(self._opened.layout) if one.target == self._target}
        items = sorted(queue.items(), key=lambda item: item.standing.is_home)
        room = max(1, self._console.height - _ROWS_OF_OTHERS)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in HEADS:
            table.add_column(head, no_wrap=True, overflow="ellipsis")
        for item in items[:room]:
            table.add_row(*self._cells(item, work.get(item.branch)))
        left = len(items) - room
        title = f"{self._target} at {queue.tip[:10]}, watched for {span_text(time.monotonic() - self._began)}"
        more = [Text(f"and {left} more: overlayrun queue", style="dim")] if left > 0 else []
        return Group(Text(f"{title}; Ctrl-C ends it", style="dim"), table, *more)

    def _cells(self, item: Item, work: Work | None) -> list[Text]:
        cells = [Text(printable(cell)) for cell in row(self._opened, item, work)]
        cells[1].stylize("bold yellow" if work else COLOURS[item.standing])
        return cells
