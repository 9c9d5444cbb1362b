"""Which files of a repository a pull takes, and what it says of the others."""

from __future__ import annotations

import pytest

from stager.core.engines import Engine
from stager.core.errors import NotFound, UsageError
from stager.hub.base import Snapshot
from stager.hub.listing import Listed, snapshot
from stager.jobs.choosing import chosen
from tests.hubs import options_for

QUANTS = ("tiny-Q4_K_M.gguf", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf")


def repository(*paths: str) -> Snapshot:
    """What a hub lists of such files."""
    return snapshot("ms://o/m", "1", [Listed(path, 9, "v") for path in paths])


def taken(found: Snapshot, **options: object) -> list[str]:
    """The paths that a pull with these options takes."""
    kept, _ = chosen(found, options_for(**options))
    return [one.entry.path for one in kept]


def test_what_is_never_taken_is_named() -> None:
    found = repository(
        "a.json", "a.json.lock", "b.PART", ".cache/huggingface/x", ".stager/manifest.json", ".git/HEAD"
    )
    kept, out = chosen(found, options_for())
    assert [one.entry.path for one in kept] == ["a.json"]
    assert out == [
        (".cache/huggingface/x", "the hub client's own folder"),
        ("a.json.lock", "a lock file"),
        ("b.PART", "an unfinished download"),
    ]
    _, out = chosen(found, options_for(engine=Engine.VLLM))
    assert ("a.json.lock", "a lock file") in out


@pytest.mark.parametrize(
    "globs",
    [{"include": ("*Q4_K_M*",)}, {"exclude": ("*Q4_0*", "*Q8*", "*.json")}],
    ids=["include", "exclude"],
)
@pytest.mark.parametrize("engine", [Engine.LLAMA_CPP, Engine.VLLM])
def test_globs_may_choose_the_quantisation(engine: Engine, globs: dict[str, tuple[str, ...]]) -> None:
    found = repository(*QUANTS, "config.json")
    kept, out = chosen(found, options_for(engine=engine, **globs))
    assert [one.entry.path for one in kept] == ["tiny-Q4_K_M.gguf"]
    assert [path for path, _ in out] == sorted({*QUANTS, "config.json"} - {"tiny-Q4_K_M.gguf"})


def test_globs_that_leave_several_do_not_choose() -> None:
    found = repository(*QUANTS, "config.json")
    with pytest.raises(UsageError, match="in 2 quantisations") as caught:
        taken(found, engine=Engine.LLAMA_CPP, include=("*Q4*",))
    assert "Q8_0" not in caught.value.message
    with pytest.raises(UsageError, match="in 3 quantisations"):
        taken(found, engine=Engine.LLAMA_CPP, include=("*.json",))


def test_what_the_engine_takes_of_all_is_not_chosen_by_globs() -> None:
    """A copy that the globs alone would leave is still a copy."""
    found = repository("model.safetensors", "pytorch_model.bin", "config.json")
    with pytest.raises(NotFound, match="no file of ms://o/m matches"):
        taken(found, engine=Engine.VLLM, include=("*.bin",))
    assert taken(found, engine=Engine.VLLM, quant=None, exclude=("*.json",)) == ["model.safetensors"]
