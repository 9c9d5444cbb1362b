"""Which engine command lines make warming pointless, and which do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core.loaders import bypass

POINTLESS = [
    (["llama-server", "-m", "/m/x.gguf", "--direct-io"], {}, "--direct-io"),
    (["/app/llama-server", "-dio", "-m", "x.gguf"], {}, "O_DIRECT"),
    (["llama-server", "--no-direct-io", "--direct-io"], {}, "--direct-io"),
    (["llama-server", "--load-mode", "dio"], {}, "--load-mode dio"),
    (["llama", "serve", "-lm", "dio"], {}, "-lm dio"),
    (["llama-server"], {"LLAMA_ARG_DIO": "on"}, "LLAMA_ARG_DIO"),
    (["llama-server"], {"LLAMA_ARG_LOAD_MODE": "dio"}, "LLAMA_ARG_LOAD_MODE"),
    (["llama-bench", "-dio", "1", "-m", "x.gguf"], {}, "O_DIRECT"),
    (["vllm", "serve", "/m", "--load-format", "instanttensor"], {}, "O_DIRECT"),
    (["vllm", "serve", "/m", "--load-format=InstantTensor"], {}, "O_DIRECT"),
    (["vllm", "serve", "/m", "--load_format=dummy"], {}, "no weight file"),
    (["vllm", "serve", "/m", "--load-format", "fastsafetensors"], {}, "GPUDirect"),
    (["vllm", "serve", "s3://b/m", "--load-format", "runai_streamer"], {}, "s3://b/m"),
    (["vllm", "serve", "s3://b/m"], {}, "itself"),
    (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "gs://b/m"], {}, "gs://b/m"),
    (["python", "-m", "sglang.launch_server", "--model-path", "s3://b/m"], {}, "s3://b/m"),
    (["python", "-m", "sglang.launch_server", "--model-path", "/m", "--load-format", "remote"], {}, "network"),
    (["python", "-m", "sglang.launch_server", "--load-format", "remote_instance"], {}, "another engine"),
    (["python", "-m", "dynamo.vllm", "--model", "s3://b/m"], {}, "s3://b/m"),
    (["vllm", "serve", "/m", "--load-format", "tensorizer", "--model-loader-extra-config",
      '{"tensorizer_uri": "s3://b/x.tensors"}'], {}, "x.tensors"),
    (["sh", "-c", "exec llama-server -m /m/x.gguf --direct-io"], {}, "--direct-io"),
    (["bash", "-lc", "export A=1; cd /m && LLAMA_ARG_DIO=1 exec llama-server -m x.gguf"], {}, "LLAMA_ARG_DIO"),
    (["/bin/bash", "-c", "vllm serve /m \\\n  --load-format instanttensor"], {}, "instanttensor"),
    (["env", "LLAMA_ARG_DIO=1", "llama-server"], {}, "LLAMA_ARG_DIO"),
    (["tini", "--", "numactl", "-N", "0", "vllm", "serve", "s3://b/m"], {}, "s3://b/m"),
    (["python3", "serve.py"], {"LD_PRELOAD": "/usr/local/lib/libossc_preload.so", "ENABLE_CONNECTOR": "1",
                               "MODEL_DIR": "/tmp/model"}, "/tmp/model"),
    (["env", "LD_PRELOAD=libossc_preload.so", "ENABLE_CONNECTOR=1", "vllm", "serve", "/m"], {}, "OSS Connector"),
]  # fmt: skip

WORTH_IT = [
    ([], {}),
    (["llama-server", "-m", "/m/x.gguf"], {}),
    (["llama-server", "--no-mmap"], {}),
    (["llama-server", "--mlock"], {}),
    (["llama-server", "--direct-io", "--no-direct-io"], {}),
    (["llama-server", "--load-mode", "none"], {"LLAMA_ARG_LOAD_MODE": "dio"}),
    (["llama-server", "--no-direct-io"], {"LLAMA_ARG_DIO": "1"}),
    (["llama-server"], {"LLAMA_ARG_DIO": "0"}),
    (["llama-bench", "-dio", "0"], {}),
    (["vllm", "serve", "/m"], {"LLAMA_ARG_DIO": "1"}),
    (["vllm", "serve", "/m", "--load-format", "runai_streamer"], {}),
    (["vllm", "serve", "/m", "--load-format", "safetensors", "--direct-io"], {}),
    (["vllm", "serve", "/m", "--load-format", "dummy", "--load-format", "auto"], {}),
    (["vllm", "serve", "/m", "--load-format"], {}),
    (["vllm", "serve", "/m", "--load-format", "tensorizer"], {}),
    (["vllm", "serve", "Qwen/Qwen3-8B"], {}),
    (["python", "train.py", "--load-format", "dummy"], {}),
    (["python", "serve.py"], {"LD_PRELOAD": "/usr/local/lib/libossc_preload.so"}),
    (["python", "serve.py"], {"LD_PRELOAD": "/usr/lib/libjemalloc.so", "ENABLE_CONNECTOR": "1"}),
    (["sh", "-c", "llama-server -m 'unclosed"], {}),
    (["sh", "-c"], {}),
    (["sh", "/start.sh", "-c", "--direct-io"], {}),
    (["sh", "-c", "echo --direct-io; llama-server -m x.gguf"], {}),
]


@pytest.mark.parametrize(("argv", "env", "words"), POINTLESS)
def test_a_loader_that_bypasses_the_page_cache_is_named(argv, env, words):
    reason = bypass(argv, env)
    assert reason is not None
    assert words in reason
    assert "\n" not in reason
    assert not reason.endswith(".")


@pytest.mark.parametrize(("argv", "env"), WORTH_IT)
def test_everything_else_passes_in_silence(argv, env):
    assert bypass(argv, env) is None


WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["sh", "-c", "env", "A=b", "vllm", "serve", "--load-format", "llama-server", "-dio", "'"]
    ),
)


@given(st.lists(WORDS, max_size=8), st.dictionaries(st.sampled_from(["LD_PRELOAD", "LLAMA_ARG_DIO"]), WORDS))
def test_any_command_line_has_an_answer(argv, env):
    before = dict(env)
    bypass(argv, env)
    assert env == before
