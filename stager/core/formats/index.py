"""The small JSON files that say what a checkpoint consists of."""

from __future__ import annotations

import json
import posixpath
from typing import Any

from stager.core.formats.source import Read, read_range
from stager.core.model import FileEntry

LIMIT = 64 << 20  # the index of a 700 GB mixture of experts is about 9 MB


def shards(entry: FileEntry, index: int, read: Read) -> tuple[list[str] | None, str | None]:
    """The relative paths of the shards that the index `entry` names, in no order; or what is wrong with it.

    Both are None when it cannot be judged: larger than `LIMIT`, or naming files outside its model.
    """
    body, problem = _json(entry, index, read)
    if body is None:
        return None, problem
    names = body.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        return None, "it has no `weight_map` from tensors to files"
    folder = posixpath.dirname(entry.path)
    paths = {posixpath.normpath(posixpath.join(folder, name)) for name in set(names.values())}
    if any(path.startswith(("/", "../")) or path in (".", "..") or "\0" in path for path in paths):
        return None, None
    return list(paths), None


def components(entry: FileEntry, index: int, read: Read) -> tuple[list[str], str | None]:
    """The folders that a diffusers ``model_index.json`` names, in its order; or what is wrong with it.

    diffusers itself walks a set of parameter names, so its order changes from run to run; the file's own is the one
    that is the same every time.
    """
    body, problem = _json(entry, index, read)
    if body is None:
        return [], problem
    return [name for name, value in body.items() if _is_component(name, value)], None


def _is_component(name: str, value: object) -> bool:
    """A component is ``"name": ["library", "Class"]``; nulls stand for one that the pipeline does without."""
    if name.startswith("_") or "/" in name or name in ("", ".", ".."):
        return False
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _json(entry: FileEntry, index: int, read: Read) -> tuple[dict[str, Any] | None, str | None]:
    if entry.size > LIMIT:
        return None, None
    if entry.size == 0:
        return None, "it is empty"
    try:
        body = json.loads(read_range(read, index, 0, entry.size).decode("utf-8"))
    except (ValueError, RecursionError):
        return None, "it is not valid JSON"
    return (body, None) if isinstance(body, dict) else (None, "it is not a JSON object")
