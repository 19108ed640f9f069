"""A run that goes on while it is measured: its files are changed and its snapshots asked for from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import Self

from _bench_measure import BenchError
from _bench_world import World


class Live:
    """A run whose command changes files on demand; a context manager, its workspace is removed at the end."""

    def __init__(self, world: World, size: int, branch: str) -> None:
        self.world, self.branch, self.place = world, branch, world.repository(size)
        options = ("-b", branch, "--dirty", "ignore", "--every", "0", "-q", "--")
        command = world.ours(*options, *world.inside("edit", str(size)))
        self._process = subprocess.Popen(
            command,
            cwd=self.place,
            env=world.run.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        self._sockets = f"{self.place}/.git/overlayrun/workspaces/{self._hear()}/sockets"
        deadline = time.monotonic() + 10
        while not os.path.exists(f"{self._sockets}/outside"):
            if time.monotonic() > deadline:
                self._process.kill()
                raise BenchError("the run opens no control socket")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self.world.drop(self.place, self.branch)

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise BenchError(f"the run ended early, with {self._process.wait(60)}")
        return line

    def edit(self, count: int) -> None:
        """Change `count` files, spread over the tree."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {time.time_ns()}\n")
        self._hear()

    def snapshot(self) -> float:
        """Milliseconds in which the supervisor takes a snapshot and says so."""
        fd = os.open(self._sockets, os.O_PATH)  # a socket's path may have 107 bytes at most
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(120)
                began = time.monotonic_ns()
                client.connect(f"/proc/self/fd/{fd}/outside")
                client.sendall(b'{"op": "snapshot"}\n')
                answer = b""
                while not answer.endswith(b"\n") and (part := client.recv(65536)):
                    answer += part
                spent = (time.monotonic_ns() - began) / 1e6
        finally:
            os.close(fd)
        said = json.loads(answer or b'{"error": "no answer"}')
        if "error" in said or said["unchanged"]:
            raise BenchError(f"no snapshot was taken: {said.get('error', 'nothing changed')}")
        return spent

    def memory(self) -> float:
        """Megabytes that the supervisor holds."""
        with open(f"/proc/{self._process.pid}/status", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmRSS"].split()[0]) / 1024
