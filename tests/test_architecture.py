"""The house rules, read from the source: who may import whom, who owns what, what core must not do.

Every rule is a function from modules to a list of violations. It runs over the real tree, and over a small wrong one
that shows that it can fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = "stager"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE
FLOORS = ("core", "node", "net", "store", "hub", "engine", "jobs", "cli")  # from the ground up
OWNERS = {  # third-party library -> the module or folder that may import it
    "click": "stager.cli",
    "anyio": "stager.engine",
    "tqdm": "stager.engine.report",
    "psutil": "stager.node.memory",
    "oss2": "stager.store.oss",
    "fastcrc": "stager.core.checksum",
    "modelscope": "stager.hub.modelscope",
    "modelscope_hub": "stager.hub.modelscope",  # what modelscope hands its calls to; its errors are named there
    "huggingface_hub": "stager.hub.huggingface",
}
ONLY_WHEN_USED = {
    "tqdm",
    "oss2",
    "modelscope",
    "modelscope_hub",
    "huggingface_hub",
}  # slow imports, never at module level
WORLD = {  # what would let core touch the world; a decision takes snapshots and does no I/O
    *(
        "os",
        "io",
        "shutil",
        "tempfile",
        "glob",
        "socket",
        "ssl",
        "urllib",
        "http",
        "subprocess",
        "multiprocessing",
    ),
    *(
        "threading",
        "asyncio",
        "concurrent",
        "queue",
        "select",
        "selectors",
        "signal",
        "time",
        "mmap",
        "ctypes",
    ),
    *("fcntl", "resource", "logging", "sys", "platform", "getpass", "pwd", "uuid", "secrets"),
}
WORLD_IN = {
    "stager.core.errors": {"os", "signal"},  # strerror and the names of signals
    "stager.core.plan": {"sys"},  # maxsize
    "stager.core.location": {"urllib"},  # unquote
}
PURE_PATHS = {"PurePosixPath", "PurePath"}
WORLD_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
MAX_LINES = 400
VAGUE = {"manager", "helper", "helpers", "util", "utils", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module; `name` is what was taken from it by ``from module import name``."""

    module: str
    name: str | None
    line: int
    top_level: bool


