"""Hugging Face: huggingface_hub finds endpoint and token and lists; the bytes go around it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stager.core.errors import (
    AccessDenied,
    NotFound,
    RemoteError,
    StagerError,
    UsageError,
)
from stager.core.location import told
from stager.core.source import Source
from stager.hub.base import Snapshot
from stager.hub.http import Address, HttpReader, Shelf
from stager.hub.listing import Listed, snapshot, unknown_revision
from stager.hub.refusals import LATER, hidden, words
from stager.hub.tokens import fit
from stager.hub.trouble import on_the_way, unsent
from stager.net.answers import retry_after
from stager.store.base import Reader

if TYPE_CHECKING:
    from stager.hub.opening import HubOptions

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
_OLD_TOKEN = "HUGGING_FACE_HUB_TOKEN"  # noqa: S105  # where it is, not what
_SITE = "https://huggingface.co"
_DENIED = (
    f"set {TOKEN} to a token of an account that may read it, and accept its conditions on the model's page"
)
_NO_TOKEN = f"if it is private or gated, set {TOKEN}"
_TRANSPORTS = ("requests", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")  # what carries its requests


class HuggingFaceHub:
    """One model on Hugging Face, or on what ``HF_ENDPOINT`` names instead."""

    def __init__(self, source: Source, options: HubOptions) -> None:
        """Asks nobody yet. Raises `UsageError` where huggingface_hub is missing, or told to stay offline, and for an endpoint that is none."""
        self._model, self._asked = source.model, source.revision or None
        self._source = str(source)
        self._route = options.route()
        self._sdk = _Sdk(self._source, options)
        self._lock = threading.Lock()
        self._shelf: Shelf | None = None

    @property
    def source(self) -> str:
        """``hf://owner/name``."""
        return self._source

    @property
    def credentials(self) -> str:
        """Where huggingface_hub found the token."""
        return self._sdk.credentials

    def snapshot(self) -> Snapshot:
        """As `Hub.snapshot`; the revision is always a commit. The list of a gated model is for everybody, and only its files are refused."""
        commit = self._sdk.commit(self._model, self._asked)
        found = snapshot(self._source, commit, self._sdk.files(self._model, commit))
        with self._lock:
            self._shelf = Shelf(
                self._source,
                self._route,
                found.files,
                self._address(commit),
                denied=_DENIED,
                token=self._sdk.token,
            )
        return found

    def reader(self) -> Reader:
        """As `Hub.reader`."""
        with self._lock:
            assert self._shelf is not None, "there is no snapshot yet"
            return HttpReader(self._shelf)

    def _address(self, commit: str) -> Callable[[str], Address]:
        base = f"{self._sdk.endpoint}/{quote(self._model)}/resolve/{commit}"
        private = {"Authorization": f"Bearer {self._sdk.token}"} if self._sdk.token else {}
        return lambda path: Address(f"{base}/{quote(path, errors='surrogateescape')}", private)


