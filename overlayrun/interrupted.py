"""Ctrl-C where nobody catches it, as while the program is still being loaded: an end without a traceback.

Loaded first of all by `launch`. The interpreter itself ends such a process by SIGINT, as a shell expects.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


def _show(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, err, trace)


sys.excepthook = _show
