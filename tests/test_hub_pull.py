"""What ``stager pull`` says before anything is written: a part that does not fit, a hub that lists and refuses, silence, and a DEST that is none."""

from __future__ import annotations

import pytest

from tests.hublab.repos import Zeros
from tests.pullbed import PullBed


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_a_part_larger_than_the_buffer_is_refused_before_anything_is_written(
    pullbed: PullBed, dry: tuple[str, ...]
) -> None:
    pullbed.commit({"huge.bin": Zeros(700 * 1000**3, sha256="0" * 64)})
    line = pullbed.refused(4, "--buffer", "64MiB", *dry)
    assert "`huge.bin` of 651.9 GiB goes in parts of 67.0 MiB, and --buffer holds 64.0 MiB" in line
    assert "hint: give `--buffer 134.0MiB` or more" in line
    assert pullbed.manifest() == {}
    assert pullbed.pull("--dry-run", "--buffer", "134.0MiB").code == 0, "what the hint says is true"
