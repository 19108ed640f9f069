"""Ports of a sandbox's own loopback, shown on the host's 127.0.0.1 and nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from overlayrun.tunnel import connect, run_until_told, serve, tunnel


def run_publisher(listeners: Mapping[int, socket.socket], stop: int) -> None:
    """Be the process that carries connections in, until told to stop.

    listeners: by port, made on the host. This process has entered the sandbox's network, where what it
    connects to lies.
    """
    run_until_told(_serve_all(listeners), stop)


async def _serve_all(listeners: Mapping[int, socket.socket]) -> None:
    await asyncio.gather(*(serve(listener, _Way(port).carry) for port, listener in listeners.items()))


class _Way:
    """From one listener to the same port inside."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def carry(self, client: socket.socket) -> None:
        with await self._connect() as server:
            await tunnel(client, server)

    async def _connect(self) -> socket.socket:
        """To where the server listens: some take `localhost` for the one address, some for the other."""
        try:
            return await connect("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return await connect("::1", self.port)
