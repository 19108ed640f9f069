"""Everything that a control socket must bear: long, deep, wrong and silent clients, descriptors, forged text."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence

PATH = os.environ["OVERLAYRUN_SOCKET"]
WRONG = (
    b"",
    b"[]",
    b"1",
    b"null",
    b'{"op": 1}',
    b'{"op": []}',
    b'{"op": "join"}',
    b'{"op": "status"}',
    b'{"op": "freeze"}',
    b"\xff\xfe",
    b'{"op": "snapshot", "message": {}}',
)
ODD: tuple[object, ...] = (
    1,
    1.5,
    [],
    {},
    "\ud800",
    "a\nb",
    "\x1b]0;x\x07",
    "../x",
    "-x",
    "",
    "x" * 60000,
    [["x"]],
    {"op": {}},
)
THEIRS = "other"  # a branch of the user's
FIELDS = ("agent", "session", "title", "model", "tool", "subject", "prompt", "said")
MESSAGE = "evil\x1b]0;x\x07\n\nOverlayrun-Number: 77\nSigned-off-by: Boss \u202e\x9b\U000e0041"


def talk(data: bytes, fds: Sequence[int] = ()) -> str:
    """What the other side answers to these bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(PATH)
        try:
            socket.send_fds(client, [data], fds)
            client.shutdown(socket.SHUT_WR)
            with client.makefile() as answer:
                return answer.read()
        except OSError as err:
            return type(err).__name__


def ask(**request: object) -> str:
    return talk(json.dumps(request).encode() + b"\n")


def drip() -> bool:
    """Whether a client that says its line a byte at a time is dropped."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(PATH)
        try:
            for _ in range(120):
                client.send(b" ")
                time.sleep(0.5)
        except OSError:
            return True
    return False


def leave_out(count: int) -> str:
    """The answer to a snapshot in which many paths are left out."""
    names = [f"{number}-{'x' * 200}" for number in range(count)]
    for name in names:
        os.mkfifo(name)
    answer = ask(op="snapshot")
    for name in names:
        os.unlink(name)
    return answer


end = time.monotonic() + 10
while not os.path.exists(PATH) and time.monotonic() < end:
    time.sleep(0.02)
answers: dict[str, object] = {
    "long": talk(b"x" * (4 << 20)),
    "deep": talk(b"[" * 60000 + b"\n"),
    "wrong": [talk(line + b"\n") for line in WRONG],
    "descriptors": talk(b'{"op": "nothing"}\n', [os.open("/dev/null", 0)] * 250),
}
silent = []
for _ in range(2):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(0)
    try:
        client.connect(PATH)
    except OSError:
        pass
    silent.append(client)
with open("work", "w", encoding="ascii") as file:
    file.write("w")
answers["names"] = [ask(op=op, branch=odd) for op in ("open", "fork") for odd in (*ODD, THEIRS)]
answers["odd"] = [
    ask(op=op, **{field: odd})
    for op in ("close", "session", "snapshot", "status")
    for field in ("branch", "path", "account")
    for odd in ODD
]
answers["accounts"] = [ask(op="session", account=dict.fromkeys(FIELDS, odd)) for odd in ODD]
answers["session"] = ask(op="session", account={name: f"{name} {MESSAGE}" for name in FIELDS})
answers["many"] = leave_out(2000)
answers["dripping"] = drip()
answers["hostile"] = talk(json.dumps({"op": "snapshot", "message": MESSAGE}).encode() + b"\n")
print(json.dumps(answers))
