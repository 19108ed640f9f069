"""Python inside: a virtual environment, pip with the registry, a project's tests, all kinds of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from conftest import UserRepo

PROJECT: Final = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"
[project]
name = "sample"
version = "1.0"
[project.scripts]
sample = "sample:main"
[tool.setuptools]
packages = ["sample"]
"""

TESTS: Final = """\
import asyncio, concurrent.futures, multiprocessing, os, subprocess, sys, tempfile, threading, unittest
from multiprocessing import shared_memory

import sample


class Workers(unittest.TestCase):
    def test_process_pools(self):
        for start in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(start)
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                self.assertEqual(list(pool.map(sample.double, range(20))), list(range(0, 40, 2)))

    def test_shared_memory_and_semaphores(self):
        block = shared_memory.SharedMemory(create=True, size=1 << 20)
        block.buf[:3] = b"abc"
        with open(f"/dev/shm/{block.name}", "rb") as file:
            self.assertEqual(file.read(3), b"abc")
        block.close()
        block.unlink()
        self.assertTrue(multiprocessing.Semaphore(1).acquire(timeout=5))

    def test_a_server_and_its_client(self):
        async def talk(path):
            async def answer(reader, writer):
                writer.write((await reader.readline()).upper())
                writer.close()

            for serve, connect in (
                (asyncio.start_server(answer, "127.0.0.1", 0), None),
                (asyncio.start_unix_server(answer, path), asyncio.open_unix_connection(path)),
            ):
                server = await serve
                port = server.sockets[0].getsockname()
                reader, writer = await (connect or asyncio.open_connection(*port))
                writer.write(b"hello\\n")
                self.assertEqual(await reader.readline(), b"HELLO\\n")
                writer.close()
                server.close()

        with tempfile.TemporaryDirectory() as place:
            asyncio.run(talk(place + "/socket"))

    def test_many_threads_and_processes(self):
        threads = [threading.Thread(target=os.getpid) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        started = [subprocess.Popen([sys.executable, "-S", "-c", ""]) for _ in range(20)]
        self.assertEqual([process.wait() for process in started], [0] * 20)

    def test_files_that_are_renamed_linked_and_moved_between_directories(self):
        os.makedirs("one/two", exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir="one", delete=False) as file:
            file.write("x")
        os.replace(file.name, "one/two/moved")
        os.link("one/two/moved", "one/linked")
        os.symlink("linked", "one/symbolic")
        os.mkfifo("one/pipe")
        self.assertEqual(os.stat("one/linked").st_nlink, 2)
        subprocess.run(["mv", "one", os.path.expanduser("~/one")], check=True)
        subprocess.run(["rm", "-r", os.path.expanduser("~/one")], check=True)
"""

INSTALL: Final = """set -e
/usr/bin/python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check .
.venv/bin/sample
cd tests
../.venv/bin/python -m unittest 2>&1 | tail -n 30
"""


def test_pip_installs_a_project_and_its_tests_pass(repo: UserRepo) -> None:
    repo.write("pyproject.toml", PROJECT)
    repo.write(
        "sample/__init__.py", 'def double(n): return 2 * n\ndef main(): print("installed", __file__)\n'
    )
    repo.write("tests/test_sample.py", TESTS)
    repo.write(".gitignore", ".venv/\nbuild/\n*.egg-info/\n__pycache__/\n")
    repo.commit("a project")
    printed = repo.inside(INSTALL)
    assert printed.startswith(f"installed {repo.root}/.venv/lib/python3."), printed
    assert printed.endswith("\nOK\n"), printed
    assert not (repo.root / ".venv").exists()
    assert repo.git("diff", "--stat", "main", "b") == ""
