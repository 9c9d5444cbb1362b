"""oss2, set up: endpoint and region found, requests signed with credentials that stay fresh, errors translated."""

from __future__ import annotations

import http.client
import logging
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stager.core.errors import AccessDenied, CredentialsExpired, StagerError, UsageError
from stager.core.location import Location
from stager.core.units import shown
from stager.net.connection import Pace
from stager.net.failures import unreachable
from stager.net.route import Route
from stager.store.credentials import Credentials, Source
from stager.store.opening import StoreOptions
from stager.store.oss import endpoint as endpoints
from stager.store.oss.endpoint import Endpoint, Style
from stager.store.oss.failures import garbled, refused
from stager.store.oss.wire import Line, Pool

_SIGNATURES = ("v4", "v1")
_LONGEST_KEY = 1023
_MOST_IDLE = 64  # connections kept between two bulk bodies


class Client:
    """A bucket as oss2 sees it. Any thread may use it."""

    def __init__(
        self, location: Location, options: StoreOptions, environ: Mapping[str, str], source: Source
    ) -> None:
        """Asks nobody yet. Raises `UsageError` for options that cannot be."""
        if options.signature not in _SIGNATURES:
            raise UsageError(f"`{shown(options.signature)}` is not a signature version", hint="v4 or v1")
        self.location = location
        self.source = source
        self.route = Route(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            source_ips=options.source_ips,
            environ=environ,
        )
        self._options = options
        self._signer = _Signer(source)
        self._pool = Pool(self.route)
        self._lock = threading.Lock()
        self._idle: list[tuple[Line, Any]] = []  # connections for bulk bodies, each with its bucket
        self._endpoint = endpoints.choose(options.endpoint, options.region, environ, location.bucket)
        self._control: Any = None

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go; asks the bucket where it is when nothing else says so, once. Raises as requests do."""
        with self._lock:
            found = self._endpoint
            # Version 1 signs without a region, and an anonymous request is not signed at all.
            if found is None or (found.region is None and self._options.signature == "v4" and self._signs()):
                self._endpoint = found = self._found(found)
            return found

    def subject(self, key: str = "") -> str:
        """The object, or the bucket, as messages name it."""
        return f"`{shown(f'oss://{self.location.bucket}/{key}')}`"

    def key(self, prefix: str, name: str) -> str:
        """The key of the object `name` below `prefix`. Raises `UsageError` for one that no object can have."""
        key = prefix + name
        try:
            raw = key.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(f"{self.subject(key)}: the name is not UTF-8, and OSS takes no other") from None
        if not name or len(raw) > _LONGEST_KEY:
            raise UsageError(f"{self.subject(key)}: a name has 1 to {_LONGEST_KEY} bytes in OSS")
        return key

    @property
    def control(self) -> Any:
        """The `oss2.Bucket` for everything but bulk bodies. Any thread may use it."""
        if self._control is None:
            self._control = self.bucket(self._pool)
        return self._control

    def bucket(self, session: Line | Pool) -> Any:
        """An `oss2.Bucket` whose requests go over `session`."""
        endpoint = self.endpoint
        return self._bucket(session, endpoint, self._options.signature)

    @contextmanager
    def translated(self, subject: str, *, key: str = "", line: Line | None = None) -> Iterator[None]:
        """Errors of oss2 and of the network come out as stager's. What `line`'s pace raised comes out unchanged.

        Credentials that were refused as expired are reported to their source.
        """
        import oss2  # type: ignore[import-untyped]

        try:
            yield
        except StagerError:
            raise
        except oss2.exceptions.ClientError as exc:
            raise UsageError(f"{subject}: {shown(str(exc.body))}") from None
        except oss2.exceptions.OssError as exc:
            used = self._signer.used
            restore = f"oss://{self.location.bucket}/{key}" if key else ""
            found = refused(exc, subject, used=used, restore=restore, now=time.time())
            if isinstance(found, CredentialsExpired) and not (used and self.source.invalidate(used)):
                found = AccessDenied(
                    f"{found.message}; nothing renews them",
                    hint=f"they come from here: {self.source.describe()}. Set fresh ones, or have them renewed by RRSA or an ECS role",
                )
            # Not from `exc`: its text has what was signed, and with that the security token.
            raise found from None
        except (OSError, http.client.HTTPException) as exc:
            if line is not None and exc is line.own:
                raise
            raise unreachable(exc, subject) from exc
        except (ET.ParseError, ValueError, RuntimeError) as exc:
            if line is not None and exc is line.own:
                raise
            raise garbled(exc, subject) from exc

    @contextmanager
    def bulk(self, subject: str, key: str, pace: Pace | None) -> Iterator[Any]:
        """An oss2 bucket over a connection that nobody else uses meanwhile, and that does not outlive an error. From any thread.

        Connections are kept alive between calls, whatever object they were for. `pace` is called before each block of a body that is sent.
        """
        with self._lock:
            line, bucket = self._idle.pop() if self._idle else (Line(self.route), None)
        line.pace, line.own = pace, None
        try:
            with self.translated(subject, key=key, line=line):
                if bucket is None:
                    bucket = self.bucket(line)
                yield bucket
                if line.answer is not None:
                    line.answer.read()
        except BaseException:
            line.connection.drop()
            raise
        finally:
            line.pace = None
        with self._lock:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append((line, bucket))
                return
        line.connection.drop()

    def _signs(self) -> bool:
        return not self.source.get().anonymous

    def _bucket(self, session: Line | Pool, endpoint: Endpoint, signature: str) -> Any:
        import oss2

        # oss2 logs what it signs at debug level, security token included.
        logging.getLogger("oss2").setLevel(logging.WARNING)
        if not self._signs():
            auth = oss2.AnonymousAuth()
        elif signature == "v4":
            auth = oss2.ProviderAuthV4(self._signer)
        else:
            auth = oss2.ProviderAuth(self._signer)
        literal = endpoint.host.startswith("[")
        with self.translated(f"`{shown(endpoint.host)}`"):
            bucket = oss2.Bucket(
                auth,
                "http://ipv6" if literal else endpoint.url,
                self.location.bucket,
                is_cname=endpoint.style is Style.CNAME,
                is_path_style=endpoint.style is Style.PATH,
                session=session,
                app_name="stager",
                enable_crc=False,
                region=endpoint.region or endpoints.ANYWHERE,
            )
            if literal:
                # oss2 takes no IPv6 address for an endpoint; what makes its URLs does.
                make_url = oss2.api._UrlMaker(endpoint.url, is_cname=False, is_path_style=True)  # noqa: SLF001
                bucket._make_url = make_url  # noqa: SLF001
            return bucket

    def _found(self, known: Endpoint | None) -> Endpoint:
        """Asks the bucket for its region: at the endpoint that is known, or at one that knows all buckets.

        A request signed for the wrong region is refused, and the region is what is not known: where an endpoint's own is hidden,
        version 1 asks, which needs none.
        """
        import oss2

        at = known or endpoints.of_region(endpoints.ANYWHERE)
        signature = self._options.signature if known is None else "v1"
        bucket = self._bucket(self._pool, at, signature)
        with self.translated(self.subject()):
            try:
                region = bucket.get_bucket_location().location
            except oss2.exceptions.ServerError as exc:
                named = exc.details.get("Endpoint")
                region = endpoints.parse(named, self.location.bucket).region if named else None
                if not region:
                    why = refused(exc, self.subject(), used=self._signer.used, now=time.time())
                    if exc.status in (400, 403) and not isinstance(why, CredentialsExpired):
                        raise _unknown(self.subject(), why) from None
                    raise
        return known.in_region(region) if known else endpoints.of_region(region)


def _unknown(subject: str, why: StagerError) -> StagerError:
    """The refusal `why`, with what helps when it was only the region that was asked for."""
    return type(why)(
        f"the region of {subject} is not known; {why.message}", hint="give `--region` or `--endpoint`"
    )


class _Signer:
    """What oss2 calls a credentials provider. `used` is what the calling thread signed with last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._mine = threading.local()

    @property
    def used(self) -> Credentials | None:
        return getattr(self._mine, "used", None)

    def get_credentials(self) -> Any:
        import oss2

        used = self._mine.used = self._source.get()
        return oss2.credentials.Credentials(used.key_id, used.secret, used.token or "")
