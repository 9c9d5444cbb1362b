"""Sources: what people type and what they paste, and everything else refused with a way on and no secret told."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stager.core.errors import UsageError
from stager.core.source import Hub, Source, same_source

MS, HF, DIR = Hub.MODELSCOPE, Hub.HUGGINGFACE, Hub.DIRECTORY
COMMIT = "4236a6af538feda4548eca9ab308586007567f52"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("deepseek-ai/DeepSeek-R1-0528", (MS, "deepseek-ai/DeepSeek-R1-0528", "")),
        ("Qwen/Qwen2.5-7B-Instruct@v1.0.3", (MS, "Qwen/Qwen2.5-7B-Instruct", "v1.0.3")),
        ("ms://a_b/c.d", (MS, "a_b/c.d", "")),
        (f"ms://a/b@{COMMIT}", (MS, "a/b", COMMIT)),
        ("hf://a/b@refs/pr/7", (HF, "a/b", "refs/pr/7")),
        ("hf://gpt2", (HF, "gpt2", "")),
        ("hf://gpt2@main", (HF, "gpt2", "main")),
        ("a/b@feature/x@2", (MS, "a/b", "feature/x@2")),
        ("/mnt/nas/r1", (DIR, "/mnt/nas/r1", "")),
        ("/mnt/a://b@c", (DIR, "/mnt/a://b@c", "")),
        ("/mnt/100%41", (DIR, "/mnt/100%41", "")),
        ("./r1", (DIR, "./r1", "")),
        ("../r1/", (DIR, "../r1/", "")),
        ("~/models/r1", (DIR, "~/models/r1", "")),
        (".", (DIR, ".", "")),
        ("..", (DIR, "..", "")),
        ("file:///mnt/a%20b", (DIR, "/mnt/a b", "")),
    ],
)
def test_what_people_type(text: str, found: tuple[Hub, str, str]) -> None:
    assert Source.parse(text) == Source(*found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("huggingface.co/org/m", (HF, "org/m", "")),
        ("huggingface.co/org/m/", (HF, "org/m", "")),
        ("huggingface.co/org/m.git", (HF, "org/m", "")),
        ("huggingface.co/org/m?library=transformers#use", (HF, "org/m", "")),
        ("huggingface.co/org/m/tree/main", (HF, "org/m", "main")),
        ("huggingface.co/org/m/tree/refs%2Fpr%2F1", (HF, "org/m", "refs/pr/1")),
        ("huggingface.co/org/m/tree/refs/pr/1", (HF, "org/m", "refs/pr/1")),
        (f"huggingface.co/org/m/commit/{COMMIT}", (HF, "org/m", COMMIT)),
        ("huggingface.co/org/m/discussions", (HF, "org/m", "")),
        ("huggingface.co/gpt2", (HF, "gpt2", "")),
        ("huggingface.co/gpt2/tree/main", (HF, "gpt2", "main")),
        ("HF.co/org/m", (HF, "org/m", "")),
        ("huggingface.co:443/org/m", (HF, "org/m", "")),
        ("modelscope.cn/models/org/m", (MS, "org/m", "")),
        ("www.modelscope.cn/models/org/m/summary", (MS, "org/m", "")),
        ("www.modelscope.cn/models/org/m/files?version=v2%2E1", (MS, "org/m", "v2.1")),
        ("modelscope.cn/models/org/m/tree/dev", (MS, "org/m", "dev")),
    ],
)
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_what_people_paste(scheme: str, text: str, found: tuple[Hub, str, str]) -> None:
    assert Source.parse(f"{scheme}://{text}") == Source(*found)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "is not a model's name", "ms://owner/name"),
        ("r1", "has no owner", "./r1"),
        ("ms://r1", "has no owner", "owner/r1"),
        ("a/b/c", "is not a model's name", "/path/to/model"),
        ("hf://a/b/c", "is not a model's name", "hf://owner/name"),
        ("hf://", "is not a model's name", "hf://owner/name"),
        ("a/..", "is not a model's name", "owner/name"),
        ("a/b..c", "is not a model's name", "owner/name"),
        ("-a/b", "is not a model's name", "owner/name"),
        (".a/b", "is not a model's name", "owner/name"),
        ("a/b c", "is not a model's name", "owner/name"),
        ("a/é", "is not a model's name", "owner/name"),
        ("a/b\n", "`a/b\\n` is not a model's name", "owner/name"),
        ("a/b@", "`a/b@` names no revision", "a/b@master"),
        ("hf://gpt2@", "`gpt2@` names no revision", "gpt2@master"),
        ("a/b@-x", "`-x` is not a revision of `a/b`", "branch"),
        ("a/b@x y", "is not a revision", "branch"),
        ("a/b@../x", "is not a revision", "branch"),
        ("a/b@x?y", "is not a revision", "branch"),
        ("a/b@x/", "is not a revision", "branch"),
        ("a/b@x\x07", "is not a revision", "branch"),
        ("oss://bucket/r1", "is where a pull writes to", "stager fetch oss://bucket/r1"),
        ("s3://bucket/r1", "no hub is called `s3://`", "owner/name"),
        ("file://host/x", "names a host", "/path/to/model"),
        ("/a\0b", "is not a path", "owner/name"),
        ("https://example.com/a/b", "is on no hub that stager knows", "owner/name"),
        ("https://huggingface.co/", "is not a model's page", "owner/name"),
        ("https://huggingface.co/datasets/a/b", "is not a model's page", "owner/name"),
        ("https://modelscope.cn/datasets/a/b", "is not a model's page", "owner/name"),
        ("https://modelscope.cn/a/b", "is not a model's page", "owner/name"),
        ("https://modelscope.cn/models/a", "has no owner", "owner/a"),
        ("https://hf-mirror.com/a/b", "is on a hub of its own", "HF_ENDPOINT=https://hf-mirror.com"),
        ("https://www.modelscope.ai/models/a/b", "is on a hub of its own", "https://www.modelscope.ai"),
        ("https://huggingface.co/a%40b/c", "is not a model's name", "owner/name"),
        (
            "https://huggingface.co/a/b/blob/main/x/y.bin",
            "a file or a folder",
            "stager pull hf://a/b@main --include 'x/y.bin*'",
        ),
        (
            "https://modelscope.cn/models/a/b/file/view/master/y.json?status=1",
            "a file or a folder",
            "stager pull ms://a/b@master --include 'y.json*'",
        ),
    ],
)
def test_what_is_none_is_refused_with_a_way_on(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Source.parse(text)
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@huggingface.co/a/b",
        "https://hunter2@huggingface.co/a/b",
        "https://me:hun/hunter2@huggingface.co/a/b",
        "hf://me:hunter2@huggingface.co/a/b",
        "hf://hunter2@huggingface.co/a/b",
        "hunter2@www.modelscope.cn/models/a/b",
        "https://huggingface.co/datasets/a/b?token=hunter2",
        "https://example.com/a/b?token=hunter2",
        "https://huggingface.co/a/b/blob/main/x?token=hunter2",
        "me:hunter2@somewhere/a/b",
        "https://hf-mirror.com/a/b?token=hunter2",
    ],
)
def test_a_secret_is_neither_taken_nor_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Source.parse(text)
    assert "hunter2" not in caught.value.message + (caught.value.hint or "")


def test_a_password_is_named_as_what_is_wrong() -> None:
    for text in ("https://me:pw@huggingface.co/a/b", "hf://pw@huggingface.co/a/b"):
        with pytest.raises(UsageError, match="a user or a password"):
            Source.parse(text)


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("deepseek-ai/DeepSeek-R1-0528@x", "DeepSeek-R1-0528", "ms://deepseek-ai/DeepSeek-R1-0528"),
        ("hf://gpt2", "gpt2", "hf://gpt2"),
        ("https://hf.co/a/b/tree/main", "b", "hf://a/b"),
        ("/mnt/nas/r1/", "r1", "/mnt/nas/r1/"),
        ("~/r1", "r1", "~/r1"),
        ("~root", "", "~root"),
        ("~/", "", "~/"),
        ("/", "", "/"),
        (".", "", "."),
        ("../..", "", "../.."),
        ("./~", "~", "./~"),
    ],
)
def test_what_it_is_called(text: str, name: str, address: str) -> None:
    source = Source.parse(text)
    assert (source.name, str(source)) == (name, address)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ms://Owner/Name", "ms://owner/name", True),
        ("hf://gpt2", "hf://GPT2", True),
        ("ms://o/n", "hf://o/n", False),
        ("ms://o/n", "ms://o/m", False),
        ("/models/r1", "/models/r1", True),
        ("/models/R1", "/models/r1", False),
    ],
)
def test_which_are_one_model(one: str, other: str, same: bool) -> None:
    assert same_source(one, other) is same


@given(st.text())
@example("hf://a/b@x\udcff")
@example("https://huggingface.co/%ff/b")
def test_any_text_is_a_source_or_refused(text: str) -> None:
    for prefix in ("", "ms://", "hf://a/", "https://huggingface.co/", "https://modelscope.cn/models/"):
        try:
            source = Source.parse(prefix + text)
        except UsageError as refused:
            told = (refused.message, refused.hint)
            assert all(said and said.isprintable() for said in told)
            continue
        assert source.name != ".."
        if source.kind is not DIR:
            again = f"{source}@{source.revision}" if source.revision else str(source)
            assert Source.parse(again) == source
