"""C inside: make with several jobs, an archive, a linked program; what was built outside stays fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from .conftest import run_outside

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Needs

pytestmark = pytest.mark.shared  # what make does

UNITS: Final = 12
MAKEFILE: Final = """\
objects := $(patsubst %.c,%.o,$(wildcard part*.c))
CFLAGS += -O0 -g -pipe
program: main.o libparts.a
	$(CC) -o $@ main.o -L. -lparts -pthread
libparts.a: $(objects)
	$(AR) rcs $@ $^
	$(MAKE) --no-print-directory -C sub
$(objects) main.o: parts.h
check: program
	./program
"""
MAIN: Final = """\
#include <pthread.h>
#include <stdio.h>
#include "parts.h"
static void *work(void *sum) { CALLS return sum; }
int main(void) {
    long sum = 0;
    pthread_t thread;
    if (pthread_create(&thread, 0, work, &sum) || pthread_join(thread, 0)) return 1;
    return printf("sum %ld\\n", FACTOR * sum) < 0;
}
"""


def test_make_builds_and_what_was_built_stays_fresh(repo: UserRepo, needs: Needs) -> None:
    needs("gcc", "make", "ar")
    names = [f"part{number}" for number in range(UNITS)]
    for number, name in enumerate(names):
        repo.write(f"{name}.c", f'#include "parts.h"\nlong {name}(void) {{ return {number}; }}\n')
    declared = "".join(f"long {name}(void);\n" for name in names)
    repo.write("parts.h", f"#define FACTOR 1\n{declared}")
    repo.write("main.c", MAIN.replace("CALLS", " ".join(f"*(long *)sum += {name}();" for name in names)))
    repo.write("Makefile", MAKEFILE)
    repo.write("sub/Makefile", "all:\n\t@touch done\n")
    repo.write(".gitignore", "*.o\n*.a\nprogram\ndone\n")
    repo.commit("a program")
    make = "make -j4 check >log 2>&1 || { cat log; exit 1; }; grep -c '^cc' log; tail -n 1 log; rm log\n"

    assert repo.inside(make, branch="fresh") == "14\nsum 66\n"
    assert run_outside(repo, make).stdout == "14\nsum 66\n"
    warm = make.replace("grep -c '^cc' log", "grep '^cc' log || :")
    assert repo.inside(warm, branch="warm") == "sum 66\n"
    assert repo.inside(f"sed -i 's/FACTOR 1/FACTOR 2/' parts.h; {make}", branch="warm") == "14\nsum 132\n"
    assert run_outside(repo, warm).stdout == "sum 66\n"
    assert repo.git("diff", "--name-only", "main", "warm") == "parts.h"
