"""One boot of the VM for all of tests/vm, and what came out of it at the end of the run's output."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "test-vm"
CANNOT_RUN = 77  # see scripts/test-vm
TIME_LIMIT_S = 700  # 180 s on four busy cores, 450 on four that others use too

collect_ignore = ["guest"]  # those run inside


@dataclass(frozen=True)
class Case:
    """One test of the guest; `trouble` is empty when it passed. A skipped one has not passed."""

    name: str
    seconds: float
    trouble: str


@dataclass
class GuestRun:
    """What the guest's pytest reported, by ``test_file.py::test_function``."""

    code: int
    output: str
    cases: dict[str, list[Case]] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """How the run ended, in a line."""
        lines = self.output.strip().splitlines()
        return f"scripts/test-vm: exit {self.code}: {lines[-1] if lines else 'no output'}"


_run: list[GuestRun] = []


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> GuestRun:
    """The finished run of all guest tests."""
    job = tmp_path_factory.mktemp("vm-job")
    argv = [str(SCRIPT), "--job", str(job), "--timeout", str(TIME_LIMIT_S)]
    done = subprocess.run(
        argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    run = GuestRun(done.returncode, done.stdout)
    if (job / "junit.xml").exists():
        run.cases = read_report(job / "junit.xml")
    _run.append(run)
    return run


def read_report(path: Path) -> dict[str, list[Case]]:
    """The cases of a JUnit report by file and function."""
    cases = defaultdict(list)
    for node in ET.parse(path).iter("testcase"):
        name = node.get("name", "")
        key = f"{node.get('classname', '').rpartition('.')[2]}.py::{name.partition('[')[0]}"
        cases[key].append(Case(name, float(node.get("time", 0)), trouble(node)))
    return dict(cases)


def trouble(node: ET.Element) -> str:
    """What went wrong in a test case, with what it printed; empty when it passed."""
    parts = {part.tag: part.text or part.get("message") or "" for part in node}
    found = [f"{tag}: {parts[tag]}" for tag in ("failure", "error", "skipped") if tag in parts]
    printed = [parts[tag][-4000:] for tag in ("system-out", "system-err") if tag in parts]
    return "\n".join([*found, *printed]) if found else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The guest's counts and what it measured."""
    for run in _run:
        cases = [case for group in run.cases.values() for case in group]
        passed = sum(not case.trouble for case in cases)
        terminalreporter.section("in the VM")
        terminalreporter.write_line(f"{passed} of {len(cases)} passed; {run.ending}")
        lines = run.output.splitlines()
        start = next((n for n, line in enumerate(lines) if "= survival:" in line), len(lines))
        for line in lines[start:]:
            if line.startswith("=") and "survival" not in line:
                break
            terminalreporter.write_line(line.strip("= "))
