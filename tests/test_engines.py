"""What an engine needs of a repository: listings as the hubs have them, and that nothing is lost that is no copy."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.checkpoints import variants
from stager.core.engines import Choice, Engine, choose
from stager.core.errors import NotFound, UsageError
from stager.core.formats import names
from stager.core.quantisations import label
from stager.core.units import GIB

VLLM, SGLANG, LLAMA, DIFFUSERS = Engine.VLLM, Engine.SGLANG, Engine.LLAMA_CPP, Engine.DIFFUSERS
SMALL = ["README.md", "LICENSE", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"]
CODE = ["modeling_x.py", "chat_template.jinja", "preprocessor_config.json", "qwen.tiktoken", "merges.txt"]


def sharded(stem: str, suffix: str, total: int, folder: str = "") -> list[str]:
    found = [f"{stem}-{n:05d}-of-{total:05d}.{suffix}" for n in range(1, total + 1)]
    return [posixpath.join(folder, name) for name in [*found, f"{stem}.{suffix}.index.json"]]


def take(
    engine: Engine, paths: list[str], quant: str | None = None, variant: str | None = None, size: int = 7
) -> Choice:
    rows = [(path, size) for path in paths]
    choice = choose(engine, rows, quant=quant, variant=variant)
    gone = [path for path, _ in choice.dropped]
    assert sorted([*choice.kept, *gone]) == sorted(paths)
    assert [path for path in paths if path in choice.kept] == list(choice.kept)
    assert all(why and len(why) < 60 for _, why in choice.dropped)
    return choice


def dropped(
    engine: Engine, paths: list[str], quant: str | None = None, variant: str | None = None
) -> list[str]:
    return [path for path, _ in take(engine, paths, quant, variant).dropped]


SAFETENSORS = sharded("model", "safetensors", 3)
PICKLES = sharded("pytorch_model", "bin", 2)
SURPLUS = [  # beside safetensors
    *PICKLES,
    "model.pth",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "model.Q4_K_M.gguf",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "original/consolidated.00.pth",
    "original/params.json",
    "metal/model.bin",
    "pytorch/pytorch_model.bin",
]
NEVER = [  # in whatever company
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "model.onnx",
    "onnx/model_quantized.onnx",
    "onnx/model.onnx_data",
    "onnx/config.json",
    "openvino_model.bin",
    "openvino/openvino_model.xml",
    "coreml/text-generation/float32_model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    "64.tflite",
    "saved_model.pb",
    "bert_model.ckpt.data-00000-of-00001",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_0.pth",
    "training_args.bin",
    "global_step100/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "runs/events.out.tfevents.1.host.2.0",
    "assets/logo.PNG",
    "demo.gif",
    "demo.mp4",
    "figures/benchmark.pdf",
    ".git/config",
    "model.safetensors.incomplete",
]
KEPT = [
    *SMALL,
    *CODE,
    ".gitattributes",
    "trainer_state.json",
    "adapter_config.json",
    "adapter_model.bin",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/pytorch_model.bin",  # a module of its own that has no other format
    "mel_filters.npz",
    "figures/plot.py",
    "extra.safetensors",
]


@pytest.mark.parametrize("engine", [VLLM, SGLANG])
def test_safetensors_are_taken_and_their_copies_are_not(engine: Engine) -> None:
    found = take(engine, [*SURPLUS, *SAFETENSORS, *KEPT, *NEVER])
    assert sorted(found.kept) == sorted([*SAFETENSORS, *KEPT])


@pytest.mark.parametrize("path", [*SURPLUS, *NEVER])
def test_each_copy_is_left_out_by_itself(path: str) -> None:
    assert dropped(VLLM, [*SAFETENSORS, path]) == [path]


def test_without_safetensors_the_pickles_are_the_model() -> None:
    others = [path for path in KEPT if path != "extra.safetensors"]
    assert dropped(VLLM, [*PICKLES, *others, *NEVER]) == NEVER
    assert dropped(VLLM, ["pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt", "config.json"]) == []
    assert dropped(VLLM, ["pytorch_model.bin", "consolidated.00.pth", "m.gguf"]) == [
        "consolidated.00.pth",
        "m.gguf",
    ]
    assert dropped(VLLM, ["pytorch_model.bin", "model.fp16.safetensors"]) == ["pytorch_model.bin"]


def test_the_authors_copy_alone_is_the_model() -> None:
    alone = ["consolidated.safetensors", "consolidated.safetensors.index.json", "params.json", "tekken.json"]
    assert dropped(VLLM, alone) == []
    assert dropped(VLLM, [*alone, "pytorch_model.bin"]) == []
    assert dropped(VLLM, ["original/consolidated.00.pth", "original/params.json"]) == []
    assert dropped(VLLM, ["consolidated.00.pth", "params.json"]) == []
    shards = [*sharded("consolidated", "safetensors", 3), "params.json", "tekken.json"]
    assert dropped(VLLM, shards) == dropped(SGLANG, shards) == []
    assert dropped(SGLANG, alone) == []
    assert dropped(VLLM, [*SAFETENSORS, *shards]) == shards[:4]
    usual = ["consolidated.safetensors", "params.json", "config.json", "pytorch_model.bin"]
    assert dropped(VLLM, usual) == [], "which of both is loaded depends on the engine's version"
    assert dropped(VLLM, ["consolidated.safetensors", "params.json", "model.fp16.safetensors"]) == []
    assert dropped(VLLM, ["consolidated.safetensors", "consolidated.00.pth"]) == ["consolidated.00.pth"]


def test_an_adapter_is_no_stand_in_for_a_model() -> None:
    both = ["adapter_model.safetensors", "pytorch_model.bin"]
    assert dropped(VLLM, both) == []
    assert dropped(VLLM, ["adapter_model.safetensors", "adapter_model.bin"]) == ["adapter_model.bin"]
    assert dropped(VLLM, ["adapter_model.safetensors", "model-Q8_0.gguf"]) == []
    assert dropped(VLLM, ["adapter_model.safetensors", "original/consolidated.00.pth"]) == []


def test_a_model_of_another_name_is_a_stand_in() -> None:
    assert dropped(VLLM, ["gptq-4bit-128g.safetensors", "pytorch_model.bin"]) == ["pytorch_model.bin"]


def test_a_variant_is_taken_where_it_is_asked_for() -> None:
    fp16 = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]
    index = "model.fp16.safetensors.index.json"
    paths = [*SAFETENSORS, *fp16, index, "model.bf16.safetensors", "config.json"]
    assert dropped(VLLM, paths) == [*fp16, index, "model.bf16.safetensors"]
    assert dropped(VLLM, paths, variant="fp16") == [*SAFETENSORS, "model.bf16.safetensors"]
    mixed = ["model.safetensors", "pytorch_model.fp16.bin"]
    assert dropped(VLLM, mixed, variant="fp16") == ["model.safetensors"]
    with pytest.raises(UsageError, match="no variant `int8`; there is `bf16`, `fp16`"):
        take(VLLM, paths, variant="int8")
    with pytest.raises(UsageError, match="there is the plain model alone"):
        take(VLLM, SAFETENSORS, variant="fp16")


def test_variants_without_a_plain_model_are_all_kept() -> None:
    assert dropped(VLLM, ["model.fp16.safetensors", "model.bf16.safetensors"]) == []
    assert dropped(VLLM, ["model.fp16.safetensors", "model.fp16.bin"]) == ["model.fp16.bin"]


def test_a_dot_in_a_name_makes_no_variant() -> None:
    paths = [
        "Llama-3.1-8B.safetensors",
        "Llama-3.safetensors",
        "model.layers.0.safetensors",
        "model.safetensors",
    ]
    assert dropped(VLLM, paths) == []
    assert variants(paths) == set()


def test_a_repository_that_the_engine_cannot_load() -> None:
    with pytest.raises(NotFound, match="nothing that vllm loads is there, only ONNX, TensorFlow") as caught:
        take(VLLM, ["tf_model.h5", "onnx/model.onnx", "config.json"])
    assert "--for" in (caught.value.hint or "")
    assert dropped(VLLM, ["tokenizer.json", "config.json"]) == []
    assert take(VLLM, []) == Choice((), ())


QUANTS = {
    "Llama-3.1-8B-Q4_K_M.gguf": "Q4_K_M",
    "llama.q4_0.gguf": "Q4_0",
    "x-IQ2_XXS.gguf": "IQ2_XXS",
    "x-UD-Q4_K_XL-00001-of-00003.gguf": "UD-Q4_K_XL",
    "UD-Q4_K_XL/x-Q4_K_XL-00001-of-00003.gguf": "UD-Q4_K_XL",
    "Q4_K_M/model-00001-of-00003.gguf": "Q4_K_M",
    "DeepSeek-R1-Q8_0/DeepSeek-R1-Q8_0-00001-of-00015.gguf": "Q8_0",
    "x.BF16.gguf": "BF16",
    "x-f16.gguf": "F16",
    "x-F16-Q6_K_L.gguf": "Q6_K_L",
    "x-Q4_K_M_v2.gguf": "Q4_K_M",
    "x-TQ1_0.gguf": "TQ1_0",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "Q5/Qwen2-f64.gguf": "Q5",
    "qwen2-7b.gguf": "qwen2-7b",
    "whole-00001-of-00002.gguf": "whole",
    "xq4-chat.gguf": "xq4-chat",
    "x-q4ever.gguf": "x-q4ever",
}


@pytest.mark.parametrize(("path", "found"), QUANTS.items())
def test_the_quantisation_that_a_name_says(path: str, found: str) -> None:
    assert label(path) == found


GGUF = [
    ("README.md", 100),
    ("config.json", 100),
    (".gitattributes", 100),
    ("imatrix_x.gguf", 4 << 20),
    ("imatrix.dat", 4 << 20),
    ("mmproj-F16.gguf", 1 << 20),
    ("x-Q2_K.gguf", 3 * GIB),
    ("x-Q4_K_M.gguf", 5 * GIB),
    ("UD-Q4_K_XL/x-UD-Q4_K_XL-00001-of-00002.gguf", 3 * GIB),
    ("UD-Q4_K_XL/x-UD-Q4_K_XL-00002-of-00002.gguf", 3 * GIB),
    ("BF16/x-00001-of-00002.gguf", 8 * GIB),
    ("BF16/x-00002-of-00002.gguf", 8 * GIB),
]
ALWAYS = ["README.md", "config.json", "mmproj-F16.gguf"]


@pytest.mark.parametrize(
    ("quant", "taken"),
    [
        ("q4_k_m", ["x-Q4_K_M.gguf"]),
        ("UD-Q4_K_XL", [path for path, _ in GGUF[8:10]]),
        ("q4_k_xl", [path for path, _ in GGUF[8:10]]),
        ("BF16", [path for path, _ in GGUF[10:]]),
    ],
)
def test_llama_cpp_takes_one_quantisation(quant: str, taken: list[str]) -> None:
    assert list(choose(LLAMA, GGUF, quant=quant, variant=None).kept) == ALWAYS + taken


@pytest.mark.parametrize("engine", [LLAMA, VLLM])
def test_several_quantisations_are_a_question(engine: Engine) -> None:
    with pytest.raises(UsageError) as caught:
        choose(engine, GGUF, quant=None, variant=None)
    said = "4 quantisations: Q2_K (3.0 GiB), Q4_K_M (5.0 GiB), UD-Q4_K_XL (6.0 GiB), BF16 (16.0 GiB)"
    assert said in caught.value.message
    assert caught.value.hint == "choose one: `--quant Q4_K_M`"


def test_an_unknown_quantisation_names_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        choose(LLAMA, GGUF, quant="Q4_K_S", variant=None)
    assert "Q2_K (3.0 GiB)" in caught.value.message
    assert "`--quant Q4_K_M`" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no quantisation `Q4_K`"):  # a part of a name is no name
        choose(LLAMA, GGUF, quant="Q4_K", variant=None)


def test_one_quantisation_needs_no_choice() -> None:
    paths = ["x-Q4_K_M-00001-of-00002.gguf", "x-Q4_K_M-00002-of-00002.gguf", "mmproj.gguf"]
    assert dropped(LLAMA, paths) == []
    assert dropped(SGLANG, paths) == []


def test_llama_cpp_takes_nothing_else() -> None:
    others = [*SAFETENSORS, *PICKLES, "params", *NEVER]
    assert sorted(dropped(LLAMA, ["x-Q8_0.gguf", *SMALL, *others])) == sorted(others)
    assert list(take(LLAMA, ["x-Q8_0.gguf", "tokenizer.json"], size=GIB).kept) == ["x-Q8_0.gguf"]


@pytest.mark.parametrize("paths", [SAFETENSORS, SMALL, ["mmproj-F16.gguf"], []])
def test_llama_cpp_without_gguf_finds_nothing(paths: list[str]) -> None:
    with pytest.raises(NotFound, match="no GGUF") as caught:
        take(LLAMA, paths)
    assert "--for" in (caught.value.hint or "")


def test_vllm_takes_gguf_where_it_is_asked_for_by_quantisation() -> None:
    paths = ["x-Q4_0.gguf", "x-Q8_0.gguf", *SAFETENSORS, "config.json"]
    assert dropped(VLLM, paths) == ["x-Q4_0.gguf", "x-Q8_0.gguf"]
    assert dropped(VLLM, paths, quant="Q8_0") == ["x-Q4_0.gguf", *SAFETENSORS]
    with pytest.raises(NotFound):
        take(VLLM, SAFETENSORS, quant="Q8_0")


def test_an_option_of_another_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="--quant"):
        take(DIFFUSERS, ["model_index.json"], quant="Q8_0")
    with pytest.raises(UsageError, match="--variant"):
        take(LLAMA, ["x-Q8_0.gguf"], variant="fp16")


UNET = "unet/diffusion_pytorch_model"
PIPELINE = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "unet/config.json",
    f"{UNET}.safetensors",
    "text_encoder/config.json",
    *sharded("model", "safetensors", 2, "text_encoder"),
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",  # in one format only
    "README.md",
]
BESIDE = [
    "sd_xl_base_1.0.safetensors",
    "v1-5-pruned.ckpt",
    "flux1-dev-Q4_0.gguf",
    "diffusion_pytorch_model.safetensors.index.json",
    f"{UNET}.bin",
    f"{UNET}.fp16.safetensors",
    f"{UNET}.fp16.bin",
    "unet/flax_model.msgpack",
    "unet/model.onnx",
    "unet/openvino_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    *sharded("pytorch_model", "bin", 2, "text_encoder"),
    "teaser.png",
]


def test_a_pipeline_is_its_components() -> None:
    assert sorted(dropped(DIFFUSERS, [*BESIDE, *PIPELINE])) == sorted(BESIDE)
    for path in BESIDE:
        assert dropped(DIFFUSERS, [*PIPELINE, path]) == [path]


def test_a_pipelines_variant_is_chosen_by_component() -> None:
    found = take(DIFFUSERS, [*PIPELINE, *BESIDE], variant="fp16").kept
    plain = {f"{UNET}.safetensors", "vae/diffusion_pytorch_model.bin"}
    mine = {f"{UNET}.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"}
    assert set(found) == {*PIPELINE, *mine} - plain
    with pytest.raises(UsageError, match="there is `fp16`"):
        take(DIFFUSERS, [*PIPELINE, *BESIDE], variant="bf16")


def test_a_variant_that_is_there_only_as_a_pickle() -> None:
    paths = ["model_index.json", f"{UNET}.safetensors", f"{UNET}.fp16.bin"]
    assert dropped(DIFFUSERS, paths, variant="fp16") == [f"{UNET}.safetensors"]
    assert dropped(DIFFUSERS, paths) == [f"{UNET}.fp16.bin"]


def test_a_component_keeps_what_diffusers_loads_of_it() -> None:
    plain, other = f"{UNET}.bin", "unet/style.safetensors"
    assert dropped(DIFFUSERS, ["model_index.json", plain, other]) == []
    assert dropped(VLLM, [plain, other]) == [plain]
    assert dropped(DIFFUSERS, ["model_index.json", plain, f"{UNET}.fp16.safetensors"]) == [
        f"{UNET}.fp16.safetensors"
    ]


def test_without_an_index_there_is_no_pipeline() -> None:
    with pytest.raises(UsageError, match=r"model_index\.json"):
        take(DIFFUSERS, SAFETENSORS)


folders = st.sampled_from(["", "a", "unet", "original", "checkpoint-5", "a/b", "onnx"])
files = st.sampled_from(
    [posixpath.basename(path) for path in [*SURPLUS, *SAFETENSORS, *KEPT, *NEVER, *PIPELINE, *BESIDE]]
)
repositories = st.lists(st.builds(posixpath.join, folders, files), unique=True, max_size=25)


@given(
    repositories, st.sampled_from(Engine), st.sampled_from([None, "fp16"]), st.sampled_from([None, "Q4_K_M"])
)
def test_every_file_is_kept_or_dropped(
    paths: list[str], engine: Engine, variant: str | None, quant: str | None
) -> None:
    try:
        kept = set(take(engine, paths, quant, variant).kept)
    except (UsageError, NotFound):
        return
    weights = [path for path in paths if names.is_weight(path)]
    assert not weights or any(names.is_weight(path) for path in kept)


shards = st.builds(
    lambda total, variant: [
        f"model{variant}-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)
    ],
    st.integers(1, 5),
    st.just(""),
) | st.lists(st.from_regex(r"[a-z]{1,8}[0-9]?\.safetensors", fullmatch=True), min_size=1, unique=True)


@given(shards, repositories, st.sampled_from([VLLM, SGLANG]))
def test_every_shard_of_the_model_is_kept(mine: list[str], others: list[str], engine: Engine) -> None:
    mine = [name for name in mine if name not in NEVER and not names.is_consolidated(name)]
    paths = list(dict.fromkeys([*mine, "model.safetensors.index.json", *others, "model.safetensors"]))
    assert {*mine, "model.safetensors.index.json"} <= set(take(engine, paths).kept)


@given(repositories, st.sampled_from([VLLM, DIFFUSERS]), st.sampled_from([None, "fp16"]))
def test_an_index_is_kept_with_its_shards_and_without_them_dropped(
    paths: list[str], engine: Engine, variant: str | None
) -> None:
    index = {"a/model.safetensors.index.json", "a/pytorch_model.bin.index.json"}
    sets = {*sharded("model", "safetensors", 2, "a"), *sharded("pytorch_model", "bin", 2, "a")}
    everything = sorted(
        {*paths, *sets, "model_index.json", "x/model.fp16.safetensors"} - {"model.fp16.safetensors"}
    )
    kept = set(take(engine, everything, variant=variant).kept)
    for one in index:
        family = names.index_family(posixpath.basename(one))
        of_it = {p for p in sets - index if names.family(p) is family}
        assert (one in kept) == (of_it <= kept) == bool(of_it & kept)