class _Sdk:
    """huggingface_hub, as far as it is asked for anything. Each call is one attempt."""

    def __init__(self, source: str, options: HubOptions) -> None:
        """Imports it."""
        self._source, self._options = source, options
        try:
            from huggingface_hub import HfApi, get_token
        except ImportError as exc:
            raise UsageError(
                "models of Hugging Face need the library huggingface_hub",
                hint="pip install 'stager[huggingface]'; stager's image has it, but for the one with `-warm`",
            ) from exc
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL + 1)
        self.endpoint = (os.environ.get(ENDPOINT) or _SITE).rstrip("/")
        if not self.endpoint.lower().startswith(("https://", "http://")):
            raise UsageError(
                f"{ENDPOINT}: `{told(self.endpoint)}` is no address", hint="write it with `https://`"
            )
        self.token = ""  # until it is known: what goes wrong meanwhile is told without it
        with self._translated(None):
            found = get_token()
        named = next((name for name in (TOKEN, _OLD_TOKEN) if os.environ.get(name, "").strip()), "")
        whence = named or "the login of huggingface_hub"
        self.token = fit(found, whence)
        self.credentials = whence if self.token else ""
        # Without a token it shall look for none: what it finds is what is told as `credentials`.
        self._api = HfApi(endpoint=self.endpoint, token=self.token or False)

    def commit(self, model: str, revision: str | None) -> str:
        """The commit that `revision` (None: the default branch) is at."""
        with self._translated(model, revision):
            self._bound_waiting()
            found = self._api.model_info(model, revision=revision, timeout=self._options.read_timeout)
            if not isinstance(found.sha, str) or not found.sha:
                raise ValueError("no commit")
            return found.sha

    def files(self, model: str, commit: str) -> list[Listed]:
        """All files of a commit."""
        with self._translated(model, commit):
            self._bound_waiting()
            tree = self._api.list_repo_tree(model, recursive=True, revision=commit)
            # Folders have neither a size nor a blob.
            return [_row(one, commit) for one in tree if hasattr(one, "blob_id")]

    def _bound_waiting(self) -> None:
        """Let it wait as long as it is told here, and tell of each answer: lists are asked for without any limit of time, and again for minutes."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            _pagination,
            get_session,
            http_backoff,
        )

        if hasattr(_pagination, "http_backoff"):
            _pagination.http_backoff = partial(http_backoff, max_retries=0)
        session: Any = get_session()
        connect, read = self._options.connect_timeout, self._options.read_timeout
        answered = self._options.on_answer
        if not hasattr(session, "event_hooks"):  # requests, before version 1
            session.request = partial(type(session).request, session, timeout=(connect, read))
            session.hooks["response"] = [lambda *_, **__: answered()]
            return

        def bounded(request: Any) -> None:
            limits = {"connect": connect, "read": read, "write": read, "pool": read}
            given = request.extensions.get("timeout") or {}
            least = {name: min(given.get(name) or limit, limit) for name, limit in limits.items()}
            request.extensions["timeout"] = least

        def told(_: Any) -> None:
            answered()

        bounded.__qualname__ = told.__qualname__ = _OURS
        hooks = session.event_hooks
        others = {
            name: [one for one in hooks[name] if getattr(one, "__qualname__", "") != _OURS]
            for name in ("request", "response")
        }
        session.event_hooks = {
            "request": [*others["request"], bounded],
            "response": [*others["response"], told],
        }

    @contextmanager
    def _translated(self, model: str | None, revision: str | None = None) -> Iterator[None]:
        try:
            yield
        except StagerError:
            raise
        except Exception as exc:
            raise self._error(exc, model, revision) from exc

    def _error(self, exc: Exception, model: str | None, revision: str | None) -> StagerError:
        """What an error of huggingface_hub's means."""
        from huggingface_hub import errors

        if isinstance(exc, errors.OfflineModeIsEnabled):
            return UsageError(
                f"{self._source}: huggingface_hub is told to stay offline",
                hint="unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE",
            )
        if isinstance(exc, errors.HfHubHTTPError):
            return self._refused(exc, model, revision)
        if isinstance(exc, errors.HFValidationError):
            return UsageError(f"{self._source}: {hidden(words(str(exc)), self.token)}")
        if (mistake := unsent(exc, self._source, ENDPOINT)) is not None:
            return mistake
        if isinstance(exc, ValueError):  # what is not JSON, whoever says so
            return self._garbled(exc)
        transport = type(exc).__module__.partition(".")[0]
        if isinstance(exc, OSError) or transport in _TRANSPORTS:
            return on_the_way(exc, f"{self._source}, at {told(self.endpoint)}", self.endpoint)
        return self._garbled(exc)

    def _refused(self, exc: Any, model: str | None, revision: str | None) -> StagerError:
        from huggingface_hub import errors

        status = exc.response.status_code
        parts = [f"HTTP {status}"]
        if exc.server_message:
            parts.append(words(exc.server_message))
        if exc.request_id:
            parts.append(f"request {words(exc.request_id)}")
        why = hidden(", ".join(parts), self.token)
        if isinstance(exc, errors.RevisionNotFoundError):
            names: list[str] = []
            with suppress(StagerError):
                names = self._revisions(model or "")
            return unknown_revision(self._source, revision or "main", names)
        if isinstance(exc, errors.GatedRepoError):
            return AccessDenied(
                f"{self._source} is gated, and access to it was not granted ({why})", hint=_DENIED
            )
        if isinstance(exc, errors.DisabledRepoError):
            return AccessDenied(f"{self._source} was disabled by Hugging Face ({why})")
        if isinstance(exc, errors.RepositoryNotFoundError) or status == 404:
            # The hub says 401 of a model that is not there, to whoever might be somebody.
            said = f"{self._source} does not exist, or is private"
            return NotFound(
                f"{said} ({why})", hint="the token may not be allowed to see it" if self.token else _NO_TOKEN
            )
        if status in (401, 403):
            return AccessDenied(f"{self._source}: access is denied ({why})", hint=_DENIED)
        if status < 500 and status not in (408, 429):
            return UsageError(f"{self._source}: the hub does not accept the request ({why})")
        wait = retry_after(exc.response.headers.get("Retry-After"), time.time())
        return RemoteError(f"{self._source}: the hub cannot answer now ({why})", hint=LATER, retry_after=wait)

    def _garbled(self, exc: Exception) -> RemoteError:
        return RemoteError(
            f"{self._source}: the answer is not what Hugging Face sends ({type(exc).__name__})",
            hint=f"check {ENDPOINT}, and that nothing in between answers for {self.endpoint}",
        )

    def _revisions(self, model: str) -> list[str]:
        with self._translated(None):
            self._bound_waiting()
            refs = self._api.list_repo_refs(model)
            return [one.name for one in (*refs.branches, *refs.tags)]


_OURS = "stager's own hook"


def _row(file: Any, commit: str) -> Listed:
    """One file of a list. What an LFS file is called in git is only the name of a pointer to it."""
    if file.lfs is not None:
        sha256 = str(file.lfs.sha256).lower()
        return Listed(file.path, int(file.size), sha256, sha256)
    blob = str(file.blob_id or "")
    return Listed(file.path, int(file.size), blob or f"{commit}:{file.path}", None, blob or None)
