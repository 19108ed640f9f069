"""Descriptors that came over a unix socket (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import socket
import struct


def receive(end: socket.socket, longest: int, most: int) -> tuple[bytes, list[int], int]:
    """Up to `longest` bytes, up to `most` descriptors with them, and the flags of recvmsg(2).

    Nobody inherits the descriptors; socket.recv_fds forgets the flag for that (Python 3.11).
    """
    data, beside, flags, _ = end.recvmsg(longest, socket.CMSG_LEN(most * 4), socket.MSG_CMSG_CLOEXEC)
    return data, [fd for _, _, content in beside for (fd,) in struct.iter_unpack("i", content)], flags
