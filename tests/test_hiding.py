"""Secrets in somebody else's command: found by name in words, lines for a shell, JSON, headers and URLs; hidden wherever they stand."""

from __future__ import annotations

import time

import pytest

from stager.core.errors import UsageError
from stager.core.hiding import Secrets
from stager.net.health import check_url

HUSH = [
    ["sh", "-c", "exec vllm serve --api-key hush x"],
    ["sh", "-c", "vllm serve --api-key=hush x"],
    ["sh", "-c", "A=1 HF_TOKEN=hush vllm"],
    ["sh", "-c", "export A=1; export HF_TOKEN=hush; x"],
    ["sh", "-c", "sh -c 'x --api-key hush'"],
    ["sh", "-c", "PASSWORD='hush' x"],
    ["sh", "-c", "x --api-key 'hush"],
    ["--env=HF_TOKEN=hush"],
    ["--config", '{"api_key": "hush"}'],
    ["--config", '{\\"api_key\\": \\"hush\\"}'],
    ["--config", '{"keys": ["hush"]}'],
    ["-H", "Authorization: Bearer hush"],
    ["-H", "X-Api-Key: hush"],
    ["postgres://u:hush@h/x"],
    ["https://hush@h/x"],
    ["http://h/health?a=1&api_key=hush&b=2"],
    ["--keys", "hush"],
    ["--tokens=hush"],
    ["--api-key", "-hush-"],
    ["--api-key", "first", "hush", "--port", "1"],
    ["--access-key-id", "hush"],
    ["OSS_ACCESS_KEY_ID=hush"],
    ["DB_PASSWORD=hush, or not"],
]


@pytest.mark.parametrize("words", HUSH)
def test_a_secret_that_is_named_like_one_is_told_nowhere(words: list[str]) -> None:
    secrets = Secrets.of(["serve", *words])
    assert "hush" not in "".join(secrets.hide_words(["serve", *words]))
    whole = "-hush-" if "-hush-" in words else "hush"
    assert "hush" not in secrets.hide(f"cannot log in with {whole} at the hub")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["serve", "--api-key", "a", "--port", "1"], ["serve", "--api-key", "***", "--port", "1"]),
        (["env", "HF_TOKEN=a", "--api-key=b"], ["env", "HF_TOKEN=***", "--api-key=***"]),
        (["--tokenizer", "a", "--max-tokens", "1"], ["--tokenizer", "a", "--max-tokens", "1"]),
        (["--max-num-batched-tokens=8192", "8192"], ["--max-num-batched-tokens=8192", "8192"]),
        (["--trust-token", "--port", "1"], ["--trust-token", "--port", "1"]),
        (["--api-key", "hush", "{}", "hush"], ["--api-key", "***", "{}", "***"]),
        (["sh", "-c", "A=1 HF_TOKEN=b x"], ["sh", "-c", "A=1 HF_TOKEN=*** x"]),
    ],
)
def test_only_the_secrets_of_a_command_are_hidden(words: list[str], kept: list[str]) -> None:
    assert Secrets.of(words).hide_words(words) == kept


def test_values_of_the_environment_are_hidden_too() -> None:
    environment = {
        "HF_TOKEN": "hush-hush",
        "http_proxy": "http://u:proxy-hush@h:1",
        "SOME_KEY": "true",
        "A": "word",
    }
    secrets = Secrets.of(["serve"], (), environment)
    assert secrets.hide("true word hush-hush http proxy-hush") == "true word *** http ***"


def test_the_secret_of_a_url_is_hidden_in_other_forms_of_it() -> None:
    secrets = Secrets.of(["serve"], ("http://h/health?token=a%2Fhush",))
    assert secrets.hide("GET a%2Fhush, which is a/hush") == "GET ***, which is ***"


def test_words_that_name_a_secret_are_hidden_with_it_where_nobody_knew() -> None:
    assert Secrets(()).hide("cannot open: token=hush-secret") == "cannot open: token=***"


@pytest.mark.parametrize("piece", ["x", "-", "key", "key ", "--a", "://a", '"', "--key ", "key=[ "])
def test_long_lines_are_looked_through_in_no_time(piece: str) -> None:
    """What takes the square of the length would take minutes."""
    text = piece * ((1 << 19) // len(piece))
    began = time.process_time()
    Secrets(()).hide(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hush@127.0.0.1:1/health",
        "http://hush@h/",
        "u:hush@h:1/health",
        "http://h:0/health?api_key=hush",
        "ftp://h/?a=1&token=hush",
    ],
)
def test_a_url_that_is_refused_is_not_told_with_its_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url, "--ready-url ")
    assert "hush" not in f"{caught.value.message} {caught.value.hint}"


def test_an_at_sign_in_a_path_is_no_user() -> None:
    assert check_url("http://h:1/models/@latest?who=a@b", "--ready-url ")
