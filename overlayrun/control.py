"""The control socket of a run: one line of JSON asked, one answered, descriptors beside it if wanted.

Two sockets a workspace. `outside` lies in the state directory and hands out the sandbox's namespaces;
`inside` is what the command sees: `Answers.inside` says what it may ask.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from overlayrun.errors import WorkspaceBusy, WorkspaceError
from overlayrun.kernel.passed import receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    Handler = Callable[[dict[str, Any]], tuple[dict[str, Any], Sequence[int]]]

_LONGEST: Final = 64 * 1024
_PATIENCE: Final = 2.0  # seconds for a client to say its line; it may be hostile
_ANSWER_PATIENCE: Final = 600.0
_DESCRIPTORS: Final = 8
_LOOK_SECONDS: Final = 1.0


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
        place = os.fstat(fd)
        if place.st_uid != os.geteuid():  # root's, in a directory that belongs to the command
            os.chown(f".{name}", place.st_uid, place.st_gid, dir_fd=fd, follow_symlinks=False)
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
    directory: str,
    name: str,
    request: dict[str, Any],
    *,
    wait: float = 2.0,
    patience: float = _ANSWER_PATIENCE,
) -> tuple[dict[str, Any], list[int]]:
    """Send a request to a run and give its answer and descriptors.

    wait: seconds in which a run that is only starting may open its socket; patience: in which it answers.
    Raises WorkspaceError without an answer, WorkspaceBusy where who is to answer is stopped.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _ask_once(directory, name, request, patience)
        except (FileNotFoundError, ConnectionRefusedError) as err:
            if time.monotonic() > deadline:
                raise WorkspaceError("the run does not answer", hint="see: overlayrun ls") from err
            time.sleep(0.02)
        except (OSError, ValueError) as err:
            raise WorkspaceError(f"the run broke off: {err}", hint="see: overlayrun ls") from err


def _ask_once(
    directory: str, name: str, request: dict[str, Any], patience: float
) -> tuple[dict[str, Any], list[int]]:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(f"/proc/self/fd/{fd}/{name}")
            client.settimeout(patience)
            client.sendall(json.dumps(request).encode() + b"\n")
            _wait(client, patience)
            data, fds, _ = receive(client, _LONGEST, _DESCRIPTORS)
            if data and not data.endswith(b"\n"):
                data += _line(client)
            if not data:
                raise ConnectionResetError("no answer")
            answered: dict[str, Any] = json.loads(data)
            return answered, fds
    finally:
        os.close(fd)


def _wait(client: socket.socket, patience: float) -> None:
    """Wait for input; not for somebody who is stopped. Raises WorkspaceBusy, TimeoutError."""
    deadline = time.monotonic() + patience
    while True:
        client.settimeout(max(0.001, min(_LOOK_SECONDS, deadline - time.monotonic())))
        try:
            client.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            _check_goes_on(client)
            if time.monotonic() > deadline:
                raise
        else:
            client.settimeout(patience)
            return


def _check_goes_on(client: socket.socket) -> None:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(credentials[:4], sys.byteorder)  # struct ucred of unix(7)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b") ")[2][:1]
    except OSError:  # it dies just now
        return
    if state in (b"T", b"t"):  # proc_pid_stat(5)
        raise WorkspaceBusy(f"process {pid}, which would answer, is stopped", hint=f"kill -CONT {pid}")
