"""Which files of a repository an engine needs: ``stager pull --for``.

A repository often holds one model in several formats, variants and quantisations, and an engine loads one of them. What is decided here is
decided by names and sizes alone, before a byte is pulled. In doubt a file is kept: one too many costs time, one too few a pod that does not
start.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stager.core import checkpoints, quantisations
from stager.core.errors import NotFound, UsageError
from stager.core.formats import names
from stager.core.formats.names import Family
from stager.core.select import left_out
from stager.core.units import shown


class Engine(StrEnum):
    """What will load the model."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llama.cpp"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True, slots=True)
class Choice:
    """The paths that are `kept`, and those `dropped`, each with why in a few words; together all, each in the order given."""

    kept: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]


PIPELINE = "model_index.json"
_ALL = "leave out `--for` to take the whole repository, or choose with `--include`"

_FOREIGN = (  # what no engine here loads, by the file's name
    (re.compile(r"\.(onnx|ort)$|\.onnx[._]data(_\d+)?$"), "ONNX"),
    (re.compile(r"\.tflite$"), "TFLite"),
    (
        re.compile(
            r"\.(h5|keras)$|^saved_model\.pb$|\.h5\.index\.json$|\.ckpt\.(index|meta|data-\d+-of-\d+)$"
        ),
        "TensorFlow",
    ),
    (re.compile(r"\.msgpack$|\.msgpack\.index\.json$"), "Flax"),
    (re.compile(r"\.ot$"), "Rust"),
    (re.compile(r"\.(mlmodel|mlpackage)$"), "Core ML"),
    (re.compile(r"^openvino[-_].*\.(bin|xml)$"), "OpenVINO"),
    (re.compile(r"^ggml[-_].*\.bin$"), "old llama.cpp"),
)
_FOREIGN_FOLDERS = {
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "flax": "Flax",
    "coreml": "Core ML",
    "tflite": "TFLite",
}
_CORE_ML = (".mlpackage", ".mlmodelc")
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state[^/]*|random_states[^/]*)\.(bin|pt|pth|pkl|safetensors)"
    r"|.*(optim|model)_states\.pt|.*\.distcp|events\.out\.tfevents\..*",
    re.DOTALL,
)
_MEDIA = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg", ".mp4", ".mov", ".webm", ".avi", ".mkv")
_PROSE = re.compile(r"(readme|license|licence|notice|use_policy|changelog)\b|.*\.md$", re.DOTALL)
_AUTHORS = ("original", "metal")  # the authors' own files beside the converted model
_LEARNT_IN = re.compile(
    r"(checkpoint-|global_step)\d+|pytorch|torch"
)  # folders of copies in PyTorch's format


def choose(
    engine: Engine, paths_sizes: Sequence[tuple[str, int]], *, quant: str | None, variant: str | None
) -> Choice:
    """Which of the files (path, bytes) `engine` needs.

    `quant` names a quantisation of a GGUF repository, `variant` a variant as ``fp16``; None where none was asked for. Raises `UsageError` when
    what was asked for is not there, or when there are several quantisations and none was asked for, always naming those there are; `NotFound`
    when nothing is there that the engine loads.
    """
    if quant is not None and engine is Engine.DIFFUSERS:
        raise UsageError("`--quant` chooses among GGUF files, and diffusers takes none", hint="leave it out")
    if variant and engine is Engine.LLAMA_CPP:
        raise UsageError("`--variant` is nothing that llama.cpp has", hint="choose with `--quant`")
    out: dict[str, str] = {}
    for path, _ in paths_sizes:
        if why := _never(path):
            out[path] = why
    left = [(path, size) for path, size in paths_sizes if path not in out]
    if engine is Engine.LLAMA_CPP:
        out |= _for_llama_cpp(left, quant)
    elif engine is Engine.DIFFUSERS:
        out |= _for_diffusers([path for path, _ in left], variant)
    else:
        out |= _for_vllm(left, quant, variant, engine)
    kept = tuple(path for path, _ in paths_sizes if path not in out)
    if not any(names.is_weight(path) for path in kept) and any(
        _holds_weights(path) for path, _ in paths_sizes
    ):
        formats = sorted({found for path, _ in paths_sizes if (found := _format(path))})
        raise NotFound(f"nothing that {engine} loads is there, only {', '.join(formats)}", hint=_ALL)
    return Choice(kept, tuple((path, out[path]) for path, _ in paths_sizes if path in out))


def _never(path: str) -> str:
    """Why no engine needs the file, whatever else is there; empty when one may."""
    parts = path.lower().split("/")
    if why := left_out(path):
        return why
    if kind := _foreign(path):
        return f"for {kind}"
    if _TRAINING.fullmatch(parts[-1]):
        return "left over from training"
    if parts[-1].endswith(_MEDIA):
        return "a picture or a video"
    if "figures" in parts[:-1] and not names.is_weight(path) and not names.is_small(path, 0):
        return "a figure"
    return ""


def _foreign(path: str) -> str:
    """The runtime whose file it is, when it is none of those here."""
    *folders, name = path.lower().split("/")
    for folder in folders:
        if folder in _FOREIGN_FOLDERS:
            return _FOREIGN_FOLDERS[folder]
        if folder.endswith(_CORE_ML):
            return "Core ML"
    return next((kind for pattern, kind in _FOREIGN if pattern.search(name)), "")


