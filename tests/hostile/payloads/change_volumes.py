"""Try what btrfs lets the owner of a subvolume do, and what a file's owner may set: prints one JSON object."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import sys

ONE = struct.Struct("=q4088s")  # struct btrfs_ioctl_vol_args
TWO = struct.Struct("=qQQ32x4040s")  # struct btrfs_ioctl_vol_args_v2
READ_ONLY, BY_NUMBER = 1 << 1, 1 << 4


def asked(path: str, request: int, argument: bytes) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, bytearray(argument))
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    finally:
        os.close(fd)
    return "done"


def destroyed(request: int) -> list[str]:
    """What is said to the removal of every number that a subvolume can have here."""
    numbers = range(256, 600)
    return sorted({asked(".", request, TWO.pack(0, 0, BY_NUMBER, struct.pack("=Q", one))) for one in numbers})


def main() -> None:
    here = os.open(".", os.O_RDONLY)
    told = {
        "destroy": destroyed(0x5000943F),
        "destroy, with more bits": destroyed(0x15000943F),
        "destroy by name": asked("..", 0x5000940F, ONE.pack(0, os.path.basename(os.getcwd()).encode())),
        "create": asked(".", 0x5000940E, ONE.pack(0, b"made")),
        "create, second form": asked(".", 0x50009418, TWO.pack(0, 0, 0, b"made2")),
        "snapshot": asked(".", 0x50009401, ONE.pack(here, b"copy")),
        "read-only snapshot": asked(".", 0x50009417, TWO.pack(here, 0, READ_ONLY, b"kept")),
        "read-only": asked(".", 0x4008941A, struct.pack("=Q", READ_ONLY)),
    }
    for name, flag in (("immutable", 0x10), ("append-only", 0x20), ("no copy-on-write", 0x800000)):
        os.mkdir(name)
        told[name] = asked(name, 0x40086602, struct.pack("=q", flag))  # FS_IOC_SETFLAGS
        with open(f"{name}/file", "w", encoding="ascii") as file:
            file.write("x" * 100_000)
    with open("clone", "wb") as target, open("immutable/file", "rb") as source:
        fcntl.ioctl(target, 0x40049409, source.fileno())  # FICLONE, which builds and package managers use
    told["clone"] = str(os.stat("clone").st_size)
    json.dump(told, sys.stdout)


main()
