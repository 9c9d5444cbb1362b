"""Fixtures of the guest's tests, and the table of survival at the end of the run."""

from __future__ import annotations

import itertools
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.vm.guest.lab import CGROUPS, Group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_numbers = itertools.count(1)
SURVIVAL: dict[str, dict[str, int]] = {}  # touch -> LRU -> MB still resident


@pytest.fixture
def folder() -> Iterator[str]:
    """An empty folder on the ext4 scratch disk."""
    path = f"/scratch/t{next(_numbers)}"
    os.mkdir(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def new_group() -> Iterator[Callable[..., Group]]:
    """Makes memory cgroups at the top of the hierarchy; they are removed afterwards."""
    made: list[Group] = []

    def make(**knobs: str) -> Group:
        made.append(Group(f"{CGROUPS}/t{next(_numbers)}", **knobs))
        return made[-1]

    yield make
    for group in made:
        group.remove()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what survived, for people to read and for the README."""
    if not SURVIVAL:
        return
    terminalreporter.section("survival: MB of a 200 MB file still resident after a stream of reads")
    terminalreporter.write_line(f"{'touched by':<28} {'MGLRU':>7} {'classic':>7}")
    for touch, by_lru in SURVIVAL.items():
        cells = (f"{by_lru[kind]:>7}" if kind in by_lru else f"{'-':>7}" for kind in ("mglru", "classic"))
        terminalreporter.write_line(f"{touch:<28} {' '.join(cells)}")
