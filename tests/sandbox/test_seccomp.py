"""The filter of system calls: its program, read by an interpreter."""

from __future__ import annotations

import errno
import operator
import struct
from functools import cache
from itertools import product
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayrun.errors import HostError
from overlayrun.kernel import calls
from overlayrun.sandbox.seccomp import assemble

from .rules import MODE_AT, MODERN, MOUNTING, NAMESPACE_BITS, REFUSED, TERMINAL, TRACING, URING

X86_64: Final = 0xC000003E
AARCH64: Final = 0xC00000B7
OTHERS: Final = (0x40000003, 0x40000028, 0xC0000015, 0xC00000F3, 0)  # i386, arm, ppc64le, riscv64
MACHINES: Final = {"x86_64": (X86_64, calls.X86_64), "aarch64": (AARCH64, calls.AARCH64)}
MODES: Final = [{"ptrace": ptrace, "userns": userns} for ptrace in (False, True) for userns in (False, True)]
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
TESTS: Final = {0x15: operator.eq, 0x35: operator.ge, 0x45: operator.and_}
Call = tuple[int, int, tuple[int, ...]]
"""Architecture, number, arguments."""


class Looked(Exception):
    """The program looked at an argument."""


@cache
def rows_of(program: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("=HBBI", program))


def interpret(program: bytes, arch: int, number: int, arguments: tuple[int, ...] | None) -> tuple[int, int]:
    """Verdict of the program, and how many rows it took. arguments: None raises Looked where one is read."""
    rows = rows_of(program)
    data = struct.pack("=IIQ6Q", number, arch, 0, *(arguments or (0,) * 6))
    at = steps = accumulator = 0
    while True:
        code, then, otherwise, operand = rows[at]
        at, steps = at + 1, steps + 1
        if code == 0x20:
            if arguments is None and operand > 4:
                raise Looked
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x05:
            at += operand
        elif code == 0x06:
            return operand, steps
        else:
            at += then if TESTS[code](accumulator, operand) else otherwise


def expected(machine: str, call: Call, mode: dict[str, bool]) -> int:  # noqa: PLR0911  a table of facts
    arch, number, given = call
    ptrace, userns = mode["ptrace"], mode["userns"]
    native, numbers = MACHINES[machine]
    if arch != native:
        return KILL
    if number == 0xFFFFFFFF:
        return ALLOW
    if machine == "x86_64" and number >= 0x40000000:
        return KILL
    own_last = 336 if machine == "x86_64" else 294
    if own_last < number < 424 or number > 469:
        return ENOSYS
    name = {number: name for name, number in numbers.items()}.get(number)
    if name in REFUSED or (name in TRACING and not ptrace) or (name in MOUNTING and not userns):
        return EPERM
    if name in URING or (name in MODERN and not userns):
        return ENOSYS
    return ALLOW if name is None else by_arguments(name, [value & 0xFFFFFFFF for value in given], userns)


def by_arguments(name: str, low: list[int], userns: bool) -> int:  # noqa: C901, FBT001, PLR0911  a table of facts
    if name in MODE_AT and low[MODE_AT[name]] & 0o4000:
        return EPERM
    match name:
        case "open" if low[1] & 0o20000100 and low[2] & 0o4000:
            return EPERM
        case "openat" if low[2] & 0o20000100 and low[3] & 0o4000:
            return EPERM
        case "clone" if not userns and any(low[0] & bit for bit in NAMESPACE_BITS):
            return EPERM
        case "unshare" if not userns and any(low[0] & bit for bit in {*NAMESPACE_BITS, 0x80}):
            return EPERM
        case "ioctl" if low[1] in TERMINAL:
            return EPERM
        case "personality" if low[0] not in (0, 8, 0x40000, 0x40008, 0xFFFFFFFF):
            return EPERM
        case "mknod" | "mknodat" if not userns and low[1 if name == "mknod" else 2] & 0xF000 in (
            0x2000,
            0x6000,
        ):
            return EPERM
        case "renameat2" if not userns and low[4] & 4:
            return ERRNO | errno.EINVAL
        case "socket" | "socketpair" if low[0] == 16:
            return ALLOW if low[2] == 0 else ERRNO | errno.EPROTONOSUPPORT
        case "socket" | "socketpair" if low[0] not in (0, 1, 2, 10):
            return ERRNO | errno.EAFNOSUPPORT
    return ALLOW


