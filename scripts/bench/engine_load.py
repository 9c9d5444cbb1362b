"""Loads every tensor of a folder's safetensors with their own loader: ``python engine_load.py FOLDER``.

Run with a Python that has ``safetensors`` and ``numpy``. Prints {"bytes": ..., "tensors": ..., "sum": ...}; equal sums, equal bytes.
"""

import glob
import json
import os
import sys

import numpy as np
from safetensors import safe_open


def load(folder):
    """Bytes and number of all tensors, and the sum of their bytes as 64-bit numbers, modulo 2^64."""
    size = count = total = 0
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.safetensors"))):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  not a dict: it has no other way to be walked
                raw = file.get_tensor(name).reshape(-1).view(np.uint8)
                whole = raw[: raw.nbytes // 8 * 8].view(np.uint64)
                total += int(whole.sum(dtype=np.uint64)) + int(raw[whole.nbytes :].sum())
                size += raw.nbytes
                count += 1
    return {"bytes": size, "tensors": count, "sum": total % 2**64}


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1])))
