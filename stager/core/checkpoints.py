"""One folder's weights by name alone: which of a checkpoint's copies an engine loads, and why the others are left out.

A folder may hold one model several times: in safetensors and in PyTorch's format, plain and as variants (``model.fp16.safetensors``), and
as the authors' own ``consolidated`` copy. `stager.core.formats.folder` judges what is there with the indexes at hand; this
is asked before anything is there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stager.core.formats import names
from stager.core.formats.names import Family

_INDEX = re.compile(r"(?P<head>.+)\.(?:safetensors|bin)\.index(?:\.(?P<variant>[^.]+))?\.json", re.DOTALL)
_ADDITION = re.compile(r"adapter|lora|embed", re.IGNORECASE)  # goes with a model, and is none

COPY = "a PyTorch copy of the safetensors"
_CONSOLIDATED = "the consolidated copy of the model"
_INDEX_OF = "an index of what is left out"


@dataclass(frozen=True, slots=True)
class _File:
    """A weight or an index of weights, by what its name says."""

    path: str
    family: Family
    stem: str
    variant: str
    index: bool

    @property
    def consolidated(self) -> bool:
        return self.stem == "consolidated"

    @property
    def canonical(self) -> bool:
        """One of the names under which the folder's one model is saved, and not the authors' copy of it."""
        return not self.consolidated and names.is_canonical(self.stem) and "." not in self.variant

    @property
    def addition(self) -> bool:
        return not self.canonical and _ADDITION.search(self.stem) is not None

    @property
    def copy(self) -> tuple[str, Family]:
        return self.variant, self.family


def is_addition(path: str) -> bool:
    """True for weights that go with a model and are none by themselves, as an adapter's."""
    file = _file(path)
    return file is not None and file.addition


def variants(paths: Sequence[str]) -> set[str]:
    """The variants that there are of the models at `paths`."""
    found = {file.variant for path in paths if (file := _file(path)) and file.canonical and not file.index}
    return found - {""}


def surplus(paths: Sequence[str], variant: str, *, plain_first: bool) -> dict[str, str]:
    """Of the weights and indexes among `paths`, all of one folder, those that are left out: path -> why.

    `variant` is preferred where the folder has it; empty is the plain model. With `plain_first` the variant counts more than the format, as for
    diffusers, which never loads another one; else safetensors of any variant come before PyTorch files.
    """
    files = [file for path in paths if (file := _file(path))]
    weights = [file for file in files if not file.index]
    copies = {file.copy for file in weights if file.canonical}
    best = min(copies, key=lambda copy: _rank(copy, variant, plain_first=plain_first), default=None)
    # What has no plain model and not the variant asked for: nobody can say which of its variants is meant.
    vague = best is not None and best[0] not in ("", variant)
    stand_in = _stand_in(weights, best, plain_first=plain_first)
    tensors = {posixpath.splitext(file.path)[0] for file in weights if file.family is Family.SAFETENSORS}
    out: dict[str, str] = {}
    for file in files:
        twin = posixpath.splitext(file.path)[0] in tensors
        if file.family is Family.PYTORCH and (twin or (stand_in and not file.addition)):
            why = COPY
        elif file.canonical and best is not None:
            why = "" if file.copy == best else _not_best(file, best, vague=vague)
        elif (
            file.consolidated
            and best is not None
            and not vague
            and best[1] in (Family.SAFETENSORS, file.family)
        ):
            why = _CONSOLIDATED
        else:
            continue
        if why:
            out[file.path] = _INDEX_OF if file.index else why
    return out


def _rank(copy: tuple[str, Family], variant: str, *, plain_first: bool) -> tuple[object, ...]:
    nearness = 0 if copy[0] == variant else 1 if copy[0] == "" else 2
    pickled = copy[1] is Family.PYTORCH
    return (nearness, pickled, copy[0]) if plain_first or variant else (pickled, nearness, copy[0])


def _stand_in(weights: Sequence[_File], best: tuple[str, Family] | None, *, plain_first: bool) -> bool:
    """Whether the folder's safetensors are the model, so that its PyTorch files are copies."""
    if best is not None and best[1] is Family.SAFETENSORS:
        return True
    if best is not None and plain_first:
        return False
    # The authors' own format is loaded by other code, if at all: it stands in for no PyTorch model that is saved as usual.
    return any(
        file.family is Family.SAFETENSORS
        and not file.canonical
        and not file.addition
        and not (file.consolidated and best is not None)
        for file in weights
    )


def _not_best(file: _File, best: tuple[str, Family], *, vague: bool) -> str:
    """Why a file is left out that belongs to another copy than the best; empty where nobody can say that it is another."""
    if file.variant == best[0]:
        return COPY  # of two formats the best is never PyTorch's
    if vague and file.family is best[1]:
        return ""
    return (
        f"the variant {file.variant}" if file.variant else f"the plain model: the variant {best[0]} is taken"
    )


def _file(path: str) -> _File | None:
    name = posixpath.basename(path)
    if (listed := names.index_family(name)) is not None:
        match = _INDEX.fullmatch(name)
        assert match is not None  # an index's name for both
        stem, _, variant = match["head"].partition(".")
        return _File(path, listed, stem, match["variant"] or variant, index=True)
    kind = names.family(path)
    if kind not in (Family.SAFETENSORS, Family.PYTORCH):
        return None
    return _File(path, kind, names.stem(name), names.variant(name), index=False)
