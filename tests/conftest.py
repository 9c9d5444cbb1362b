"""Fixtures and the visible skip of tests that need root."""

from __future__ import annotations

import os
import signal

import pytest
from _pytest.runner import runtestprotocol

from stager.node.reclaim import proactive

# A runner under nohup or in the background passes on ignored signals, and what is ignored from outside stays so in stager.
for _signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)

pytest_plugins = [
    "tests.fuselab.fixtures",
    "tests.harness",
    "tests.osslab.fixtures",
    "tests.hublab.fixtures",
    "tests.fetchbed",
    "tests.mapped",
    "tests.pullbed",
]


_again: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """On a node that pages out memory by itself, give a test that failed two more chances, and say so at the end.

    There a page can go between the moment it is read and the moment it is looked at, whoever reads it.
    """
    if proactive() is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for _ in range(2):
        if not any(report.failed for report in reports):
            break
        _again.append(item.nodeid)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _again:
        terminalreporter.section("run again, for this node pages out memory by itself")
        for name in _again:
            terminalreporter.line(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root (mounts, cgroups, namespaces)")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
