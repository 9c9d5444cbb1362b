"""Whether the copies that safetensors' own loader makes fit: each loader keeps the whole model, and the node must not die of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stager.core.bench.plan import SAFETENSORS
from stager.core.budget import Policy, admit, binding_text
from stager.core.units import GIB, MIB, count, format_size
from stager.jobs.bench.ground import Ground
from stager.jobs.bench.methods import read_by
from stager.node.filesystems import Pattern
from stager.node.memory import Gauge

if TYPE_CHECKING:
    from stager.core.bench.plan import Trial
    from stager.jobs.bench.ground import StoreGround
    from stager.jobs.bench.methods import Methods

_TORCH = 160 * MIB  # of its own that a process with torch has: 146 MiB were counted with torch 2.13
_CUDA = GIB  # the same with a context on a GPU, and a margin
_ON_GPU = 600 * MIB  # of the GPU's memory that each process takes before it holds a tensor, and a margin


def too_many_copies(
    planned: Sequence[Trial], grounds: Sequence[Ground | StoreGround], methods: Methods
) -> dict[Trial, str]:
    """Those of `planned` whose copies do not fit into memory, or onto the GPU, as it is now, with the reason."""
    found = {}
    for trial in planned:
        ground = grounds[trial.storage]
        if trial.method == SAFETENSORS and isinstance(ground, Ground):
            why = _why_not(ground, trial.loaders, methods)
            if why:
                found[trial] = why
    return found


def _why_not(ground: Ground, loaders: int, methods: Methods) -> str:
    size = read_by(SAFETENSORS, ground).total
    copies = f"{loaders} {'copy' if loaders == 1 else 'copies'} of {format_size(size)}"
    cuda = methods.to == "cuda"
    if cuda and methods.gpu_free is not None and loaders * (size + _ON_GPU) > methods.gpu_free:
        return f"{copies} do not fit into the {format_size(methods.gpu_free)} that are free on the GPU"
    pages = 0 if ground.facts.traits.pattern is Pattern.MEMORY else ground.total
    need = pages + loaders * (_CUDA if cuda else _TORCH + size)
    admission = admit(Gauge().read(), Policy(reserve=0), need, 0)
    if admission.fits:
        return ""
    bound = f": {binding_text(admission.binding)}" if admission.binding else ""
    what = f"{count(loaders, 'loader')} with torch" if cuda else copies
    return f"{what}, beside the pages of the files, do not fit into memory{bound}"
