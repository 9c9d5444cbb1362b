"""ModelScope: its SDK finds endpoint and token and lists; the bytes go around it.

The SDK's own download writes every byte to a temporary file first. What it would write below the home directory is kept in memory, and
what it would print is not printed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sys
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from stager.core.errors import (
    AccessDenied,
    CannotServe,
    NotFound,
    RemoteError,
    StagerError,
    UsageError,
)
from stager.core.location import told
from stager.core.source import Source
from stager.core.units import shown
from stager.hub.base import Snapshot
from stager.hub.http import Address, HttpReader, Shelf
from stager.hub.listing import Listed, snapshot, unknown_revision
from stager.hub.refusals import LATER, NO_ACCESS, hidden, words
from stager.hub.region import region
from stager.hub.tokens import fit
from stager.hub.trouble import on_the_way, unsent
from stager.store.base import Reader

if TYPE_CHECKING:
    from stager.hub.opening import HubOptions

TOKEN = "MODELSCOPE_API_TOKEN"  # noqa: S105  # where it is, not what
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMIT = 3000  # entries, beyond which the hub's lists end without a word
_DENIED = (
    f"set {TOKEN} to a token of an account that may read it, and accept its conditions on the model's page"
)
_NO_TOKEN = f"if it is private or gated, set {TOKEN}"
# How often the SDK itself asks for a page, and the longest it waits in between (s), as it names them. Its own 4 and 8 take a minute without a
# word; with 1, a list of hundreds of pages would begin anew for each that fails.
_TRIES = {"REPO_TREE_PAGE_MAX_ATTEMPTS": 2, "REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS": 1}
_PAGE = "REPO_TREE_PAGE_TIMEOUT_SECONDS"  # what a page may take in all
_setting_up = threading.Lock()  # the SDK's configuration and the environment belong to the whole process


class ModelScopeHub:
    """One model on ModelScope, or on what ``MODELSCOPE_ENDPOINT`` names instead."""

    def __init__(self, source: Source, options: HubOptions) -> None:
        """Asks nobody yet."""
        self._model, self._asked = source.model, source.revision or "master"
        self._source = str(source)
        self._route = options.route()
        self._sdk = _Sdk(self._source, options)
        self._lock = threading.Lock()
        self._region: str | None = None
        self._shelf: Shelf | None = None

    @property
    def source(self) -> str:
        """``ms://owner/name``."""
        return self._source

    @property
    def credentials(self) -> str:
        """Where the SDK found the token."""
        return self._sdk.credentials

    def snapshot(self) -> Snapshot:
        """As `Hub.snapshot`. Where no commit has what a branch has, the revision is the branch's name and a hash of its list."""
        rows, revision, asked = self._pinned()
        listed = (
            Listed(row.path, row.size, row.sha256 or f"{revision}:{row.path}", row.sha256) for row in rows
        )
        found = snapshot(self._source, revision, listed)
        with self._lock:
            if self._region is None:
                self._region = region(self._sdk.endpoint, os.environ)
            self._shelf = Shelf(
                self._source,
                self._route,
                found.files,
                self._address(asked),
                denied=_DENIED,
                token=self._sdk.token,
                region=self._region,
            )
        return found

    def reader(self) -> Reader:
        """As `Hub.reader`."""
        with self._lock:
            assert self._shelf is not None, "there is no snapshot yet"
            return HttpReader(self._shelf)

    def _pinned(self) -> tuple[list[_Row], str, str]:
        """The files, the revision that they are of, and the one to ask for their bytes: a commit, where that has all files of the branch as they are."""
        rows = self._list(self._asked)
        if _COMMIT.fullmatch(self._asked):
            return rows, self._asked, self._asked
        for _ in range(2):  # twice, for somebody may have pushed in between
            commit = max(rows, key=lambda row: row.when).commit
            if not _COMMIT.fullmatch(commit):
                break
            listed = {row.content for row in rows}
            try:
                known = {row.content for row in self._list(commit)}
            except NotFound:
                known = set()
            if listed == known:
                return rows, commit, commit
            rows = self._list(self._asked)
            # A later commit that only removed files is in no list. Nor are files that a list made during a push has not yet; the next one has them.
            if listed < known and listed == {row.content for row in rows}:
                return rows, commit, commit
        # The checksums still say whether the files are those that were listed, and what was listed is what names this state of the branch.
        state = "\n".join(sorted(map(repr, (row.content for row in rows))))
        return rows, f"{self._asked}~{hashlib.sha256(state.encode()).hexdigest()[:12]}", self._asked

    def _list(self, revision: str) -> list[_Row]:
        try:
            rows = self._sdk.files(self._model, revision)
        except (NotFound, UsageError) as exc:
            self._refuse_unknown(revision, exc)
            raise
        if not rows:  # which the hub also says of a revision that it does not know
            self._refuse_unknown(revision, None)
            raise NotFound(f"{shown(self._source)} holds no files")
        return rows

    def _refuse_unknown(self, revision: str, refused: StagerError | None) -> None:
        """Raises for a `revision` that is no branch or tag; `refused` where it is the model that the hub does not know."""
        try:
            known = self._sdk.revisions(self._model)
        except (NotFound, UsageError) as exc:
            raise (refused or exc) from None
        if revision not in known:
            raise unknown_revision(self._source, revision, known) from refused

    def _address(self, revision: str) -> Callable[[str], Address]:
        base = f"{self._sdk.endpoint}/api/v1/models/{quote(self._model)}/repo"
        private = self._sdk.headers()

        def address(path: str) -> Address:
            query = urlencode(
                {"Revision": revision, "FilePath": path}, quote_via=quote, safe="/", errors="surrogateescape"
            )
            return Address(f"{base}?{query}", private)

        return address


