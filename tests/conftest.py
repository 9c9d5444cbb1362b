"""Fixtures and the visible skip of tests that need root."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["tests.fuselab.fixtures", "tests.harness"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root (mounts, cgroups, namespaces)")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
