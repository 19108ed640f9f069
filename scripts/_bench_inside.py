"""Programs that the benchmark runs in a workspace and in a plain directory alike, in the current directory.

edit SIZE        print OVERLAYRUN_ID; then for each line `COUNT TOKEN` change files and answer `done`
end SIZE COUNT   change COUNT files, print the monotonic clock in ns, end at once
repeat N ARGV…   run a command N times, print the milliseconds of each
make COUNT       compile COUNT small C files and link them by make -j2, print the milliseconds
compile SIZE     read up to 2,000 files, write an output for each and rename it; print the milliseconds
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


def main() -> None:
    """Do what the arguments say."""
    what, number, *rest = sys.argv[1:]
    if what == "edit":
        _serve(int(number))
    elif what == "end":
        edit(int(number), int(rest[0]), str(time.time_ns()))
        os.write(1, b"%d" % time.monotonic_ns())
        os._exit(0)
    elif what == "make":
        _say(json.dumps(_make(int(number))))
    else:
        _say(json.dumps(_repeat(int(number), rest) if what == "repeat" else _compile(int(number))))


if __name__ == "__main__":
    main()
