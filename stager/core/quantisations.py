"""GGUF files by quantisation: what their names say, and the one that was asked for."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Mapping, Sequence

from stager.core.errors import UsageError
from stager.core.formats import names
from stager.core.units import format_size, shown

_LABEL = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(?:"
    r"I?Q[1-8](?:_(?:K|[0-9]|S|M|L|XL|XS|XXS|XXL|NL|KS|KSS|KL|KT|P|R4|R8))*"
    r"|TQ[12]_[0-9]|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32"
    r")(?![A-Za-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_COMMON = "Q4_K_M"  # what llama.cpp itself takes of a repository when nothing is said


def is_projector(path: str) -> bool:
    """True for the vision or audio half of a model, of which llama.cpp needs one with any quantisation."""
    return "mmproj" in posixpath.basename(path).lower()


def is_matrix(path: str) -> bool:
    """True for what quantising was guided by; nothing loads it."""
    return posixpath.basename(path).lower().startswith("imatrix")


def label(path: str) -> str:
    """The quantisation that the name of a GGUF file or of its folder says, as ``Q4_K_M``; else the file's name without part and suffix."""
    folder, name = posixpath.split(path)
    part = names.part(name)
    plain = part.group[0] if part else posixpath.splitext(name)[0]
    own = _last(plain)
    around = next((found for above in reversed(folder.split("/")) if (found := _last(above))), "")
    if own and not around.endswith(f"-{own}"):  # a folder may say UD-Q4_K_XL where its files say Q4_K_XL
        return own
    return around or own or plain


def chosen(sizes: Mapping[str, int], quant: str | None) -> str:
    """The label to take, of the model files in `sizes` (path -> bytes, not empty).

    Without `quant`, the only one there is. Raises `UsageError`, naming all with their sizes, when there are several and none was asked for, and
    when `quant` is none of them.
    """
    totals: dict[str, int] = {}
    for path, size in sizes.items():
        totals[label(path)] = totals.get(label(path), 0) + size
    known = sorted(totals, key=lambda one: (totals[one], one))
    there = ", ".join(f"{shown(one)} ({format_size(totals[one])})" for one in known)
    if quant is None:
        if len(known) == 1:
            return known[0]
        likely = _COMMON if _COMMON in totals else known[len(known) // 2]
        raise UsageError(
            f"the model is there in {len(known)} quantisations: {there}",
            hint=f"choose one: `--quant {shown(likely)}`",
        )
    if found := _match(quant, known):
        return found
    near = _near(quant, known)
    raise UsageError(
        f"there is no quantisation `{shown(quant)}`; there is {there}",
        hint="did you mean " + " or ".join(f"`--quant {shown(one)}`" for one in near) + "?",
    )


def _match(quant: str, known: Sequence[str]) -> str | None:
    wanted = quant.casefold()
    exact = [one for one in known if one.casefold() == wanted]
    dynamic = [one for one in known if one.casefold() == f"ud-{wanted}"]
    return next(iter(exact + dynamic), None)


def _near(quant: str, known: Sequence[str]) -> list[str]:
    by_key = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(quant.casefold(), list(by_key), n=3, cutoff=0.5)
    return [by_key[key] for key in close] or list(known[:3])


def _last(text: str) -> str:
    """The last quantisation in `text`, for a model's own name may hold one; in capitals."""
    found = _LABEL.findall(text)
    return str(found[-1]).upper() if found else ""
