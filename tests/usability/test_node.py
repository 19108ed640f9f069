"""Node inside: npm with a package's install script, and a project's tests."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from conftest import UserRepo

    from .conftest import Needs, Same

TESTS: Final = """\
const test = require("node:test"), assert = require("node:assert"), fs = require("fs"), http = require("http");
const os = require("os"), path = require("path"), { Worker } = require("worker_threads");
const { execFileSync, fork } = require("child_process");

test("the installed package", () => assert.equal(require("part")(20), 40));
test("its install script has run", () => assert.equal(fs.readFileSync("installed", "utf8"), "yes\\n"));
test("a worker", async () => {
  const worker = new Worker("require('worker_threads').parentPort.postMessage(42)", { eval: true });
  assert.equal(await new Promise((resolve) => worker.once("message", resolve)), 42);
});
test("children", () => assert.equal(execFileSync("sh", ["-c", "echo $((6 * 7))"]).toString(), "42\\n"));
test("a server", async () => {
  const server = http.createServer((_, response) => response.end("served"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);
  assert.equal(await answer.text(), "served");
  server.close();
});
test("a watcher sees a change", async () => {
  const watched = fs.mkdtempSync("watched-");
  const watcher = fs.watch(watched);
  const seen = new Promise((resolve) => watcher.once("change", (_, name) => resolve(name)));
  fs.writeFileSync(path.join(watched, "new"), "x");
  assert.equal(await seen, "new");
  watcher.close();
  fs.rmSync(watched, { recursive: true });
});
test("places to write", () => {
  for (const place of [os.tmpdir(), os.homedir(), "."]) fs.rmSync(fs.mkdtempSync(path.join(place, "x-")), { recursive: true });
});
"""
PACKAGE: Final = {
    "name": "part",
    "version": "1.0.0",
    "main": "index.js",
    "scripts": {"postinstall": "echo yes >installed"},  # newer versions of npm run a project's own alone
}
PROJECT: Final = {
    "name": "project",
    "version": "1.0.0",
    "dependencies": {"part": "file:part-1.0.0.tgz"},
    "scripts": {
        "test": "node --test --test-reporter=tap test/project.test.js",
        "postinstall": "echo yes >installed",
    },
}


@pytest.fixture
def project(repo: UserRepo, needs: Needs) -> UserRepo:
    """A project that has a package beside it, packed as npm packs."""
    needs("node", "npm")
    repo.write("part/package.json", json.dumps(PACKAGE))
    repo.write("part/index.js", "module.exports = (n) => 2 * n;\n")
    repo.write("package.json", json.dumps(PROJECT))
    repo.write("test/project.test.js", TESTS)
    repo.write(".gitignore", "node_modules/\ninstalled\n*.tgz\npackage-lock.json\n")
    repo.commit("a project")
    return repo


def test_npm_installs_and_the_tests_pass(project: UserRepo, same: Same) -> None:
    script = """set -e
    export npm_config_audit=false npm_config_fund=false npm_config_offline=true npm_config_update_notifier=false
    npm pack --silent ./part
    npm install --silent
    ls node_modules/part
    npm test --silent >log 2>&1 || { cat log; exit 1; }
    sed -n -E 's/^ *(ok|not ok) [0-9]+ - /\\1: /p' log; rm log
    """
    printed = same(script)
    passed = {line.removeprefix("ok: ") for line in printed.splitlines() if line.startswith("ok: ")}
    assert passed >= set(re.findall(r'^test\("(.*?)"', TESTS, re.MULTILINE)), printed
    assert "not ok" not in printed
    assert project.git("diff", "--stat", "main", "b") == ""
