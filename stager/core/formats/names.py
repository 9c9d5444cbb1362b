"""What a file's name says: weight or not, which family, which part of how many, how it sorts."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum

from stager.core.select import left_out


class Family(StrEnum):
    """A container format of weights; in the order in which engines prefer them."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PYTORCH = "pytorch"


_SUFFIXES = {
    ".safetensors": Family.SAFETENSORS,
    ".gguf": Family.GGUF,
    ".bin": Family.PYTORCH,
    ".pt": Family.PYTORCH,
    ".pth": Family.PYTORCH,
    ".ckpt": Family.PYTORCH,
}
# Written by trainers and other runtimes; vLLM and transformers leave the first group out as well.
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state[^/]*|random_states[^/]*)\.\w+|(openvino|ggml)[-_].*\.bin",
    re.IGNORECASE | re.DOTALL,
)
_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<tail>(?:\.[^.]+)?\.\w+)", re.ASCII | re.DOTALL
)
# Both spellings of a variant's index: model.safetensors.index.fp16.json, model.fp16.safetensors.index.json.
_INDEX = re.compile(r".+\.(?P<suffix>safetensors|bin)\.index(?:\.[^.]+)?\.json", re.DOTALL)

_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".yaml", ".yml", ".vocab", ".bpe", ".spm")
_PROSE = re.compile(r"(readme|license|licence|notice|use_policy|changelog)\b", re.IGNORECASE)
_SMALL_LIMIT = 64 << 20  # the largest tokenizer.json files are about 35 MB

# The names under which a folder's one model is saved; others (an adapter, a VAE) are models of their own.
_CANONICAL = ("model", "pytorch_model", "diffusion_pytorch_model", "consolidated")


def family(path: str) -> Family | None:
    """The family of weights that the name at `path` promises; None when it is no weight."""
    name = posixpath.basename(path)
    found = _SUFFIXES.get(posixpath.splitext(name)[1].lower())
    if found is None or _NOT_WEIGHTS.fullmatch(name) or left_out(path):
        return None
    return found


def is_weight(path: str) -> bool:
    """True when the file at `path` holds weights, by its name."""
    return family(path) is not None


def is_small(path: str, size: int) -> bool:
    """True for tokenizer, config, code and index files, which engines read before any weight."""
    name = posixpath.basename(path).lower()
    return size <= _SMALL_LIMIT and name.endswith(_SMALL) and not _PROSE.match(name)


def index_family(name: str) -> Family | None:
    """The family whose shards an index file of this base name lists; None when it is no index."""
    match = _INDEX.fullmatch(name)
    return _SUFFIXES["." + match["suffix"]] if match else None


def stem(name: str) -> str:
    """The model's name in a weight's base name, without part numbers, variant and suffix."""
    part = _PART.fullmatch(name)
    return (part["stem"] if part else name).split(".")[0]


def variant(name: str) -> str:
    """The variant in a weight's base name, as ``fp16`` in ``model.fp16.safetensors``; empty for the plain model."""
    part = _PART.fullmatch(name)
    plain = part["stem"] + part["tail"] if part else name
    return ".".join(plain.split(".")[1:-1])


def is_canonical(name: str) -> bool:
    """True for the file names under which a folder's one model is saved (whole, shard or variant)."""
    return stem(name) in _CANONICAL


def is_consolidated(name: str) -> bool:
    """True for the original authors' copy of a model, which engines skip beside the converted one."""
    return stem(name) == "consolidated"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a set numbered ``-00002-of-00004``; `group` is equal for the files of one set."""

    group: tuple[str, str, str]
    number: int
    total: int
    width: int

    def sibling(self, number: int) -> str:
        """The base name of another part of the set."""
        head, total, tail = self.group
        return f"{head}-{number:0{self.width}d}-of-{total}{tail}"


def part(name: str) -> Part | None:
    """Which part of which set the base name says it is; None when it says none or contradicts itself."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    number, total = int(match["number"]), int(match["total"])
    if number > total or total == 0:
        return None
    return Part((match["stem"], match["total"], match["tail"]), number, total, len(match["number"]))


def natural(text: str) -> tuple[tuple[str, int, str], ...]:
    """A sort key that puts ``2`` before ``10``, as engines sort shard names."""
    pieces = re.split(r"([0-9]+)", text)
    words, digits = pieces[::2], [run.lstrip("0") for run in pieces[1::2]] + [""]
    return tuple((word, len(run), run) for word, run in zip(words, digits, strict=True))
