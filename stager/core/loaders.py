"""Engine command lines whose loader does not read the model through the page cache.

Only what the engines' own documentation or source says is known here. A loader that is not known is not mentioned:
the Run:ai streamer, for one, reads local files with plain reads, which warming does help.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence

# Engines hand these to a client library that reads the object store, or a peer, by itself.
_REMOTE = re.compile(r"(s3|gs|az|oss|redis|valkey|instance)://", re.IGNORECASE)
_TRUE = ("1", "on", "true", "enabled")  # what llama.cpp takes for yes in its environment
_SHELLS = ("sh", "bash", "dash", "ash", "zsh")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.ASCII | re.DOTALL)
_OPERATORS = re.compile(r"[;&|()]+")
_DEPTH = 4  # shells in shells

_FORMATS = {
    "instanttensor": "opens the weights with O_DIRECT, past the page cache",
    "fastsafetensors": "uses GPUDirect Storage where the node has it, which may go past the page cache",
    "dummy": "fills the weights with random numbers and reads no weight file",
    "remote": "fetches the weights over the network itself",
    "remote_instance": "copies the weights out of another engine's memory",
}


def bypass(argv: Sequence[str], env: Mapping[str, str]) -> str | None:
    """One sentence that says why warming is pointless for the engine that `argv` starts under `env`, or None.

    Sees through ``env A=b``, ``sh -c '...'`` and other wrappers that pass the engine's words on unchanged. None
    also stands for every loader that is not known to bypass the page cache.
    """
    return _bypass(list(argv), dict(env), _DEPTH)


def _bypass(argv: list[str], env: dict[str, str], depth: int) -> str | None:
    words, script = _unwrap(argv, env)
    if script is not None:
        if depth == 0:
            return None
        found = (_bypass(command, dict(env), depth - 1) for command in _commands(script))
        return next((reason for reason in found if reason), None)
    return _preloaded(env) or _engine(words, env)


def _unwrap(argv: list[str], env: dict[str, str]) -> tuple[list[str], str | None]:
    """The words from the engine's own on, or a shell's script; assignments before either go into `env`."""
    for at, word in enumerate(argv):
        name = posixpath.basename(word)
        if name in _SHELLS:
            script = _script(argv[at + 1 :])
            return argv[at:], script
        if _is_llama(name) or _is_python_engine(word):
            return argv[at:], None
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment:
            env[assignment[1]] = assignment[2]
    return argv, None


def _script(words: list[str]) -> str | None:
    """What a shell called with `words` runs by ``-c`` (also ``-lc``, ``-ec``); None for a script file."""
    for at, word in enumerate(words):
        if not word.startswith("-"):
            return None
        if not word.startswith("--") and "c" in word:
            return words[at + 1] if at + 1 < len(words) else None
    return None


def _commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script, as far as quoting alone tells them; empty when it does not parse."""
    lexer = shlex.shlex(
        script.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";&|()"
    )
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if _OPERATORS.fullmatch(word):
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError:
        return []
    return [command for command in commands if command]


def _preloaded(env: Mapping[str, str]) -> str | None:
    libraries = re.split(r"[:\s]+", env.get("LD_PRELOAD", ""))
    connector = any(posixpath.basename(library).startswith("libossc_preload") for library in libraries)
    if not connector or env.get("ENABLE_CONNECTOR") != "1":
        return None
    folder = env.get("MODEL_DIR")
    where = f"`{folder}`" if folder else "its model folder"
    return f"the preloaded OSS Connector answers reads below {where} from the bucket, past the page cache"


def _engine(words: list[str], env: Mapping[str, str]) -> str | None:
    if not words:
        return None
    if _is_llama(posixpath.basename(words[0])):
        return _llama(words, env)
    return _python_engine(words) if _is_python_engine(words[0]) else None


def _is_llama(name: str) -> bool:
    return name == "llama" or name.startswith("llama-")


def _is_python_engine(word: str) -> bool:
    """True for ``vllm``, ``vllm.entrypoints.openai.api_server``, ``sglang.launch_server``, ``dynamo.vllm``..."""
    name = posixpath.basename(word)
    return not word.startswith("-") and bool({"vllm", "sglang"} & set(re.split(r"[._-]", name)))


def _llama(words: list[str], env: Mapping[str, str]) -> str | None:
    """llama.cpp: ``--direct-io`` up to its build b10875, ``--load-mode dio`` since; the last word on it wins."""
    asked = None
    if env.get("LLAMA_ARG_DIO", "").lower() in _TRUE:
        asked = "LLAMA_ARG_DIO"
    if "LLAMA_ARG_LOAD_MODE" in env:
        asked = "LLAMA_ARG_LOAD_MODE=dio" if env["LLAMA_ARG_LOAD_MODE"] == "dio" else None
    for at, word in enumerate(words):
        follower = words[at + 1] if at + 1 < len(words) else ""
        if word in ("--direct-io", "-dio"):
            asked = None if follower == "0" else word  # llama-bench takes 0 or 1
        elif word in ("--no-direct-io", "-ndio"):
            asked = None
        elif word in ("--load-mode", "-lm"):
            asked = f"{word} dio" if follower == "dio" else None
    return f"`{asked}` makes llama.cpp read the model with O_DIRECT, past the page cache" if asked else None


def _python_engine(words: list[str]) -> str | None:
    """Judges vLLM and SGLang, which spell what matters here alike."""
    options = _options(words)
    chosen = options.get("load-format", "").lower()
    if chosen in _FORMATS:
        return f"`--load-format {chosen}` {_FORMATS[chosen]}"
    model = options.get("model") or options.get("model-path") or _served(words)
    if chosen == "tensorizer":
        model = _tensorizer_uri(options) or ""
    if model and _REMOTE.match(model):
        return f"the engine fetches `{model}` itself and reads no mounted file"
    return None


def _served(words: list[str]) -> str | None:
    """The model that ``vllm serve MODEL`` names by position."""
    if "serve" not in words[1:3]:
        return None
    at = words.index("serve", 1)
    return next((word for word in words[at + 1 : at + 2] if not word.startswith("-")), None)


def _options(words: list[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value``, the last one of each; vLLM takes ``_`` for ``-`` as well."""
    options: dict[str, str] = {}
    for at, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words[at + 1] if at + 1 < len(words) else ""
        options[name.replace("_", "-")] = value
    return options


def _tensorizer_uri(options: Mapping[str, str]) -> str | None:
    dotted = options.get("model-loader-extra-config.tensorizer-uri")
    if dotted:
        return dotted
    try:
        extra = json.loads(options.get("model-loader-extra-config", ""))
    except ValueError:
        return None
    uri = extra.get("tensorizer_uri") if isinstance(extra, dict) else None
    return uri if isinstance(uri, str) else None