def _format(path: str) -> str:
    kind = names.family(path)
    return _foreign(path) or (kind.value if kind else "")


def _holds_weights(path: str) -> bool:
    return _format(path) != "" and not path.lower().endswith(".json") and not left_out(path)


def _for_vllm(
    left: Sequence[tuple[str, int]], quant: str | None, variant: str | None, engine: Engine
) -> dict[str, str]:
    paths = [path for path, _ in left]
    gguf = {path: size for path, size in left if names.family(path) is Family.GGUF}
    others = [path for path in paths if names.family(path) in (Family.SAFETENSORS, Family.PYTORCH)]
    if quant is not None or (gguf and not any(not checkpoints.is_addition(path) for path in others)):
        out = _one_quantisation(gguf, quant, engine)
        rivals = (
            [path for path in paths if path in set(others) or _is_index(path)] if quant is not None else []
        )
        return out | dict.fromkeys(rivals, "the quantisation asked for is GGUF")
    out = dict.fromkeys(gguf, f"GGUF: {engine} loads the other weights")
    out |= _copies(paths)
    rest = [path for path in paths if path not in out]
    return out | _surplus(rest, variant, plain_first=False)


def _copies(paths: Sequence[str]) -> dict[str, str]:
    """What lies in folders that are copies of the model in the folder around them."""
    families: dict[str, set[Family]] = {}
    for path in paths:
        if (kind := names.family(path)) is not None and not checkpoints.is_addition(path):
            families.setdefault(posixpath.dirname(path), set()).add(kind)
    out = {}
    for path in paths:
        parts = path.split("/")
        for at, folder in enumerate(parts[:-1]):
            around = families.get("/".join(parts[:at]), set())
            if folder in _AUTHORS and around & {Family.SAFETENSORS, Family.PYTORCH}:
                out[path] = "the authors' copy of the model"
            elif _LEARNT_IN.fullmatch(folder) and Family.SAFETENSORS in around and _is_pickled(path):
                out[path] = checkpoints.COPY
    return out


def _for_diffusers(paths: Sequence[str], variant: str | None) -> dict[str, str]:
    roots = {posixpath.dirname(path) for path in paths if posixpath.basename(path) == PIPELINE}
    if not roots:
        raise UsageError(f"there is no `{PIPELINE}`, so it is no pipeline that diffusers loads", hint=_ALL)
    out = {}
    for path in paths:
        if names.family(path) is Family.GGUF:
            out[path] = "GGUF: diffusers loads the components"
        elif posixpath.dirname(path) in roots and (names.is_weight(path) or _is_index(path)):
            out[path] = "a single-file checkpoint beside the components"
    rest = [path for path in paths if path not in out]
    return out | _surplus(rest, variant, plain_first=True)


def _surplus(paths: Sequence[str], variant: str | None, *, plain_first: bool) -> dict[str, str]:
    """The copies that are left out in each folder. Raises `UsageError` where no folder has the variant asked for."""
    there = checkpoints.variants(paths)
    if variant and variant not in there:
        known = ", ".join(f"`{shown(one)}`" for one in sorted(there))
        raise UsageError(
            f"there is no variant `{shown(variant)}`; there is {known or 'the plain model alone'}",
            hint=f"choose one: `--variant {shown(min(there))}`" if there else "leave out `--variant`",
        )
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(posixpath.dirname(path), []).append(path)
    out: dict[str, str] = {}
    for here in folders.values():
        out |= checkpoints.surplus(here, variant or "", plain_first=plain_first)
    return out


def _for_llama_cpp(left: Sequence[tuple[str, int]], quant: str | None) -> dict[str, str]:
    gguf = {path: size for path, size in left if names.family(path) is Family.GGUF}
    out = _one_quantisation(gguf, quant, Engine.LLAMA_CPP)
    for path, size in left:
        prose = _PROSE.match(posixpath.basename(path).lower()) is not None
        if path in gguf or ((prose or names.is_small(path, size)) and not _is_index(path)):
            continue
        out[path] = "llama.cpp loads GGUF" if names.is_weight(path) else "llama.cpp does not read it"
    return out


def _one_quantisation(gguf: dict[str, int], quant: str | None, engine: Engine) -> dict[str, str]:
    """The GGUF files to leave out so that one quantisation is left, with the projectors."""
    out = {path: "an importance matrix, no model" for path in gguf if quantisations.is_matrix(path)}
    models = {p: size for p, size in gguf.items() if p not in out and not quantisations.is_projector(p)}
    if not models:
        raise NotFound(
            "there is no GGUF file of a model",
            hint="look for a repository whose name ends in -GGUF, or leave out "
            + ("`--for`" if engine is Engine.LLAMA_CPP else "`--quant`"),
        )
    taken = quantisations.chosen(models, quant)
    for path in models:
        if (own := quantisations.label(path)) != taken:
            out[path] = f"another quantisation, {shown(own)}"
    return out


def _is_index(path: str) -> bool:
    return names.index_family(posixpath.basename(path)) is not None


def _is_pickled(path: str) -> bool:
    return Family.PYTORCH in (names.family(path), names.index_family(posixpath.basename(path)))
