"""Marks of overlayfs made by hand, its own directories, and every way to change the mounts."""

from __future__ import annotations

import os
import stat
import subprocess

from inside import GIVEN, call, ended, finish, probe, raw, read_some

FORGED = ("opaque", "whiteout", "redirect", "metacopy", "origin", "impure", "protattr")


@probe("55 whiteouts")
def _() -> object:
    tried = {}
    for place in ("made", "src/app.py2", "/tmp/w"):
        try:
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(0, 0))
            tried[place] = "ok"
        except OSError as err:
            tried[place] = ended(-(err.errno or 1))
    for command in (["mv", "/tmp/w", "moved"], ["cp", "-a", "/tmp/w", "copied"]):
        done = subprocess.run(command, capture_output=True, check=False)
        tried[command[0]] = "failed" if done.returncode else "ok"
    return tried


@probe("56 forged marks")
def _() -> object:
    tried = {}
    for name in FORGED:
        os.makedirs(f"forged/{name}", exist_ok=True)
        with open(f"forged/{name}/f", "w", encoding="ascii") as file:
            file.write(name)
        for target in (f"forged/{name}", f"forged/{name}/f", "src", "src/app.py"):
            for value in (b"y", b"/../../../etc"):
                try:
                    os.setxattr(target, f"user.overlay.{name}", value)
                    tried[name] = "ok"
                except OSError as err:
                    tried[name] = ended(-(err.errno or 1))
    return tried


@probe("57 trusted marks")
def _() -> object:
    os.setxattr("src", "trusted.overlay.opaque", b"y")
    return "ok"


def overlays() -> dict[str, dict[str, str]]:
    """Options of every overlay by its mountpoint."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if after.startswith("overlay "):
                options = after.split(" ", 2)[2].strip().split(",")
                found[before.split(" ")[4]] = dict(option.partition("=")[::2] for option in options)
    return found


@probe("58 layers")
def _() -> object:
    return overlays()


@probe("59 upper and work")
def _() -> object:
    """Whether a path that a mount names leads to what was just written into an upper."""
    places = [
        value
        for options in overlays().values()
        for key, value in options.items()
        if key.startswith(("up", "wo"))
    ]
    return sorted(path for path in places if os.path.lexists(f"{path}/forged/opaque/f"))


@probe("59 state")
def _() -> object:
    return os.path.lexists(f"{GIVEN['root']}/.git/overlayrun")


@probe("62 mounts")
def _() -> object:
    here = os.fsencode(os.getcwd())
    return {
        "remount /usr": call("mount", b"none", b"/usr", None, 4096 | 32, None),
        "remount /": call("mount", b"none", b"/", None, 4096 | 32, None),
        "umount": call("umount2", here, 2),
        "umount .git": call("umount2", here + b"/.git", 2),
        "umount /tmp": call("umount2", b"/tmp", 2),
        "tmpfs": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "bind": call("mount", b"/usr", b"/tmp", None, 4096, None),
        "overlay": call("mount", b"overlay", b"/tmp", b"overlay", 0, b"lowerdir=/usr:/etc,userxattr"),
        "proc": call("mount", b"proc", b"/tmp", b"proc", 0, None),
        "pivot_root": call("pivot_root", b"/tmp", b"/tmp"),
        "chroot": call("chroot", b"/tmp"),
        "open_tree": call("open_tree", -100, b"/", 1),
        "fsopen": call("fsopen", b"tmpfs", 0),
        "fspick": call("fspick", -100, b"/", 0),
        "move_mount": call("move_mount", -100, b"/usr", -100, b"/tmp", 0),
        "mount_setattr": call("mount_setattr", -100, b"/", 0, b"\0" * 32, 32),
    }


def may_write(place: str) -> bool:
    """Whether a file can be made there, or the file itself be opened for writing."""
    path = f"{place}/olr-{GIVEN['mark']}" if os.path.isdir(place) else place
    try:
        os.close(os.open(path, os.O_WRONLY | (os.O_CREAT if path != place else 0)))
    except OSError:
        return False
    return True


@probe("62 writable")
def _() -> object:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            place, options = line.split(" ")[4:6]
            if "rw" in options.split(",") and may_write(place):
                found.append(place)
    return sorted(found)


@probe("62 suid")
def _() -> object:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return sorted(line.split(" ")[4] for line in lines if "nosuid" not in line.split(" ")[5].split(","))


@probe("63 copy up")
def _() -> object:
    os.chmod("tool.sh", 0o4755)
    with open("tool.sh", "a", encoding="ascii") as file:
        file.write("echo more\n")
    return oct(os.stat("tool.sh").st_mode & 0o7777)


@probe("71 mountinfo of pid 1")
def _() -> object:
    return read_some("/proc/1/mountinfo")[:10]


@probe("62 after")
def _() -> object:
    return ended(raw("umount2", b"/dev/shm", 2))


finish()
