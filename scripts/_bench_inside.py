"""Programs that the benchmark runs in a workspace and in a plain directory alike, in the current directory.

edit SIZE        print OVERLAYRUN_ID; then for each line `COUNT TOKEN` change files and answer `done`
end SIZE COUNT   change COUNT files, print the monotonic clock in ns, end at once
repeat N ARGV…   run a command N times, print the milliseconds of each
make COUNT       compile COUNT small C files and link them by make -j2, print the milliseconds
compile SIZE     read up to 2,000 files, write an output for each and rename it; print the milliseconds
rebase COUNT     rebase COUNT commits six times, print the milliseconds of each
npm COUNT        install COUNT packages from tarballs three times, print the milliseconds of each
rename COUNT     rename a file COUNT times, seven times over, print the microseconds of one each time
"""

from __future__ import annotations

import json
import os
import sys
import time

PER_DIRECTORY = 50
_MOST_COMPILED = 2000
_MAKEFILE = """\
CFLAGS = -O0 -g -fPIC
parts.so: $(patsubst %.c,%.o,$(wildcard part*.c))
\t$(CC) -shared -o $@ $^
"""


def path_of(number: int) -> str:
    """Path of a sample repository's file: 50 a directory, 50 directories a directory."""
    directory = number // PER_DIRECTORY
    return f"part{directory // 50:03}/module{directory % 50:02}/source{number % PER_DIRECTORY:02}.py"


def text_of(number: int, token: str = "") -> str:
    """Content of a sample file: about 500 to 3,500 bytes, different for each number and token."""
    lines = (
        f"value_{number}_{line} = {number * 7919 + line}  # {token}\n"
        for line in range(12 + number * 31 % 90)
    )
    return f'"""Module {number} {token}."""\n{"".join(lines)}'


def edit(size: int, count: int, token: str) -> None:
    """Rewrite `count` files, spread evenly over the `size` files below the current directory."""
    for turn in range(count):
        number = turn * size // count
        with open(path_of(number), "w", encoding="ascii") as file:
            file.write(text_of(number, token))


def _serve(size: int) -> None:
    _say(os.environ["OVERLAYRUN_ID"])
    for line in sys.stdin:
        count, token = line.split()
        edit(size, int(count), token)
        _say("done")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _repeat(times: int, argv: list[str]) -> list[float]:
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    spans = []
    for _ in range(times):
        began = time.perf_counter_ns()
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=nowhere)
        _, status = os.waitpid(pid, 0)
        spans.append((time.perf_counter_ns() - began) / 1e6)
        if status:
            sys.exit(f"{argv[0]} ended with status {status}")
    return spans


def _compile(size: int) -> list[float]:
    paths = [path_of(number) for number in range(min(size, _MOST_COMPILED))]
    began = time.perf_counter_ns()
    for path in paths:
        with open(path, "rb") as source, open(f"{path}.tmp", "wb") as output:
            output.write(source.read())
        os.rename(f"{path}.tmp", f"{path}.o")
    spent = (time.perf_counter_ns() - began) / 1e6
    for path in paths:
        os.unlink(f"{path}.o")
    return [spent]


def _make(count: int) -> list[float]:
    os.mkdir("c")
    os.chdir("c")
    for number in range(count):
        with open(f"part{number}.c", "w", encoding="ascii") as file:
            file.write(f"#include <stdio.h>\nint part{number}(int n) {{ return putchar(n + {number}); }}\n")
    with open("Makefile", "w", encoding="ascii") as file:
        file.write(_MAKEFILE)
    return _repeat(1, ["make", "-s", "-j2"])


def _quietly(*argv: str) -> None:
    import subprocess  # here, for other programs of this file are measured from their start

    subprocess.run(argv, check=True, capture_output=True)


def _git(*words: str) -> None:
    name = ("-c", "user.name=Bench", "-c", "user.email=bench@example.invalid")
    _quietly("git", *name, *words)


def _rebase(count: int) -> list[float]:
    """One that is not measured goes first."""
    _git("checkout", "-q", "-b", "topic")
    for number in range(count):
        _write(f"topic{number}", text_of(number))
        _git("add", f"topic{number}")
        _git("commit", "-q", "-m", f"topic {number}")
    _git("checkout", "-q", "-b", "onto", f"topic~{count}")
    _write("onto", "onto")
    _git("add", "onto")
    _git("commit", "-q", "-m", "onto")
    spans = []
    for _ in range(7):
        _git("checkout", "-q", "-B", "work", "topic")
        began = time.perf_counter_ns()
        _git("rebase", "-q", "onto")
        spans.append((time.perf_counter_ns() - began) / 1e6)
    return spans[1:]


def _npm(count: int) -> list[float]:
    os.makedirs("npm/tarballs")
    os.chdir("npm")
    for number in range(count):
        _pack(f"tarballs/p{number}.tgz", number)
    wanted = [f"./tarballs/p{number}.tgz" for number in range(count)]
    command = ["npm", "install", "--offline", "--no-audit", "--no-fund", "--silent", *wanted]
    spans = []
    for _ in range(4):
        for name in ("node_modules", "package.json", "package-lock.json", "cache"):
            _quietly("rm", "-rf", name)
        _write("package.json", "{}")
        began = time.perf_counter_ns()
        _quietly(*command, "--cache", "cache")
        spans.append((time.perf_counter_ns() - began) / 1e6)
    return spans[1:]


def _pack(path: str, number: int) -> None:
    import io
    import tarfile

    with tarfile.open(path, "w:gz") as tarball:
        described = json.dumps({"name": f"p{number}", "version": "1.0.0"})
        for name, text in [("package.json", described), *((f"f{n}.js", text_of(n)) for n in range(20))]:
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            tarball.addfile(info, io.BytesIO(text.encode()))


def _rename(count: int) -> list[float]:
    _write("here", "")
    spans = []
    for _ in range(7):
        began = time.perf_counter_ns()
        for _ in range(count // 2):
            os.rename("here", "there")
            os.rename("there", "here")
        spans.append((time.perf_counter_ns() - began) / 1e3 / count)
    return spans


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


_COUNTED = {"make": _make, "rebase": _rebase, "npm": _npm, "rename": _rename}


def main() -> None:
    """Do what the arguments say."""
    what, number, *rest = sys.argv[1:]
    if what == "edit":
        _serve(int(number))
    elif what == "end":
        edit(int(number), int(rest[0]), str(time.time_ns()))
        os.write(1, b"%d" % time.monotonic_ns())
        os._exit(0)
    elif what in _COUNTED:
        _say(json.dumps(_COUNTED[what](int(number))))
    else:
        _say(json.dumps(_repeat(int(number), rest) if what == "repeat" else _compile(int(number))))


if __name__ == "__main__":
    main()
