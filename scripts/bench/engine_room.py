"""What the engines need: Python environments of their own, and models of random weights; both made once and kept."""

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass

from bench import process
from bench.data import Stop

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(ROOT, ".cache", "engines")
_BUILD_S = 3600
_LOADER = ("numpy==2.4.6", "safetensors==0.8.0")
_GGUF = 2  # raise it when engine_gguf.py writes other bytes
_SAFETENSORS = 1  # and this one when `_write_safetensors` does


@dataclass(frozen=True)
class Environment:
    """A virtual environment below ``.cache/engines``, made anew when what it is to hold changes."""

    name: str
    holds: tuple
    words: str  # what its making takes

    def python(self, say):
        """Its interpreter. Raises `Stop` when it cannot be made."""
        folder = os.path.join(CACHE, self.name)
        about = f"{sys.version}\n{self.holds}"
        stamp = os.path.join(folder, f".made-{hashlib.sha256(about.encode()).hexdigest()[:16]}")
        found = os.path.join(folder, "bin", "python")
        if not os.path.exists(stamp):
            say(f"setting up {folder}: {self.words}")
            process.run([sys.executable, "-m", "venv", "--clear", folder], timeout=_BUILD_S)
            install = [found, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *self.holds]
            process.run(["nice", *install], timeout=_BUILD_S)
            with open(stamp, "w", encoding="ascii"):
                pass
        return found


LOADER = Environment("loader", _LOADER, "safetensors and numpy")
SERVER = Environment(
    "server",
    ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0", *_LOADER),
    "builds llama.cpp, about four minutes on four cores",
)


def gguf(folder, size, parts, say):
    """The folder of a llama of about `size` bytes in one file, or in `parts` named as llama.cpp's own splitter does."""

    def write(into):
        script = os.path.join(HERE, "engine_gguf.py")
        process.run([SERVER.python(say), script, into, str(size), str(parts)], timeout=_BUILD_S)

    return kept(folder, f"gguf-{size}-in-{parts}-v{_GGUF}", write, say)


def safetensors(folder, size, parts, say):
    """The folder of a model of about `size` bytes in `parts` safetensors files and their index."""
    name = f"safetensors-{size}-in-{parts}-v{_SAFETENSORS}"
    return kept(folder, name, lambda into: _write_safetensors(into, size, parts), say)


def _write_safetensors(folder, size, parts):
    from tests import models

    config, tensors = models.llama(size, parts)
    runs, filler = models.deal(tensors, parts), models.Filler(seed=1)
    models.save_llama_config(folder, config)
    weights = {}
    for number, run in enumerate(runs, 1):
        name = f"model-{number:05d}-of-{len(runs):05d}.safetensors"
        models.write_safetensors(os.path.join(folder, name), run, filler, dtype="F16")  # numpy has no BF16
        weights |= {tensor[0]: name for tensor in run}
    total = sum(map(models.nbytes, tensors))
    body = {"metadata": {"total_size": total}, "weight_map": weights}
    models.save_json(os.path.join(folder, "model.safetensors.index.json"), body)


def kept(folder, name, write, say):
    """The folder `name` in `folder`, filled by `write` unless an earlier run did."""
    path = os.path.join(folder, name)
    if not os.path.isdir(path):
        part = f"{path}.part"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        say(f"making {path}")
        write(part)
        os.sync()  # what is not on the disk yet would be written while somebody measures
        os.rename(part, path)
    return path


def files(folder):
    """The paths of its files, in order."""
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file())


def heat(folder):
    """Bring the files behind a mount into memory, so that the mount is what is slow, never this disk. Gives their bytes."""
    total = 0
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while count := len(file.read(4 << 20)):
                total += count
    return total


def weights(folder):
    """The file to name to an engine: the only GGUF, or the first part of a split one. Raises `Stop` when there is none."""
    found = [path for path in files(folder) if path.endswith(".gguf")]
    if not found:
        raise Stop(f"no GGUF in {folder}")
    return found[0]
