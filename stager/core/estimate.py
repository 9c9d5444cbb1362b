"""What a handful of samples can honestly say."""

from __future__ import annotations

import math
import random

_Z = 1.645  # one-sided 95 %


def lower_bound(hits: int, samples: int) -> float:
    """The lower end of a one-sided 95 % interval for a share of which `hits` of `samples` were seen; below 1 always.

    All hits: the rule of three, 1 - 3/n. None: 0. Otherwise Wilson's score interval. Raises `ValueError` without samples.
    """
    if samples <= 0 or not 0 <= hits <= samples:
        raise ValueError("need 0 <= hits <= samples and samples > 0")
    if hits == 0:
        return 0.0  # the formula's rounding leaves 1e-19
    if hits == samples:  # of very few samples the rule of three says less than one hit fewer would
        return max(1 - 3 / samples, lower_bound(hits - 1, samples))
    share = hits / samples
    spread = _Z * math.sqrt(share * (1 - share) / samples + _Z**2 / (4 * samples**2))
    return max(0.0, (share + _Z**2 / (2 * samples) - spread) / (1 + _Z**2 / samples))


def sample_pages(pages: int, count: int, seed: int) -> list[int]:
    """Up to `count` distinct page numbers below `pages`, ascending, spread at random but repeatably for a `seed`."""
    if pages <= count:
        return list(range(pages))
    return sorted(random.Random(seed).sample(range(pages), count))  # noqa: S311 - statistics, not secrets
