"""Real hubs, where there is a way to them: ``STAGER_TEST_HUB="ms://owner/name hf://owner/name" scripts/test tests/test_hub_real.py``.

A small model will do: its files below 20 MB are read whole, of the largest one a range in the middle.
"""

from __future__ import annotations

import hashlib
import os

import pytest

from stager.core.source import Source
from stager.hub.opening import HubOptions, open_hub
from stager.jobs.inflow import Digest
from stager.jobs.transit import digest_for, stated

NAMES = os.environ.get("STAGER_TEST_HUB", "").split()
WHOLE = 20_000_000  # bytes


@pytest.mark.skipif(not NAMES, reason="no real hub: set STAGER_TEST_HUB='ms://owner/name hf://owner/name'")
@pytest.mark.parametrize("name", NAMES or [""])
def test_a_real_model_is_listed_and_its_files_are_what_the_hub_states(name: str) -> None:
    hub = open_hub(Source.parse(name), HubOptions(give_up_after=30))
    found = hub.snapshot()
    assert len(found.revision) == 40, "pinned to a commit"
    reader = hub.reader()
    for one in found.files:
        if one.entry.size > WHOLE:
            continue
        digest: Digest = digest_for(one)
        reader.read(one.entry.path, 0, one.entry.size, digest.update, etag=one.version)
        assert stated(one) in (None, digest.hexdigest()), one.entry.path
    largest = max(found.files, key=lambda one: one.entry.size)
    start, length = largest.entry.size // 2, min(1 << 20, largest.entry.size // 2)
    first, again = hashlib.sha256(), hashlib.sha256()
    for sink in (first, again):
        reader.read(largest.entry.path, start, length, sink.update, etag=largest.version)
    assert first.digest() == again.digest()
    reader.close()
