"""The package's structure: imports go down the floors, the launch path is lean, pieces are small."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import overlayrun

PACKAGE: Final = Path(overlayrun.__file__).parent
ROOT: Final = "overlayrun"

# Lowest floor first; a floor is a group of lines. A module may import any lower floor, and modules left of it
# on its own line; lines of one floor do not know each other. The table holds what is planned, too.
FLOORS: Final[tuple[tuple[tuple[str, ...], ...], ...]] = (
    (("errors", "model"), ("interrupted",)),
    (
        (
            *(
                "kernel.calls",
                "kernel.waits",
                "kernel.passed",
                "kernel.abi",
                "kernel.fuse",
                "kernel.syscalls",
                "kernel.namespaces",
                "kernel.attempt",
            ),
            *("kernel.btrfs", "kernel.extents", "kernel.mountinfo", "kernel.remote"),
            *("kernel.groups", "kernel.cgroups"),
            *("kernel.abilities", "kernel.disk", "kernel.probe"),
        ),
    ),
    (("files", "streams", "values", "program"),),
    (
        ("layers.names", "layers.marks", "layers.wire", "layers.upper", "layers.walk", "layers.duplicate"),
        (
            *(
                "store.git",
                "store.settings",
                "store.refs",
                "store.location",
                "store.commits",
                "store.heads",
                "store.last",
                "store.trees",
            ),
            *(
                "store.repo",
                "store.hashes",
                "store.scratch",
                "store.pack",
                "store.torn",
                "store.quarantine",
                "store.importer",
                "store.lfs",
                "store.convert",
            ),
            *("store.ignore", "store.rule_tree", "store.merger", "store.landings", "store.compare"),
        ),
    ),
    (
        (
            *("control", "workspace.layout", "workspace.record", "workspace.flushed", "workspace.lock"),
            *("workspace.catalogue", "workspace.names"),
        ),
    ),
    (
        ("process", "terminal", "relay", "owner", "giving"),
        (
            *("bases.stack", "bases.index", "bases.freeze", "bases.dirty", "bases.ignored", "bases.carried"),
            "bases.gitdir",
            "bases.gitcopy",
        ),
    ),
    (
        (
            *("sandbox.environment", "sandbox.network", "sandbox.profiles", "sandbox.seeds", "sandbox.home"),
            "sandbox.secrets",
            *(
                "sandbox.covers",
                "sandbox.plan",
                "sandbox.parts",
                "sandbox.giving",
                "sandbox.limits",
                "sandbox.mounts",
                "sandbox.seccomp",
            ),
            *("sandbox.landlock", "sandbox.switches", "sandbox.confinement"),
            *("sandbox.aside", "sandbox.renaming", "sandbox.renames", "sandbox.asking"),
            *("sandbox.reading", "sandbox.trees"),
        ),
        (
            *(
                "backends.api",
                "backends.joining",
                "backends.present",
                "backends.overlay",
                "backends.btrfs",
                "backends.reflink",
            ),
            *("backends.copy", "backends.registry"),
        ),
    ),
    (
        ("keeper", "joined", "live", "view", "command", "idle"),
        ("ports", "tunnel", "proxy_rules", "proxy", "publish", "connections"),
        (
            "reader",
            "survey",
            "collector",
            "masking",
            "account",
            "wording",
            "snapshot_job",
            "chain",
            "snapshot",
        ),
        ("carriers", "incoming"),
        ("refusals", "checks", "leftovers", "doctor"),
    ),
    (
        (
            *(
                "removal",
                "halfway",
                "chosen_backend",
                "prepare",
                "folders.gitdir",
                "capture",
                "hearing",
                "adopt",
                "durable",
                "swap",
                "report",
                "restore",
                "transplant",
                "recover",
                "reconcile.steps",
                "reconcile.backup",
                "reconcile.worktrees",
                "reconcile.touched",
                "reconcile.works",
                "reconcile.exchange",
                "bring",
            ),
            *(
                "revision",
                "story",
                "alone",
                "overview",
                "unsaved",
                "collect",
                "watchdog",
                "guide",
                "whereami",
                "along",
                "fork",
                "guests",
                "answers",
                "supervisor",
                "finish",
                "run",
                "forward",
            ),
            *("sync", "absorb", "inside", "inspection"),
        ),
    ),
    (
        (
            *(
                "reconcile.settings",
                "reconcile.events",
                "reconcile.board",
                "reconcile.plan",
                "reconcile.paths",
            ),
            *(
                "reconcile.background",
                "reconcile.queue",
                "reconcile.door",
                "reconcile.checks",
                "reconcile.candidates",
            ),
            *("reconcile.conflict", "reconcile.acceptance", "reconcile.resolutions", "reconcile.resolvers"),
            *(
                "reconcile.replay",
                "reconcile.deliver",
                "reconcile.land",
            ),
            *("reconcile.gate", "reconcile.forecast", "reconcile.handoff", "reconcile.reconciler"),
        ),
        ("agents.claude", "agents.codex", "agents.jsonc", "agents.recipes", "agents.integration"),
        ("agents.mcp_results", "agents.mcp_calls", "agents.mcp"),
        (
            *("agents.opencode.servers", "agents.opencode.exchange", "agents.opencode.events"),
            "agents.opencode.hub",
        ),
        (
            *("folders.api", "folders.nodes", "folders.slow", "folders.device", "folders.passthrough"),
            "folders.moves",
            "folders.requests",
            *("folders.top", "folders.waiting", "folders.filesystem", "folders.channel", "folders.server"),
            *("folders.users", "folders.trees", "folders.place", "folders.shown"),
            *("folders.children", "folders.freezing", "folders.branches"),
            *("folders.commits", "folders.daemon", "folders.examination"),
        ),
    ),
    (
        (
            *("batch.task", "batch.result", "batch.layout", "batch.engines.api"),
            # What is asked for.
            *("batch.template", "batch.reading", "batch.json_text", "batch.toml_text", "batch.yaml_text"),
            *("batch.documents", "batch.schema", "batch.fields", "batch.foreach", "batch.drafts"),
            *("batch.needs", "batch.making", "batch.tasks"),
            # What one attempt does.
            *(
                "batch.bundles",
                "batch.transcript",
                "batch.classify",
                "batch.artifacts",
                "batch.run_options",
                "batch.leavings",
                "batch.attempt",
                "batch.engines.lookout",
                "batch.engines.nursery",
                "batch.engines.local",
            ),
            # Attempts on other machines.
            *("batch.address", "batch.mirror", "batch.parcel", "batch.launcher", "batch.calls"),
            *("batch.security", "batch.station", "batch.worker", "batch.arrival", "batch.promote"),
            *("batch.engines.cluster", "batch.engines.dask"),
            # Who attempts what, and when.
            *("batch.facts", "batch.settings", "batch.window", "batch.plan"),
            *("batch.journal", "batch.capacity", "batch.account", "batch.progress"),
            *("batch.salvage", "batch.coordinator"),
            # What comes of it.
            *("batch.landing", "batch.publish", "batch.takeover"),
            *("batch.reports.text", "batch.reports.summary", "batch.reports.junit"),
            *("batch.reports.github", "batch.reports.html", "batch.reports.files"),
        ),
    ),
    (
        (
            *("cli.options", "cli.configured", "cli.telling", "cli.here", "cli.words", "cli.render"),
            *(
                "cli.snapshot_client",
                "cli.hook",
                "cli.inside_client",
                "cli.main",
                "launch",
                "cli.opened",
                "cli.targets",
                "cli.shapes",
                "cli.sessions",
                "cli.carrying",
                "cli.patches",
            ),
            *(
                "cli.run",
                "cli.join",
                "cli.snapshot",
                "cli.fork",
                "cli.ls",
                "cli.status",
                "cli.log",
                "cli.show",
                "cli.diff",
            ),
            *("cli.queue", "cli.live", "cli.reconcile", "cli.conflicts", "cli.sync"),
            *("cli.bring", "cli.restore", "cli.rm", "cli.gc", "cli.doctor", "cli.config", "cli.completion"),
            *("cli.mcp", "cli.hub", "cli.integrate", "cli.open"),
            *("cli.batch_options", "cli.batch_lines", "cli.batch_table", "cli.batch_engine"),
            *("cli.batch_publish", "cli.batch_end", "cli.batch_runs", "cli.batch", "cli.worker"),
        ),
    ),
)

# Modules that may import inside a function, and why. Nobody else may.
LATE_IMPORTS: Final = {
    "along": "needs the backends (5 ms to import) only for forks of whole trees",
    "batch.worker": "forks its launcher before it loads Dask, which is an extra and starts threads",
    "bases.carried": "needs pathspec (20 ms to import) only where a .worktreeinclude is",
    "chosen_backend": "needs the backends (5 ms) once after each start of the machine, and where no overlay is",
    "cli.batch": "needs rich (60 ms to import) only for a live table on a terminal",
    "cli.batch_engine": "needs Dask, which is an extra and takes 400 ms to import",
    "cli.conflicts": "needs rich (60 ms to import) only for a bar on a terminal",
    "cli.fork": "needs pygit2 (45 ms to import) only where no branch is named or a snapshot is to be taken",
    "cli.mcp": "needs the protocol's SDK, which is an extra and takes 800 ms to import",
    "cli.main": "loads a command's module, and with it rich or pygit2, only when that command is called",
    "cli.render": "needs rich (40 ms to import) only for a table on a terminal",
    "cli.reconcile": "needs rich (60 ms to import) only for a live table on a terminal",
    "connections": "needs asyncio (60 ms to import) and sockets (2 ms) only for --net allow= and --publish",
    "finish": "needs the merge engine only for --rm --apply",
    "launch": "hands over to click (30 ms to import) only for commands that are no run",
    "prepare": "needs freezing, dirty and carried files (2 to 5 ms each) only where there are any",
    "recover": "needs pygit2 (65 ms to import) only after a kill or a power cut",
    "run": "needs pygit2 (65 ms to import) only when something changed, the probes only when nothing starts",
    "sandbox.profiles": "needs json (4 ms to import) only where the user gives OpenCode settings by a variable",
    "sandbox.limits": "needs control groups (3 ms to import) only where a limit or --freeze is asked for",
    "cli.doctor": "needs the inspection only for --sandbox",
    "supervisor": "needs sockets (3 ms) and pygit2 (65 ms) only for a command that goes on for a while",
    "terminal": "needs termios (1 ms) only on a terminal",
    "workspace.lock": "needs sockets (3 ms to import) only for a branch that is shown as a folder",
    "workspace.layout": "needs hashlib (2 ms to import) only where OVERLAYRUN_STATE_DIR is set",
    "workspace.record": "needs json (4 ms to import) only for what is no throwaway",
}

# What a run may not load on its way to the command: each costs milliseconds before the agent starts.
HEAVY: Final = {"click", "dataclasses", "pathlib", "psutil", "pygit2", "re", "rich", "subprocess", "typing"}

VAGUE: Final = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
MODULE_LINES: Final = 400
FUNCTION_LINES: Final = 50
NESTING: Final = 3
PARAMETERS: Final = 6

_BLOCKS: Final = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Imports:
    """What one module imports of the package: as it loads, for types alone, inside functions."""

    early: set[str] = field(default_factory=set)
    typing: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)


@cache
def modules() -> dict[str, ast.Module]:
    """Give each module's syntax tree by its name below the package."""
    return {name: ast.parse(path.read_bytes()) for name, path in paths().items()}


