"""The control socket of a run: one line of JSON asked, one answered, descriptors beside it if wanted.

Two sockets a workspace. `outside` lies in the state directory and hands out the sandbox's namespaces;
`inside` is what the command sees: `Answers.inside` says what it may ask.
"""

from __future__ import annotations

import json
import os
import socket
import time

from overlayrun.errors import WorkspaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    Handler = Callable[[dict[str, Any]], tuple[dict[str, Any], Sequence[int]]]

_LONGEST: Final = 64 * 1024
_PATIENCE: Final = 2.0  # seconds for a client to say its line; it may be hostile
_ANSWER_PATIENCE: Final = 600.0
_DESCRIPTORS: Final = 8


def listen(directory: str, name: str) -> socket.socket:
    """A listening socket `directory`/`name`, only its owner's; a stale one is replaced.

    It has its name only when it listens: whoever waits for the name would be refused before.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    aside = f"{directory}/.{name}"
    if os.path.lexists(aside):
        os.unlink(aside)
    # By descriptor, because a socket's path may have 107 bytes at most (unix(7)).
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{fd}/.{name}")
    finally:
        os.close(fd)
    server.listen(8)
    os.rename(aside, f"{directory}/{name}")
    server.settimeout(0)
    return server


def answer(server: socket.socket, handle: Handler) -> None:
    """Serve one client; what it does wrong is its own trouble, what fails here is told to it."""
    try:
        client, _ = server.accept()
    except BlockingIOError:
        return
    with client:
        try:
            request = json.loads(_line(client, until=time.monotonic() + _PATIENCE))
            reply, fds = handle(request)
            client.settimeout(_PATIENCE)
            socket.send_fds(client, [json.dumps(reply).encode() + b"\n"], list(fds))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


def _line(connection: socket.socket, *, until: float | None = None) -> bytes:
    """until: by time.monotonic; for the whole line, because one may come a byte at a time."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _LONGEST:
        if until is not None:
            connection.settimeout(max(0.001, until - time.monotonic()))
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return data


def ask(
    directory: str, name: str, request: dict[str, Any], *, wait: float = 2.0
) -> tuple[dict[str, Any], list[int]]:
    """Send a request to a run and give its answer and descriptors.

    wait: seconds in which a run that is only starting may open its socket. Raises WorkspaceError without an
    answer.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _ask_once(directory, name, request)
        except (FileNotFoundError, ConnectionRefusedError) as err:
            if time.monotonic() > deadline:
                raise WorkspaceError("the run does not answer", hint="see: overlayrun ls") from err
            time.sleep(0.02)
        except (OSError, ValueError) as err:
            raise WorkspaceError(f"the run broke off: {err}", hint="see: overlayrun ls") from err


def _ask_once(directory: str, name: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(f"/proc/self/fd/{fd}/{name}")
            client.settimeout(_ANSWER_PATIENCE)
            client.sendall(json.dumps(request).encode() + b"\n")
            data, fds, _, _ = socket.recv_fds(client, _LONGEST, _DESCRIPTORS)
            if data and not data.endswith(b"\n"):
                data += _line(client)
            if not data:
                raise ConnectionResetError("no answer")
            answered: dict[str, Any] = json.loads(data)
            return answered, fds
    finally:
        os.close(fd)
