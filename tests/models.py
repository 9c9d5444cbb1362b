"""Small models of every format with real headers; the standard library only, because scripts/make-model runs it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import BinaryIO

Tensor = tuple[str, tuple[int, ...]]

FORMATS = ("safetensors", "single", "gguf", "gguf-split", "pytorch", "diffusers")
_BLOCK = 1 << 20
_VOCABULARY = 512


class Filler:
    """Writes tensor data: one seeded block repeated, or nothing at all (`sparse`), since content does not matter."""

    def __init__(self, seed: int | None = None, *, sparse: bool = False) -> None:
        self.sparse = sparse
        if seed is None:
            self._block = os.urandom(_BLOCK)
        else:
            self._block = hashlib.shake_256(str(seed).encode()).digest(_BLOCK)

    def write(self, file: BinaryIO, count: int) -> None:
        if self.sparse:
            file.truncate(file.tell() + count)
            file.seek(count, os.SEEK_CUR)
            return
        for _ in range(count // _BLOCK):
            file.write(self._block)
        file.write(self._block[: count % _BLOCK])


def save(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Write `path` and wait until it is on the disk: pages that are still dirty cannot be evicted."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def save_json(path: str, body: object) -> None:
    save(path, lambda file: _write(file, json.dumps(body, indent=2).encode() + b"\n"))


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


# The shape of a llama


def llama(size: int, shards: int) -> tuple[dict[str, int], list[Tensor]]:
    """The configuration and tensors of a llama-like model of two-byte numbers, about `size` bytes in all."""
    # One layer has 11.5 hidden^2 numbers; eight layers for each shard let shards come out nearly equal.
    hidden = min(8192, max(8, math.isqrt(max(1, size // (8 * shards * 23))) // 8 * 8))
    wide, narrow, inner = hidden, max(1, hidden // 4), 3 * hidden
    layer = [
        ("input_layernorm", (hidden,)),
        ("self_attn.q_proj", (wide, hidden)),
        ("self_attn.k_proj", (narrow, hidden)),
        ("self_attn.v_proj", (narrow, hidden)),
        ("self_attn.o_proj", (hidden, wide)),
        ("post_attention_layernorm", (hidden,)),
        ("mlp.gate_proj", (inner, hidden)),
        ("mlp.up_proj", (inner, hidden)),
        ("mlp.down_proj", (hidden, inner)),
    ]
    each = 2 * sum(math.prod(shape) for _, shape in layer)
    layers = max(shards, (size - 4 * hidden * _VOCABULARY) // each)
    words = max(_VOCABULARY, (size - layers * each) // (4 * hidden))
    tensors: list[Tensor] = [("model.embed_tokens.weight", (words, hidden))]
    for number in range(layers):
        tensors += [(f"model.layers.{number}.{name}.weight", shape) for name, shape in layer]
    tensors += [("model.norm.weight", (hidden,)), ("lm_head.weight", (words, hidden))]
    config = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_hidden_layers": layers,
        "vocab_size": words,
    }
    return config, tensors


def nbytes(tensor: Tensor) -> int:
    return 2 * math.prod(tensor[1])


def deal(tensors: list[Tensor], shards: int) -> list[list[Tensor]]:
    """`tensors` in `shards` runs of nearly equal bytes, none empty when there are enough tensors."""
    total = sum(nbytes(tensor) for tensor in tensors)
    runs: list[list[Tensor]] = [[]]
    done = 0
    for at, tensor in enumerate(tensors):
        left, due = len(tensors) - at, shards - len(runs)
        if due and runs[-1] and (done >= total * len(runs) / shards or left <= due):
            runs.append([])
        runs[-1].append(tensor)
        done += nbytes(tensor)
    return runs


# Containers


def write_safetensors(path: str, tensors: Iterable[Tensor], filler: Filler, dtype: str = "BF16") -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor[0]] = {
            "dtype": dtype,
            "shape": list(tensor[1]),
            "data_offsets": [at, at + nbytes(tensor)],
        }
        at += nbytes(tensor)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(raw)) + raw)
        filler.write(file, at)

    save(path, write)


def gguf_value(value: object, order: str = "<") -> bytes:
    """A typed GGUF value: str, bool, int (uint32), float, or a list of one of them."""
    kind, raw = _gguf_raw(value, order)
    return struct.pack(order + "I", kind) + raw


def _gguf_raw(value: object, order: str) -> tuple[int, bytes]:
    if isinstance(value, str):
        data = value.encode()
        return 8, struct.pack(order + "Q", len(data)) + data
    if isinstance(value, bool):
        return 7, struct.pack(order + "?", value)
    if isinstance(value, float):
        return 6, struct.pack(order + "f", value)
    if isinstance(value, list):
        items = [_gguf_raw(item, order) for item in value]
        kind = items[0][0] if items else 4
        return 9, struct.pack(order + "IQ", kind, len(items)) + b"".join(raw for _, raw in items)
    assert isinstance(value, int)
    return 4, struct.pack(order + "I", value)


def write_gguf(
    path: str,
    metadata: dict[str, object],
    tensors: list[Tensor],
    filler: Filler,
    *,
    order: str = "<",
    kind: int = 1,
    alignment: int = 32,
) -> None:
    """`kind` is the ggml type that the directory claims; the data are two bytes for each element (1: F16)."""

    def text(value: str) -> bytes:
        return _gguf_raw(value, order)[1]

    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    out = io.BytesIO()
    out.write(b"GGUF" + struct.pack(order + "IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out.write(text(key) + gguf_value(value, order))
    at = 0
    for name, shape in tensors:
        out.write(text(name) + struct.pack(order + f"I{len(shape)}Q", len(shape), *reversed(shape)))
        out.write(struct.pack(order + "IQ", kind, at))
        at += -(-nbytes((name, shape)) // alignment) * alignment
    out.write(b"\0" * (-out.tell() % alignment))

    def write(file: BinaryIO) -> None:
        file.write(out.getvalue())
        filler.write(file, at)

    save(path, write)


def write_torch(path: str, tensors: list[Tensor], filler: Filler) -> None:
    """What ``torch.save`` writes: a stored zip of a pickled dict and one member for each storage."""
    if filler.sparse:
        raise ValueError("a zip holds checksums of its members, so it cannot be sparse")

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", _pickle(tensors))
            archive.writestr("archive/byteorder", b"little")
            for at, tensor in enumerate(tensors):
                with archive.open(f"archive/data/{at}", "w", force_zip64=True) as member:
                    filler.write(member, nbytes(tensor))
            archive.writestr("archive/version", b"3\n")

    save(path, write)


def _pickle(tensors: list[Tensor]) -> bytes:
    """A dict of names to ``torch._utils._rebuild_tensor_v2`` calls, opcode by opcode, so that torch is not needed."""
    out = [b"\x80\x02}("]
    for at, (name, shape) in enumerate(tensors):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = _text("storage") + b"ctorch\nHalfStorage\n" + _text(str(at)) + _text("cpu")
        storage = b"(" + storage + _number(math.prod(shape)) + b"tQ"
        call = (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0) + _tuple(shape) + _tuple(strides)
        )
        out.append(_text(name) + call + b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join(out) + b"u."


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"


# Whole models


def make(folder: str, form: str, size: int, shards: int, filler: Filler) -> None:
    """A model of `form` (one of `FORMATS`) and about `size` bytes of weights in `folder`."""
    config, tensors = llama(size, shards)
    if form == "diffusers":
        _diffusers(folder, size, shards, filler)
        return
    if form.startswith("gguf"):
        _gguf(folder, config, tensors, shards if form == "gguf-split" else 1, filler)
        return
    save_llama_config(folder, config)
    if form == "single":
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors, filler)
    elif form == "safetensors":
        save_sharded(folder, "model", tensors, shards, filler)
    elif form == "pytorch":
        save_sharded(folder, "pytorch_model", tensors, shards, filler, suffix="bin")
    else:
        raise ValueError(form)


def save_llama_config(folder: str, config: dict[str, int]) -> None:
    architecture = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    save_json(os.path.join(folder, "config.json"), {**architecture, **config})
    save_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": 1, "eos_token_id": 2})
    save_tokenizer(folder)


def save_tokenizer(folder: str) -> None:
    words = {word: number for number, word in enumerate(_words())}
    special = [{"id": number, "content": word, "special": True} for word, number in list(words.items())[:3]]
    model = {"type": "BPE", "vocab": words, "merges": [], "unk_token": "<unk>"}
    body = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": model,
    }
    save_json(os.path.join(folder, "tokenizer.json"), body)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    save_json(os.path.join(folder, "tokenizer_config.json"), names)


def _words() -> list[str]:
    return ["<unk>", "<s>", "</s>"] + [f"word{number}" for number in range(_VOCABULARY - 3)]


def save_sharded(
    folder: str, stem: str, tensors: list[Tensor], shards: int, filler: Filler, suffix: str = "safetensors"
) -> list[str]:
    """The shards and their index, as transformers and diffusers write them; gives the shards' names."""
    runs = deal(tensors, shards)
    names = [f"{stem}-{number:05d}-of-{len(runs):05d}.{suffix}" for number in range(1, len(runs) + 1)]
    for name, run in zip(names, runs, strict=True):
        if suffix == "safetensors":
            write_safetensors(os.path.join(folder, name), run, filler)
        else:
            write_torch(os.path.join(folder, name), run, filler)
    weights = {tensor[0]: name for name, run in zip(names, runs, strict=True) for tensor in run}
    total = sum(nbytes(tensor) for tensor in tensors)
    body = {"metadata": {"total_size": total}, "weight_map": weights}
    save_json(os.path.join(folder, f"{stem}.{suffix}.index.json"), body)
    return names