@cache
def paths() -> dict[str, Path]:
    """Give each module's file by its name below the package; an `__init__` has its folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def places() -> dict[str, tuple[int, int, int]]:
    """Give the floor, the line on it, and the place on the line of each module in the table."""
    return {
        name: (floor, line, place)
        for floor, lines in enumerate(FLOORS)
        for line, names in enumerate(lines)
        for place, name in enumerate(names)
    }


def imports_of(name: str, tree: ast.Module) -> Imports:
    """Sort what a module imports of the package by when it does so."""
    imports = Imports()

    def visit(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(_targets(node) - {name})
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for then in node.body:
                visit(then, imports.typing)
            for otherwise in node.orelse:
                visit(otherwise, found)
        else:
            inside = imports.late if isinstance(node, Function | ast.Lambda) else found
            for child in ast.iter_child_nodes(node):
                visit(child, inside)

    visit(tree, imports.early)
    return imports


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _targets(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {_module_of(alias.name) for alias in node.names} - {""}
    assert node.level == 0, "the package imports by absolute names"
    return {_module_of(f"{node.module}.{alias.name}") for alias in node.names} - {""}


def _module_of(dotted: str) -> str:
    # "overlayrun.store.refs.branch_ref" is "store.refs"; what is no module of the package is "".
    head, *rest = dotted.split(".")
    while head == ROOT and rest:
        if ".".join(rest) in paths():
            return ".".join(rest)
        rest.pop()
    return ""


def may_import(name: str, target: str) -> bool:
    """Say whether the table lets `name` import `target`; what has no place yet is another test's matter."""
    if name not in places() or target not in places():
        # A folder's bare name has no place ever: `from overlayrun.store import refs` is the way to say it.
        return not target or paths()[target].name != "__init__.py"
    floor, line, place = places()[name]
    other_floor, other_line, other_place = places()[target]
    return other_floor < floor or ((other_floor, other_line) == (floor, line) and other_place < place)


