"""A FUSE file system of one file, as a server far away would show it: nothing of it is kept by the kernel.

Run as `python remote_directory.py MOUNTPOINT`; it says `mounted`, and ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys

from overlayrun.kernel import fuse

_FILE = 2
_TEXT = b"far away\n"


def _attributes(node: int) -> tuple[int, ...]:
    mode = stat.S_IFDIR | 0o755 if node == fuse.ROOT_ID else stat.S_IFREG | 0o644
    size = 0 if node == fuse.ROOT_ID else len(_TEXT)
    return (node, size, 0, *([0] * 6), mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


def _answer(opcode: int, node: int, data: bytes) -> bytes:
    if opcode == fuse.LOOKUP and data != b"file\0":
        raise OSError(errno.ENOENT, "not here")
    if opcode in (fuse.READ, fuse.READDIR):
        listing = fuse.DIRENT.pack(_FILE, 1, 4, stat.S_IFREG >> 12) + b"file\0\0\0\0"
        is_more = fuse.READ_IN.unpack(data)[1] == 0
        return (_TEXT if opcode == fuse.READ else listing) if is_more else b""
    return {
        fuse.INIT: fuse.INIT_OUT.pack(fuse.MAJOR, fuse.MINOR, 0, 0, 0, 0, 4096, 1, 0, 0, 0),
        fuse.LOOKUP: fuse.ENTRY_OUT.pack(_FILE, 0, 0, 0, 0, 0, *_attributes(_FILE)),
        fuse.GETATTR: fuse.ATTR_OUT.pack(0, 0, 0, *_attributes(node)),
        fuse.OPEN: fuse.OPEN_OUT.pack(0, 0, 0),
        fuse.OPENDIR: fuse.OPEN_OUT.pack(0, 0, 0),
        fuse.STATFS: fuse.STATFS_OUT.pack(*([0] * 5), 4096, 255, 4096),
        **dict.fromkeys((fuse.FLUSH, fuse.RELEASE, fuse.RELEASEDIR), b""),
    }[opcode]


def _mount(place: str) -> int:
    ours, theirs = socket.socketpair()
    # Root's command is nobody; ordinary users may not let others in.
    options = "fsname=far,subtype=far,default_permissions" + (",allow_other" if os.geteuid() == 0 else "")
    argv = ["fusermount3", "-o", options, "--", place]
    subprocess.run(
        argv,
        env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        check=True,
    )
    return socket.recv_fds(ours, 1, 1)[1][0]


def main() -> None:
    device = _mount(sys.argv[1])
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError:  # unmounted
            return
        _, opcode, unique, node, *_ = fuse.IN_HEADER.unpack_from(request)
        if opcode in (fuse.FORGET, fuse.BATCH_FORGET, fuse.INTERRUPT):
            continue
        try:
            answer, number = _answer(opcode, node, request[fuse.IN_HEADER.size :]), 0
        except (OSError, KeyError) as err:
            answer, number = b"", -errno.ENOENT if isinstance(err, OSError) else -errno.ENOSYS
        os.write(device, fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size + len(answer), number, unique) + answer)


if __name__ == "__main__":
    main()
