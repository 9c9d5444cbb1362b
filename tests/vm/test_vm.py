"""The guest's tests as tests of this run: the VM boots once, each test function of tests/vm/guest has its result here."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tests.vm.conftest import GuestRun

pytestmark = pytest.mark.vm

GUEST = Path(__file__).parent / "guest"


def guest_functions() -> list[str]:
    """``test_file.py::test_function`` of all guest tests, read from the source: they can only be imported in the guest."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(GUEST.glob("test_*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("name", guest_functions())
def test_guest(name: str, guest: GuestRun) -> None:
    cases = guest.cases.get(name, [])
    if not cases:
        pytest.fail(f"{name} was not run ({guest.ending})", pytrace=False)
    bad = [f"{case.name}: {case.trouble}" for case in cases if case.trouble]
    if bad:
        pytest.fail("\n\n".join(bad), pytrace=False)


def test_the_guest_ended_well(guest: GuestRun) -> None:
    assert set(guest.cases) == set(guest_functions()), guest.ending
    if guest.code != 0 and not any(case.trouble for cases in guest.cases.values() for case in cases):
        pytest.fail(f"{guest.ending}\n{guest.output[-6000:]}", pytrace=False)


def test_help_says_what_the_script_does() -> None:
    script = str(GUEST.parent.parent.parent / "scripts" / "test-vm")
    done = subprocess.run([script, "--help"], check=True, capture_output=True, text=True)
    assert "throw-away virtual machine" in done.stdout
