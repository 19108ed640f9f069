"""One call of the `overlayrun` program for the MCP server: bounded output, and it ends with its caller."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.abc import ByteReceiveStream, Process
from mcp.server.mcpserver.exceptions import ToolError

from overlayrun.kernel.waits import as_shell
from overlayrun.program import this_program
from overlayrun.store.commits import printable

# TERM when the server dies: a run then ends its command and keeps what it did. It is asked for in the program
# itself, because the server has threads and may do nothing between fork and exec.
_BEFORE: Final = "from overlayrun.kernel.namespaces import die_with_parent; die_with_parent({}, 15); "
_MOST: Final = 64 << 20  # of JSON: beyond it nothing is shown
_ERRORS: Final = 16 << 10
_PATIENCE: Final = 15.0  # seconds for a run to end its command and take its snapshot
_OURS: Final = "overlayrun: "


@dataclass(slots=True)
class Text:
    """The beginning of a program's output, or its end. limit: bytes to keep; total: bytes there were."""

    limit: int
    end: bool = False
    total: int = 0
    kept: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        """More of it."""
        self.total += len(data)
        if self.end:
            self.kept += data
            del self.kept[: -self.limit]
        else:
            self.kept += data[: max(0, self.limit - len(self.kept))]

    @property
    def is_cut(self) -> bool:
        """Whether there was more than is kept."""
        return self.total > self.limit

    def shown(self) -> str:
        """Whole lines where it is cut, safe to print."""
        data = bytes(self.kept)
        if self.is_cut and b"\n" in data:
            data = data.partition(b"\n")[2] if self.end else data.rpartition(b"\n")[0] + b"\n"
        return printable(data.decode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class Called:
    """How a call ended. err: standard error, empty where it went to `out`."""

    code: int
    out: Text
    err: Text

    def lines(self) -> list[str]:
        """What overlayrun said of itself, without its name."""
        said = (self.err.shown() or self.out.shown()).splitlines()
        return [line.removeprefix(_OURS) for line in said]

    def failure(self) -> ToolError:
        """Its refusal, with the hint."""
        return ToolError("\n".join(self.lines()) or f"overlayrun ended with status {self.code}")


async def call(*words: str, keep: Text | None = None, joined: bool = False) -> Called:
    """Run `overlayrun *words` to its end, in the server's directory, without a terminal.

    keep: takes its output; joined: and its errors. Cancelled, it is asked to end, and waited for.
    Raises ToolError where it can't be started.
    """
    output, errors = keep or Text(_MOST), Text(_ERRORS)
    process = await _start(words, joined=joined)
    try:
        async with anyio.create_task_group() as readers:
            readers.start_soon(_read, process.stdout, output)
            readers.start_soon(_read, process.stderr, errors)
        code = await process.wait()
    finally:
        await _end(process)
    return Called(as_shell(code), output, errors)


async def _start(words: tuple[str, ...], *, joined: bool) -> Process:
    command = [*this_program(_BEFORE.format(os.getpid())), *words]
    try:
        return await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT if joined else subprocess.PIPE,
            start_new_session=True,  # no terminal of the user's for what runs, nor its Ctrl-C
        )
    except (OSError, ValueError) as err:  # too long, or with a NUL
        raise ToolError(f"overlayrun can't be started with these words: {err}") from err


async def _read(stream: ByteReceiveStream | None, text: Text) -> None:
    if stream is not None:
        async for data in stream:
            text.add(data)


async def _end(process: Process) -> None:
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(_PATIENCE):
                await process.wait()
        await process.aclose()


async def ask(*words: str) -> dict[str, Any]:
    """What `overlayrun *words --json` answers, safe to print; its remarks under `notes`.

    Raises ToolError where it refuses. A result that is not good, such as a conflict, is a result.
    """
    called = await call(*words, "--json")
    if not called.out.total:
        raise called.failure()
    if called.out.is_cut:
        raise ToolError(f"the answer is longer than {_MOST >> 20} MiB; type: overlayrun {words[0]}")
    answer: dict[str, Any] = _cleaned(json.loads(called.out.kept))
    notes = called.lines() if called.err.total else []
    return {**answer, "notes": [*answer.get("notes", ()), *notes]}


def _cleaned(value: Any) -> Any:
    """The same with every text safe to print: names and words of an agent's are among them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {name: _cleaned(item) for name, item in value.items()}
    return value
