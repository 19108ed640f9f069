"""The kernel's side of a file system in user space: numbers and records of linux/fuse.h. Pure data.

Requests are read from /dev/fuse one at a time, each with IN_HEADER; answers go back with OUT_HEADER.
Since protocol 7.31 (Linux 5.4), older than any kernel that overlayrun runs on. Source: that header, fuse(4).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

ROOT_ID: Final = 1
MAJOR: Final = 7
MINOR: Final = 38  # what this package speaks; the kernel takes the lower of both

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47

# enum fuse_notify_code: in the place of an answer's error
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3

# Flags of INIT. Locks are left to the kernel: neither POSIX_LOCKS nor FLOCK_LOCKS is asked for.
ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
HANDLE_KILLPRIV_V2: Final = 1 << 28
INIT_EXT: Final = 1 << 30
# In the second word
HAS_EXPIRE_ONLY: Final = 1 << 3  # Linux 6.2
DIRECT_IO_ALLOW_MMAP: Final = 1 << 4  # Linux 6.6

# Flags of an answer to OPEN and OPENDIR
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3

# What SETATTR sets
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

FSYNC_FDATASYNC: Final = 1 << 0

IN_HEADER: Final = Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
OUT_HEADER: Final = Struct("=IiQ")  # len, error, unique
INIT_IN: Final = Struct("=IIII")  # major, minor, max_readahead, flags
INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")  # major, minor, max_readahead, flags, max_background,
# congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2
_ENTRY: Final = "QQQQII"  # nodeid, generation, seconds that entry and attributes hold, their nanoseconds
# ino, size, blocks, atime, mtime, ctime, the three's nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
_DIRENT: Final = "QQII"  # ino, offset of the next, length of the name, type; then the name, to 8 bytes
ENTRY_OUT: Final = Struct(f"={_ENTRY}{_ATTR}")
ATTR_OUT: Final = Struct(f"=QII{_ATTR}")  # seconds, nanoseconds
DIRENT: Final = Struct(f"={_DIRENT}")
DIRENTPLUS: Final = Struct(f"={_ENTRY}{_ATTR}{_DIRENT}")
FORGET_ONE: Final = Struct("=QQ")  # nodeid, nlookup
COUNT: Final = Struct("=Q")
GETATTR_IN: Final = Struct("=IIQ")  # flags, dummy, fh
SETATTR_IN: Final = Struct(
    "=I4xQQ8xqq8xII4xI4xII4x"
)  # valid, fh, size, atime, mtime, their ns, mode, uid, gid
MKNOD_IN: Final = Struct("=IIII")  # mode, rdev, umask, padding
MKDIR_IN: Final = Struct("=II")  # mode, umask
RENAME2_IN: Final = Struct("=QI4x")  # newdir, flags
OPEN_IN: Final = Struct("=II")  # flags, open_flags
OPEN_OUT: Final = Struct("=QII")  # fh, open_flags, backing_id
CREATE_IN: Final = Struct("=IIII")  # flags, mode, umask, open_flags
READ_IN: Final = Struct("=QQII16x")  # fh, offset, size, flags: of READ, WRITE, READDIR
WRITE_CACHE: Final = 1 << 0  # of WRITE: a page of a mapping, the kernel guessed the handle
WRITE_OUT: Final = Struct("=I4x")  # size
FSYNC_IN: Final = Struct("=QI4x")  # fh, flags
STATFS_OUT: Final = Struct("=QQQQQIII28x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
SETXATTR_IN: Final = Struct("=II")  # size, flags
GETXATTR_IN: Final = Struct("=II")  # size, padding
FALLOCATE_IN: Final = Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN: Final = Struct("=QqI4x")  # fh, offset, whence; a program may ask for an offset below 0
COPY_IN: Final = Struct("=QQQQQQQ")  # fh, offset, nodeid_out, fh_out, offset_out, length, flags
INVAL_INODE: Final = Struct("=Qqq")  # nodeid, offset (negative: attributes alone), length (0: to the end)
INVAL_ENTRY: Final = Struct("=QII")  # parent, length of the name, flags; then the name and a zero
EXPIRE_ONLY: Final = 1 << 0  # of INVAL_ENTRY: look the name up at its next use, keep it till then
