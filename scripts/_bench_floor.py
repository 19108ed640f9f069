"""The floor: a user namespace, one overlay, exec. The least that any launcher written in Python has to do.

Volatile, as the workspace's own overlay: else the end of the mount would flush the disk.

Run as `python -I -S -E _bench_floor.py LOWER UPPER WORK COMMAND…`; the overlay is mounted over LOWER.
"""

import ctypes  # noqa: TID251  the floor is measured without the package
import os
import sys

lower, upper, work, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.geteuid(), os.getegid()
if libc.unshare(0x10000000 | 0x20000):  # CLONE_NEWUSER, CLONE_NEWNS (linux/sched.h)
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)
data = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile"
if libc.mount(b"overlay", os.fsencode(lower), b"overlay", 0, os.fsencode(data)):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
os.chdir(lower)
os.execvp(command[0], command)
