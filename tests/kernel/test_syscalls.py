"""Wrappers of system calls whose way of being called matters."""

from __future__ import annotations

import os
import subprocess
import sys

_CLONES = """
import os, sys, threading
from overlayrun.kernel import syscalls
sys.setswitchinterval(1e-6)
for _ in range(2):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
for _ in range(60):
    pid = syscalls.clone(0)
    if pid == 0:
        sum(range(1000))
        os._exit(0)
    os.waitpid(pid, 0)
print("all ended", flush=True)
os._exit(0)
"""


def test_a_clone_beside_a_busy_thread_runs() -> None:
    command = [sys.executable, "-c", _CLONES]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ}
    )
    assert (done.stdout, done.stderr) == ("all ended\n", "")