@dataclass(frozen=True)
class Module:
    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def floor(self) -> str:
        """The folder below the package, or the empty string for the package's own modules."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""

    @cached_property
    def imports(self) -> list[Import]:
        inside = {
            id(node)
            for function in ast.walk(self.tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for node in ast.walk(function)
        }
        return [
            Import(module, name, node.lineno, id(node) not in inside)
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for module, name in self._named(node)
        ]

    def _named(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str | None]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        else:
            base = node.module or ""
            if node.level:
                parts = self.name.split(".")
                kept = len(parts) - node.level + self.is_package
                base = ".".join([*parts[:kept], *([node.module] if node.module else [])])
            for alias in node.names:
                # ``from stager.node import mounts`` is an import of stager.node.mounts
                yield base, alias.name


def real_modules() -> list[Module]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text("utf-8"), is_package))
    return found


def top(module: str) -> str:
    return module.split(".")[0]


def owned_by(module: str, owner: str) -> bool:
    return module == owner or module.startswith(f"{owner}.")


def floor_violations(modules: list[Module]) -> list[str]:
    """A module imports from its own floor and the floors below it; nothing imports ``stager.__main__``."""
    bad = []
    for module in modules:
        for imported in module.imports:
            if top(imported.module) != PACKAGE or not module.floor:
                continue
            target = imported.module
            if target == PACKAGE and imported.name:
                target = f"{PACKAGE}.{imported.name}"
            parts = target.split(".")
            floor = parts[1] if len(parts) > 1 else ""
            if floor in FLOORS and FLOORS.index(floor) > FLOORS.index(module.floor):
                bad.append(f"{module.name}:{imported.line} imports upward: {target}")
            elif floor not in FLOORS and floor != "__version__":
                bad.append(f"{module.name}:{imported.line} imports {target}, which is on no floor")
    return bad


def homeless(modules: list[Module]) -> list[str]:
    """Every module lies on a floor; only the package itself and ``__main__`` do not."""
    return [m.name for m in modules if not m.floor and m.name not in (PACKAGE, f"{PACKAGE}.__main__")]


def owner_violations(modules: list[Module]) -> list[str]:
    """A third-party library is imported by its owner alone, and slow ones only where they are used."""
    bad = []
    for module in modules:
        for imported in module.imports:
            library = top(imported.module)
            if library == PACKAGE or library in sys.stdlib_module_names:
                continue
            owner = OWNERS.get(library)
            if owner is None:
                bad.append(f"{module.name}:{imported.line} imports {library}, which has no owner")
            elif not owned_by(module.name, owner):
                bad.append(f"{module.name}:{imported.line} imports {library}, which belongs to {owner}")
            elif library in ONLY_WHEN_USED and imported.top_level:
                bad.append(f"{module.name}:{imported.line} imports {library} before it is used")
    return bad


def core_violations(modules: list[Module]) -> list[str]:
    """Core decides; it does not read, write, wait or look at a clock."""
    bad = []
    for module in modules:
        if module.floor != "core":
            continue
        allowed = WORLD_IN.get(module.name, set())
        for imported in module.imports:
            library = top(imported.module)
            if library in WORLD - allowed:
                bad.append(f"{module.name}:{imported.line} imports {library}")
            if library == "pathlib" and imported.name not in PURE_PATHS:
                bad.append(f"{module.name}:{imported.line} imports pathlib.{imported.name or '*'}")
        bad += [
            f"{module.name}:{node.lineno} calls {node.func.id}()"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORLD_CALLS
        ]
    return bad


def long_modules(modules: list[Module]) -> list[str]:
    """A module that grows too long hides a noun that is missing."""
    counted = [(m.name, len(m.source.splitlines())) for m in modules]
    return [f"{name} has {count} lines" for name, count in counted if count > MAX_LINES]


def vague_names(modules: list[Module]) -> list[str]:
    return [m.name for m in modules if VAGUE & set(m.name.split(".")[-1].split("_"))]


def undocumented(modules: list[Module]) -> list[str]:
    """Public modules, classes, functions and methods say what they give.

    A method that overrides a documented one of a base class in this package inherits its contract and need not repeat it.
    """
    classes = {
        node.name: node for m in modules for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)
    }
    bad = [f"{m.name} (module)" for m in modules if not ast.get_docstring(m.tree)]
    for module in modules:
        for node in public(module.tree):
            if not ast.get_docstring(node):
                bad.append(f"{module.name}:{node.lineno} {node.name}")
            if isinstance(node, ast.ClassDef):
                bad += [
                    f"{module.name}:{method.lineno} {node.name}.{method.name}"
                    for method in public(node)
                    if not ast.get_docstring(method) and not inherits_docstring(node, method.name, classes)
                ]
    return bad


Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(scope: ast.Module | ast.ClassDef) -> Iterator[Named]:
    for node in scope.body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            marks = {ast.unparse(mark) for mark in node.decorator_list}
            if "overload" not in marks and not any(mark.endswith(".setter") for mark in marks):
                yield node


def inherits_docstring(of: ast.ClassDef, method: str, classes: dict[str, ast.ClassDef]) -> bool:
    for base in of.bases:
        name = ast.unparse(base).split("[")[0].split(".")[-1]
        parent = classes.get(name)
        if parent is None or parent is of:
            continue
        if any(node.name == method and ast.get_docstring(node) for node in public(parent)):
            return True
        if inherits_docstring(parent, method, classes):
            return True
    return False


Rule = Callable[[list[Module]], list[str]]
RULES: list[Rule] = [
    floor_violations,
    homeless,
    owner_violations,
    core_violations,
    long_modules,
    vague_names,
    undocumented,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule: Rule) -> None:
    modules = real_modules()
    assert len(modules) > len(FLOORS), "the package was not found"
    assert rule(modules) == []


WRONG: list[tuple[Rule, str, str]] = [
    (floor_violations, "stager.core.plan", "from stager.node import mounts"),
    (floor_violations, "stager.core.plan", "def f():\n    import stager.engine.lanes"),
    (floor_violations, "stager.core.plan", "if TYPE_CHECKING:\n    from stager.jobs.warm import Warm"),
    (floor_violations, "stager.node.files", "from ..engine import lanes"),
    (floor_violations, "stager.node.files", "from stager import cli"),
    (floor_violations, "stager.engine.lanes", "from stager.jobs import warm"),
    (floor_violations, "stager.jobs.warm", "from stager.cli.warm import command"),
    (floor_violations, "stager.jobs.warm", "from stager.__main__ import main"),
    (floor_violations, "stager.store.oss", "from stager.hub import modelscope"),
    (homeless, "stager.extra", ""),
    (homeless, "stager.extra.deep", ""),
    (owner_violations, "stager.jobs.warm", "import click"),
    (owner_violations, "stager.cli.warm", "from tqdm import tqdm"),
    (owner_violations, "stager.engine.report", "from tqdm import tqdm"),
    (owner_violations, "stager.engine.reporting", "def f():\n    from tqdm import tqdm"),
    (owner_violations, "stager.jobs.warm", "import anyio.to_thread"),
    (owner_violations, "stager.node.files", "def f():\n    import psutil"),
    (owner_violations, "stager.node.files", "import requests"),
    (core_violations, "stager.core.plan", "import os.path"),
    (core_violations, "stager.core.errors", "import socket"),
    (core_violations, "stager.core.plan", "from time import monotonic"),
    (core_violations, "stager.core.plan", "from pathlib import Path"),
    (core_violations, "stager.core.plan", "import pathlib"),
    (core_violations, "stager.core.plan", "def f():\n    return open('x')"),
    (long_modules, "stager.node.files", "x = 1\n" * (MAX_LINES + 1)),
    (vague_names, "stager.node.file_utils", ""),
    (vague_names, "stager.node.helpers", ""),
    (undocumented, "stager.node.files", '"""Doc."""\ndef f(): ...'),
    (undocumented, "stager.node.files", '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...'),
    (undocumented, "stager.node.files", "x = 1"),
]


@pytest.mark.parametrize(("rule", "name", "source"), WRONG)
def test_each_rule_sees_its_violation(rule: Rule, name: str, source: str) -> None:
    assert len(rule([Module(name, source)])) == 1


BASE = '"""D."""\nclass A:\n    """D."""\n    def f(self):\n        """D."""\n'
HEIRS = 'class B(A):\n    """D."""\nclass C(B):\n    """D."""\n    def f(self): ...\n    def _g(self): ...'
RIGHT: list[tuple[Rule, str, str]] = [
    (floor_violations, "stager.cli.warm", "from stager import __version__\nfrom stager.core import units"),
    (floor_violations, "stager.jobs.warm", "from stager.engine import lanes\nfrom .check import look"),
    (owner_violations, "stager.engine.report", "def f():\n    from tqdm import tqdm"),
    (owner_violations, "stager.cli.warm", "import click"),
    (core_violations, "stager.core.errors", "import os, signal\nfrom pathlib import PurePosixPath"),
    (core_violations, "stager.node.files", "import os\nopen('x')"),
    (undocumented, "stager.core.events", BASE + HEIRS),
]


@pytest.mark.parametrize(("rule", "name", "source"), RIGHT)
def test_no_rule_cries_wolf(rule: Rule, name: str, source: str) -> None:
    assert rule([Module(name, source)]) == []


def test_importing_every_module_leaves_the_slow_libraries_alone() -> None:
    names = [m.name for m in real_modules() if not m.name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({ONLY_WHEN_USED!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT.parent
    )
    assert done.stderr == ""
    assert done.stdout == "[]\n"