class _Row:
    """One file in a list of the SDK's. Raises what a list that is none raises."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.path, self.size = str(entry["Path"]), int(entry["Size"])
        sha256 = str(entry.get("Sha256") or "").lower()
        self.sha256 = sha256 if _SHA256.fullmatch(sha256) else None
        self.commit = str(entry.get("Revision") or "")
        self.when = int(entry.get("CommittedDate") or 0)

    @property
    def content(self) -> tuple[str, int, str | None]:
        """What must be the same for two lists to be of the same files."""
        return self.path, self.size, self.sha256


class _Sdk:
    """modelscope, as far as it is asked for anything. Its lists ask for a page twice by themselves; all else is one attempt."""

    def __init__(self, source: str, options: HubOptions) -> None:
        """Imports it, which takes 0.2 s."""
        self._source = source
        with _set_up():
            self._api, config = _opened(options.read_timeout)
            _bound_waiting(self._api.legacy, options)
        self.endpoint: str = config.endpoint
        self.token: str = config.token or ""
        self.credentials = _whence(config) if self.token else ""

    def headers(self) -> dict[str, str]:
        """What says who asks; some of the hub's paths want one, some the other."""
        if not self.token:
            return {}
        return {"Authorization": f"Bearer {self.token}", "Cookie": f"m_session_id={self.token}"}

    def files(self, model: str, revision: str) -> list[_Row]:
        """All files of a revision. Raises `CannotServe` when the hub cannot list them all."""
        client = self._api.legacy
        with self._translated():
            entries = client.list_repo_files(
                repo_id=model, repo_type="model", revision=revision, recursive=True
            )
            direct = Counter(str(entry["Path"]).rpartition("/")[0] for entry in entries)
            rows = [_Row(entry) for entry in entries if (entry.get("Type") or "blob") != "tree"]
        folder, most = max(direct.items(), key=lambda one: one[1], default=("", 0))
        if most >= _LIMIT:
            where = f"its folder `{shown(folder)}`" if folder else "its top folder"
            raise CannotServe(
                f"{self._source}: {where} has {most} entries or more, and the hub lists no more than {_LIMIT} of a folder",
                hint="this model cannot be pulled whole from ModelScope",
            )
        state = getattr(client, "_read_state", None)
        if getattr(state, "listing_incomplete", False):
            raise RemoteError(
                f"{self._source}: the SDK gave up before it had listed all folders",
                hint="set MODELSCOPE_REPO_TREE_MAX_REQUESTS to more than 5000",
            )
        return rows

    def revisions(self, model: str) -> list[str]:
        """The names of branches and tags."""
        with self._translated():
            found = self._api.legacy.list_revisions(model, "model")
            return [str(one["Revision"]) for one in found]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from modelscope_hub.errors import HubError

        try:
            yield
        except HubError as exc:
            raise self._error(exc) from exc
        # Before those of the network: what requests raises for an answer that is not JSON is both.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            if (mistake := unsent(exc, self._source, "MODELSCOPE_ENDPOINT")) is not None:
                raise mistake from exc
            raise RemoteError(
                f"{self._source}: the answer is not what ModelScope sends ({type(exc).__name__})",
                hint=f"check MODELSCOPE_ENDPOINT, and that nothing in between answers for {shown(self.endpoint)}",
            ) from exc
        except OSError as exc:  # those of requests, too
            raise on_the_way(exc, f"{self._source}, at {told(self.endpoint)}", self.endpoint) from exc

    def _error(self, exc: Any) -> StagerError:
        """What an error of the SDK's means."""
        from modelscope_hub import errors

        body = getattr(exc, "response_body", None)
        code = body.get("Code") if isinstance(body, dict) else None
        status = getattr(exc, "status_code", None)
        parts = [f"HTTP {status}" if status else type(exc).__name__, words(str(exc.message))]
        if request := getattr(exc, "request_id", None):
            parts.append(f"request {words(str(request))}")
        why = hidden(", ".join(part for part in parts if part), self.token)
        if code in NO_ACCESS or isinstance(
            exc, (errors.AuthenticationError, errors.PermissionDeniedError, errors.QuotaExceededError)
        ):
            private = "it is private or gated" if not self.token else "the token may not read it"
            return AccessDenied(f"{self._source}: access is denied, {private} ({why})", hint=_DENIED)
        if isinstance(exc, errors.NotExistError):
            said = f"{self._source} does not exist" + ("" if self.token else ", or is private")
            return NotFound(f"{said} ({why})", hint=None if self.token else _NO_TOKEN)
        if isinstance(exc, errors.NetworkError):
            return on_the_way(exc, f"{self._source}, at {told(self.endpoint)}", self.endpoint)
        final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
        if isinstance(exc, errors.InvalidParameter) or final:
            return UsageError(f"{self._source}: the hub does not accept the request ({why})")
        wait = getattr(exc, "retry_after", None)
        return RemoteError(f"{self._source}: the hub cannot answer now ({why})", hint=LATER, retry_after=wait)