def functions() -> Iterator[tuple[str, Function]]:
    """Give each function of the package with where it stands, for a message."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{name}:{node.lineno} {node.name}", node


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Count the deepest nesting of blocks under `node`; an `elif` counts as its `if`, inner functions not."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, nesting(child, depth + (isinstance(child, _BLOCKS) and not is_elif)))
    return deepest


def length(node: Function) -> int:
    """Count a function's lines from its `def`, without its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is None:
        return lines
    doc = node.body[0]
    return lines - ((doc.end_lineno or doc.lineno) - doc.lineno + 1)


def parameters(node: Function) -> int:
    """Count a function's parameters, `self` and `cls` left out."""
    arguments = node.args
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    return sum(1 for one in every if one is not None and one.arg not in {"self", "cls"})


def test_the_table_names_each_module_once() -> None:
    names = [name for lines in FLOORS for line in lines for name in line]
    assert sorted(names) == sorted(set(names))


def test_every_module_has_a_place_in_the_table() -> None:
    packages = {name for name, path in paths().items() if path.name == "__init__.py"}
    missing = paths().keys() - packages - places().keys() - {"__main__"}
    assert not missing, "add them to FLOORS"


def test_imports_go_down_the_floors() -> None:
    upward = []
    for name, tree in modules().items():
        imports = imports_of(name, tree)
        targets = imports.early | imports.typing | imports.late
        upward += [f"{name} imports {target}" for target in sorted(targets) if not may_import(name, target)]
    assert not upward, "\n".join(upward)