def _gguf(folder: str, config: dict[str, int], tensors: list[Tensor], shards: int, filler: Filler) -> None:
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "made by scripts/make-model",
        "general.file_type": 1,
        "llama.context_length": 2048,
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": _words(),
        "tokenizer.ggml.scores": [0.0] * _VOCABULARY,
        "tokenizer.ggml.bos_token_id": 1,
    }
    runs = deal([(_gguf_name(name), shape) for name, shape in tensors], shards)
    for number, run in enumerate(runs):
        split: dict[str, object] = {"split.no": number, "split.count": len(runs)}
        split["split.tensors.count"] = len(tensors)
        name = f"model-f16-{number + 1:05d}-of-{len(runs):05d}.gguf" if len(runs) > 1 else "model-f16.gguf"
        about = {} if number else metadata
        write_gguf(os.path.join(folder, name), {**about, **(split if len(runs) > 1 else {})}, run, filler)


_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    parts = name.split(".")
    renamed = _GGUF_NAMES[parts[-2]] + ".weight"
    return f"blk.{parts[2]}.{renamed}" if parts[1] == "layers" else renamed


def _diffusers(folder: str, size: int, shards: int, filler: Filler) -> None:
    components = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_json(os.path.join(folder, "model_index.json"), components)
    save_json(os.path.join(folder, "scheduler", "scheduler_config.json"), {"num_train_timesteps": 1000})
    save_tokenizer(os.path.join(folder, "tokenizer"))
    text, image, main = size // 8, size // 16, size - size // 8 - size // 16
    for name, file, part in (("text_encoder", "model", text), ("vae", "diffusion_pytorch_model", image)):
        save_json(os.path.join(folder, name, "config.json"), {"_class_name": components[name][1]})
        write_safetensors(os.path.join(folder, name, f"{file}.safetensors"), llama(part, 1)[1], filler)
    place = os.path.join(folder, "transformer")
    save_json(os.path.join(place, "config.json"), {"_class_name": components["transformer"][1]})
    save_sharded(place, "diffusion_pytorch_model", llama(main, shards)[1], shards, filler)
