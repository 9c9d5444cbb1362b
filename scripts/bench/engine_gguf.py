"""Writes a llama of random weights as GGUF, whole or split: ``python engine_gguf.py FOLDER BYTES PARTS``.

Run with the engines' own Python, which has the ``gguf`` package. The same arguments give the same bytes.
"""

import argparse
import math
import os

import gguf
import numpy as np

WORDS = 4096  # vocabulary
BYTES_FROM, BYTES = 3, 256  # after <unk>, <s> and </s> come the bytes, as in every llama vocabulary
SPECIAL = BYTES_FROM + BYTES


def shape(size):
    """(hidden, inner, heads, layers) of a llama of two-byte weights that is about `size` bytes."""
    hidden = 2048 if size >= 500_000_000 else 512
    inner = hidden * 11 // 4
    layer = 2 * (2 * hidden**2 + hidden**2 // 2 + 3 * hidden * inner)
    return hidden, inner, hidden // 128, max(1, round((size - 4 * WORDS * hidden) / layer))


def tensors(size):
    """(name, shape as numpy has it) of every tensor, in the order of the file."""
    hidden, inner, _, layers = shape(size)
    yield "token_embd.weight", (WORDS, hidden)
    for number in range(layers):
        block = f"blk.{number}."
        yield block + "attn_norm.weight", (hidden,)
        yield block + "attn_q.weight", (hidden, hidden)
        yield block + "attn_k.weight", (hidden // 4, hidden)
        yield block + "attn_v.weight", (hidden // 4, hidden)
        yield block + "attn_output.weight", (hidden, hidden)
        yield block + "ffn_norm.weight", (hidden,)
        yield block + "ffn_gate.weight", (inner, hidden)
        yield block + "ffn_up.weight", (inner, hidden)
        yield block + "ffn_down.weight", (hidden, inner)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (WORDS, hidden)


def kind(form):
    """Norms have four bytes a number, all else two."""
    return np.float32 if len(form) == 1 else np.float16


def content(number, name, form):
    """The weights themselves, seeded by the tensor's number."""
    if len(form) == 1:
        return np.ones(form, np.float32)
    noise = np.random.default_rng(number).standard_normal(form, np.float32)
    weights = (noise * 0.02).astype(np.float16)
    if name == "output.weight":
        weights[:SPECIAL] = (
            0  # so the likeliest token is always a word: never the end, never half a character
        )
    return weights


def describe(writer, size):
    """What a loader must know besides the tensors."""
    hidden, inner, heads, layers = shape(size)
    writer.add_name("random weights")
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(BYTES))]
    words += [f"\u2581word{number}" for number in range(WORDS - SPECIAL)]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * BYTES]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (WORDS - SPECIAL)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write(folder, size, parts):
    """One file, or `parts` with the names that llama.cpp's own splitter gives."""
    every = list(tensors(size))
    lengths = [math.prod(form) * kind(form)().nbytes for _, form in every]
    most = sum(lengths) // parts + max(lengths) if parts > 1 else 0  # a file is full before it is too long
    writer = gguf.GGUFWriter(os.path.join(folder, "model.gguf"), "llama", split_max_size=most)
    describe(writer, size)
    for (name, form), length in zip(every, lengths, strict=True):
        writer.add_tensor_info(name, form, np.dtype(kind(form)), length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (name, form) in enumerate(every):
        writer.write_tensor_data(content(number, name, form))
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("size", type=int)
    parser.add_argument("parts", type=int)
    given = parser.parse_args()
    write(given.folder, given.size, given.parts)