_EDGES: Final = sorted(
    {
        near
        for _, numbers in MACHINES.values()
        for number in {*numbers.values(), 0, 336, 337, 424, 469, 0x40000000, 0x40000000 | 39, 0xFFFFFFFF}
        for near in (number - 1, number, number + 1)
        if 0 <= near <= 0xFFFFFFFF
    }
)
_INTERESTING: Final = (
    *(0, 1, 2, 3, 4, 8, 10, 15, 16, 17, 29, 38, 40, 0x40000, 0x40008, 0x100000, 0xFFFFFFFF, 0x80, 0x1200011),
    *(0o4755, 0o100, 0o20000000, 0o2755, 0o100100, 0o4000),
    *(0o020666, 0o060666, 0o100644, 0o010600, 0x4000, 0x5413, 0x8000),
    *TERMINAL,
    *NAMESPACE_BITS,
)
_ARGUMENT: Final = st.builds(
    lambda low, high: low | high << 32,
    st.sampled_from(_INTERESTING) | st.integers(0, 0xFFFFFFFF),
    st.sampled_from((0, 0, 1, 0xFFFFFFFF)),
)
_CALL: Final = st.tuples(
    st.sampled_from((X86_64, X86_64, X86_64, AARCH64, AARCH64, AARCH64, *OTHERS)),
    st.sampled_from(_EDGES) | st.integers(0, 0xFFFFFFFF),
    st.tuples(*[_ARGUMENT] * 6),
)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "mode", MODES, ids=lambda mode: "-".join(name for name in mode if mode[name]) or "default"
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(call=_CALL)
def test_the_program_does_what_the_rules_say(machine: str, mode: dict[str, bool], call: Call) -> None:
    program = assemble(machine, **mode)
    verdict, _ = interpret(program, *call)
    assert verdict == expected(machine, call, mode)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "mode", MODES, ids=lambda mode: "-".join(name for name in mode if mode[name]) or "default"
)
def test_every_number_near_the_table_is_decided_as_the_rules_say(machine: str, mode: dict[str, bool]) -> None:
    program = assemble(machine, **mode)
    arch = MACHINES[machine][0]
    for number in range(500):
        for value, index in product((0x10000000, 0x5412, 0o020000, 4), range(6)):
            arguments = [1] * 6
            arguments[index] = value
            call = (arch, number, tuple(arguments))
            assert interpret(program, *call)[0] == expected(machine, call, mode), call


def test_every_name_of_the_rules_has_its_number() -> None:
    """A name that is misspelt would not be refused."""
    by_arguments_names = {
        "clone",
        "unshare",
        "ioctl",
        "personality",
        "mknodat",
        "renameat2",
        "socket",
        "socketpair",
    }
    names = REFUSED | URING | TRACING | MOUNTING | MODERN | by_arguments_names
    assert names | {"mknod"} <= calls.X86_64.keys()
    assert names - calls.AARCH64.keys() == {"ioperm", "iopl", "modify_ldt", "uselib"}


# Where the kernel's headers are installed they are asked, too; the tables above hold without them.
@pytest.mark.parametrize(
    ("numbers", "header"),
    [
        pytest.param(calls.X86_64, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", id="x86_64"),
        pytest.param(calls.AARCH64, "/usr/include/asm-generic/unistd.h", id="aarch64"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_headers(numbers: dict[str, int], header: str) -> None:
    words = [
        line.split() for line in (Path(header).read_text().splitlines() if Path(header).exists() else [])
    ]
    known = {
        row[1].removeprefix("__NR3264_").removeprefix("__NR_"): int(row[2])
        for row in words
        if len(row) > 2
        and row[0] == "#define"
        and row[1].startswith(("__NR_", "__NR3264_"))
        and row[2].isdecimal()
    }
    assert {name: known[name] for name in numbers.keys() & known.keys()}.items() <= numbers.items()


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_programs_live_on_are_allowed_without_a_look_at_arguments(machine: str) -> None:
    """The kernel does not even run the filter for these (seccomp_cache_prepare)."""
    arch, _ = MACHINES[machine]
    # read write close newfstatat mmap futex epoll_pwait getpid execve
    often = (
        (0, 1, 3, 262, 9, 202, 281, 39, 59)
        if machine == "x86_64"
        else (63, 64, 57, 79, 222, 98, 22, 172, 221)
    )
    program = assemble(machine, ptrace=False, userns=False)
    assert {interpret(program, arch, number, None)[0] for number in often} == {ALLOW}
    with pytest.raises(Looked):
        interpret(program, arch, MACHINES[machine][1]["clone"], None)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_call_takes_a_long_way_through_the_program(machine: str) -> None:
    program = assemble(machine, ptrace=False, userns=False)
    ways = [interpret(program, MACHINES[machine][0], number, (7,) * 6)[1] for number in range(500)]
    assert max(ways) < 24


def test_a_machine_without_a_table_is_refused_by_name() -> None:
    with pytest.raises(HostError, match="riscv64"):
        assemble("riscv64", ptrace=False, userns=False)
