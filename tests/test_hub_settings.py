"""What a user has set and no request can carry: tokens, proxies, addresses. Said at once, by name, and never tried again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from stager.core.errors import RemoteError, StagerError, UsageError
from stager.core.source import Source
from stager.hub.opening import HubOptions, open_hub
from stager.net.route import Origin, Route
from tests.hublab.faults import Fault
from tests.hublab.fixtures import HubLab

NAMES = {"ms": "MODELSCOPE_API_TOKEN", "hf": "HF_TOKEN"}
ENDPOINTS = {"ms": "MODELSCOPE_ENDPOINT", "hf": "HF_ENDPOINT"}
PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")
both = pytest.mark.parametrize("scheme", ["ms", "hf"])


@pytest.fixture(autouse=True)
def _environment(hub: HubLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in hub.env().items():
        if name.lower() not in PROXIES:
            monkeypatch.setenv(name, value)
    hub.repo("o/m", private=True).commit({"config.json": b"{}"})
    hub.repo("o/public").commit({"config.json": b"{}"})
    yield
    from huggingface_hub.utils import close_session  # it keeps the proxies of its first request

    close_session()


def failure(text: str, *, give_up_after: float = 60.0) -> StagerError:
    """What a look at the model ends with. Fails when it is tried again."""

    def never(doing: str, error: Exception) -> None:
        raise AssertionError(f"{doing} is tried again: {error}")

    options = HubOptions(read_timeout=5.0, give_up_after=give_up_after)
    try:
        open_hub(Source.parse(text), options, on_retry=never).snapshot()
    except StagerError as error:
        return error
    raise AssertionError("it was listed")


@both
def test_blanks_around_a_token_do_not_count(
    hub: HubLab, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(NAMES[scheme], f" {hub.token}\r\n")
    options = HubOptions(read_timeout=5.0)
    opened = open_hub(Source.parse(f"{scheme}://o/m"), options)
    assert [one.entry.path for one in opened.snapshot().files] == ["config.json"]
    assert opened.credentials == NAMES[scheme]


@both
@pytest.mark.parametrize("token", ["ms-gehéim", "two words", "a\x01b", "ms-\u200bx"])
def test_a_token_that_no_header_can_carry(
    hub: HubLab, monkeypatch: pytest.MonkeyPatch, scheme: str, token: str
) -> None:
    monkeypatch.setenv(NAMES[scheme], token)
    error = failure(f"{scheme}://o/m")
    assert isinstance(error, UsageError)
    assert f"the token from {NAMES[scheme]} has characters that no token has" in error.message
    assert token not in f"{error.message} {error.hint}"
    assert hub.log.records() == []


@both
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks5h://user:secret@127.0.0.1:1"])
def test_a_socks_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # is not the one that is meant
    error = failure(f"{scheme}://o/public")
    assert isinstance(error, UsageError), error
    assert f"{scheme}://o/public: all_proxy names a SOCKS proxy" in error.message
    assert "like http://proxy:3128" in (error.hint or "")
    assert "secret" not in f"{error.message} {error.hint}"


@both
@pytest.mark.parametrize("endpoint", ["http://", "http://127.0.0.1:port"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str) -> None:
    monkeypatch.setenv(ENDPOINTS[scheme], endpoint)
    error = failure(f"{scheme}://o/public")
    assert isinstance(error, UsageError), error
    assert ENDPOINTS[scheme] in f"{error.message} {error.hint}"


@both
def test_a_proxy_of_no_known_kind(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("http_proxy", "ftp://127.0.0.1:1")
    error = failure(f"{scheme}://o/public")
    assert isinstance(error, UsageError), error
    assert "http_proxy" in f"{error.message} {error.hint}"


@both
def test_a_proxy_that_refuses_is_called_a_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    error = failure(f"{scheme}://o/public", give_up_after=0.0)
    assert isinstance(error, RemoteError)
    assert f"through the proxy 127.0.0.1:{port}" in error.message
    assert "secret" not in f"{error.message} {error.hint}"
    assert "check http_proxy" in (error.hint or "")


@both
@pytest.mark.parametrize("status", [410, 451])
def test_an_answer_that_is_final_is_not_asked_for_again(hub: HubLab, scheme: str, status: int) -> None:
    """With 429 and 5xx the hub says: not now."""
    operation = "files" if scheme == "ms" else "hf-model"
    hub.faults.add(Fault("error", times=None, operation=operation, status=status))
    error = failure(f"{scheme}://o/public")
    assert f"the hub does not accept the request (HTTP {status}" in error.message


@pytest.mark.parametrize(("name", "said"), [("ALL_PROXY", "all_proxy"), ("https_proxy", "https_proxy")])
def test_a_proxy_of_another_kind_is_named_where_bytes_are_read_too(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setenv(name, "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(UsageError, match=f"{said} names a proxy that is not spoken to over http"):
        Route().proxy(Origin.of("https://cdn.example"))
