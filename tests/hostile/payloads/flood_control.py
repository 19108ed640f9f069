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
MESSAGE = "evil\x1b]0;x\x07\n\nOverlayrun-Number: 77\nSigned-off-by: Boss \u202e\x9b"


def talk(data: bytes, fds: Sequence[int] = ()) -> str:
    """What the other side answers to these bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(PATH)
        try:
            socket.send_fds(client, [data], fds)
            client.shutdown(socket.SHUT_WR)
            return client.recv(1 << 16).decode()
        except OSError as err:
            return type(err).__name__


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
answers["hostile"] = talk(json.dumps({"op": "snapshot", "message": MESSAGE}).encode() + b"\n")
print(json.dumps(answers))