def test_no_import_cycle() -> None:
    needs = {name: imports_of(name, tree).early & paths().keys() for name, tree in modules().items()}
    left = set(needs)
    # What needs nothing that is left, or is needed by nothing that is left, is on no cycle.
    while free := {
        name for name in left if not needs[name] & left or not any(name in needs[n] for n in left)
    }:
        left -= free
    assert not left, "these import each other"


def test_imports_inside_functions_stand_in_the_table() -> None:
    late = {name for name, tree in modules().items() if _imports_late(tree)}
    assert late <= LATE_IMPORTS.keys()


def _imports_late(tree: ast.Module) -> bool:
    inner = (node for node in ast.walk(tree) if isinstance(node, Function))
    return any(isinstance(node, ast.Import | ast.ImportFrom) for each in inner for node in ast.walk(each))


def test_a_packages_init_holds_its_docstring_alone() -> None:
    # The root's may hold a lazy __getattr__ too, so that importing one part loads no other.
    inits = {name: modules()[name] for name, path in paths().items() if path.name == "__init__.py"}
    assert all(ast.get_docstring(tree) for tree in inits.values())
    assert [name for name, tree in inits.items() if name and len(tree.body) > 1] == []
    assert imports_of("", inits[""]).early == set()


def test_names_say_something() -> None:
    parts = {part for name in paths() for part in name.split(".")}
    assert not parts & VAGUE


def test_importing_the_launcher_loads_nothing_heavy() -> None:
    # -S: no site, so that nothing of the environment's own start (an editable install's finder) hides a load.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import overlayrun.launch; print(*sys.modules)"
    python = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent)]
    loaded = subprocess.check_output(python, text=True).split()
    assert "overlayrun.launch" in loaded
    assert not HEAVY & set(loaded)


def test_modules_are_short() -> None:
    counts = {name: len(path.read_bytes().splitlines()) for name, path in paths().items()}
    assert {name: count for name, count in counts.items() if count > MODULE_LINES} == {}


def test_functions_are_small() -> None:
    wrong = []
    for where, node in functions():
        counts = {"lines": length(node), "levels": nesting(node), "parameters": parameters(node)}
        limits = {"lines": FUNCTION_LINES, "levels": NESTING, "parameters": PARAMETERS}
        wrong += [f"{where}: {counts[what]} {what}" for what in counts if counts[what] > limits[what]]
    assert not wrong, "\n".join(wrong)


def test_a_warm_run_in_which_nothing_changes_loads_nothing_heavy(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    git = ["git", "-C", str(repo), "-c", "user.name=T", "-c", "user.email=t@example.invalid"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=First"]):
        subprocess.run([*git, *words], env=environment, check=True)
    overlayrun_true = [
        str(Path(sys.executable).with_name("overlayrun")),
        "--rm",
        "--dirty",
        "ignore",
        "--",
        "true",
    ]

    subprocess.run(overlayrun_true, cwd=repo, env=environment, check=True, stdin=subprocess.DEVNULL)

    # What the interpreter's own start loads in this environment (an editable install's finder) is not ours.
    start = _imported([sys.executable, "-c", ""], repo, environment)
    assert not HEAVY & (_imported(overlayrun_true, repo, environment) - start)


def _imported(command: list[str], directory: Path, environment: dict[str, str]) -> set[str]:
    environment = {**environment, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        check=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert rows
    return {row.rpartition("|")[2].strip() for row in rows}
