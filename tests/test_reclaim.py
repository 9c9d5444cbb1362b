"""Proactive reclaim is seen where it is on, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from stager.node.reclaim import proactive


def plant(top: Path, state: str, action: str) -> Path:
    scheme = top / "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/0"
    scheme.mkdir(parents=True)
    (scheme / "action").write_text(action + "\n")
    (top / "sys/kernel/mm/damon/admin/kdamonds/0/state").write_text(state + "\n")
    return scheme / "action"


def test_damon_that_pages_out(tmp_path: Path) -> None:
    assert proactive(str(tmp_path)) is None
    action = plant(tmp_path, "on", "pageout")
    assert proactive(str(tmp_path)) == str(action)


@pytest.mark.parametrize(("state", "action"), [("off", "pageout"), ("on", "stat")])
def test_damon_that_only_watches_or_is_off(state: str, action: str, tmp_path: Path) -> None:
    plant(tmp_path, state, action)
    assert proactive(str(tmp_path)) is None


@pytest.mark.parametrize(("text", "seen"), [("Y\n", True), ("N\n", False)])
def test_the_damon_reclaim_module(text: str, seen: bool, tmp_path: Path) -> None:
    module = tmp_path / "sys/module/damon_reclaim/parameters/enabled"
    module.parent.mkdir(parents=True)
    module.write_text(text)
    assert (proactive(str(tmp_path)) == str(module)) is seen