@contextmanager
def _set_up() -> Iterator[None]:
    """While the SDK is imported and opened: it has a home directory, and nothing to say."""
    with _setting_up, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        homeless = os.path.expanduser("~") == "~"  # a user id that the system does not know, as pods have
        if homeless:
            os.environ["HOME"] = "/nonexistent"
        try:
            yield
        finally:
            if homeless:
                del os.environ["HOME"]
            for name in ("modelscope", "modelscope_hub"):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _opened(timeout: float) -> tuple[Any, Any]:
    """The SDK's client and its configuration, read from the environment now."""
    from modelscope_hub.config import HubConfig, get_default_config, set_default_config

    class Unwritten(HubConfig):
        """Leaves the home directory alone."""

        def get_session_id(self) -> str:
            """A new one for each process."""
            return uuid.uuid4().hex

        def load_token(self) -> str | None:
            """None where what is stored cannot be read."""
            try:
                return super().load_token()
            except Exception:  # it is a pickle: anything can come out of it
                return None

    if "modelscope" not in sys.modules:
        set_default_config(
            Unwritten()
        )  # what its import would make of a login that cannot be read is an exception
    from modelscope.hub.api import HubApi  # type: ignore[import-untyped]

    # The import may have moved the folders, by variables that only modelscope knows. Endpoint and token are those of now.
    found = get_default_config()
    config = Unwritten(cache_dir=found.cache_dir, config_dir=found.config_dir)
    config.token = fit(config.token, _whence(config))
    set_default_config(config)
    return HubApi(timeout=math.ceil(timeout), max_retries=0), config


def _whence(config: Any) -> str:
    """Where the token in `config` comes from, in words."""
    return TOKEN if os.environ.get(TOKEN, "").strip() else f"the login in {config.credentials_dir}"


def _bound_waiting(client: Any, options: HubOptions) -> None:
    """Let `client` wait as long as `options` say, and not as long as the SDK finds right, and tell of each answer."""
    connect, read = options.connect_timeout, options.read_timeout
    module = sys.modules[type(client).__module__]
    for name, value in {**_TRIES, _PAGE: max(getattr(module, _PAGE, 0), read)}.items():
        if hasattr(module, name) and f"MODELSCOPE_{name}" not in os.environ:
            setattr(module, name, value)
    sessions = [one for one in vars(client).values() if hasattr(one, "send") and hasattr(one, "mount")]
    for session in sessions:

        def send(request: Any, *, plain: Any = session.send, timeout: Any = None, **more: Any) -> Any:
            given = timeout if isinstance(timeout, tuple) else (timeout, timeout)
            limits = tuple(
                limit if one is None else min(one, limit)
                for one, limit in zip(given, (connect, read), strict=True)
            )
            response = plain(request, timeout=limits, **more)
            options.on_answer()
            return response

        session.send = send
