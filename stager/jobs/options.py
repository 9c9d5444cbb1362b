"""What a user asked of a job, parsed and typed. Sizes in bytes, times in seconds, shares 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from stager.core.location import Location
from stager.core.marker import DEFAULT_PATH
from stager.core.outcome import Mode
from stager.core.plan import Order
from stager.core.units import GIB, MIB
from stager.store.opening import StoreOptions

if TYPE_CHECKING:
    from stager.core.engines import Engine
    from stager.core.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which files: PATHs and globs on the names below them. `first`: only so many bytes of each, from its beginning; None: all."""

    paths: tuple[str, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    first: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What bounds the warm set. `reserve` None: the default; `budget` a float: a share of the binding limit."""

    reserve: int | None = None
    limit: int | None = None
    budget: int | float | None = None
    engine_shares_own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """How long pages are kept after warming: `seconds`, or until `url` answers 2xx; neither: not at all.

    `idle`: stay alive afterwards; `watch`: and count now and then what is still resident.
    """

    seconds: float | None = None
    url: str | None = None
    lock: bool = False
    idle: bool = False
    watch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmOptions:
    """Everything ``stager warm`` can be told. `span` is how big the pieces are that files are read in, `WHOLE` or bytes; None: as the filesystem likes it."""

    selection: Selection
    memory: Memory = Memory()
    lanes: int = 16
    span: int | None = None
    adapt: bool = True
    order: Order = Order.AUTO
    max_rate: int | None = None
    mode: Mode = Mode.DEFAULT
    allow_incomplete: bool = False
    fresh: bool = False
    anyway: bool = False
    min_resident: float | None = None
    protect: bool = False
    hold: Hold = Hold()
    timeout: float | None = None
    stall_timeout: float | None = 300.0
    marker: str = DEFAULT_PATH
    marker_named: bool = False


class Verify(StrEnum):
    """How far fetched files are proven: `CRC64` costs nothing, `SHA256` reads each file once more from memory."""

    CRC64 = "crc"
    SHA256 = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """Everything ``stager fetch`` can be told. `warm` is what happens in `folder` afterwards; its lanes are not fetch's.

    `processes` None: as many as help. `keep_free` is what must stay free on the filesystem: bytes, or a share of it (float).
    """

    source: Location
    folder: str
    store: StoreOptions
    warm: WarmOptions
    lanes: int = 64
    adapt: bool = True
    processes: int | None = None
    verify: Verify = Verify.CRC64
    keep_free: int | float = GIB
    mirror: bool = False
    cache: bool = True


class Proof(StrEnum):
    """How far pulled files are proven.

    `SHA256`: every byte against what the hub states, those of an earlier run read back. `CRC`: only that the store has what was sent. `NONE`: as
    `CRC`, and a file that is there counts by its size alone.
    """

    NONE = "none"
    CRC = "crc"
    SHA256 = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """Everything ``stager pull`` can be told. `store` is how `dest` is reached, the rate limit among it.

    `engine` chooses files by what it loads, `quant` and `variant` among several; the globs count within that. `buffer` bounds the bytes on their
    way, in all. `restart`: abort unfinished uploads and send all files anew. `wait`: for another pull of the same destination to end.
    `allow_incomplete`: pull what is provably no whole model, too. `keep_free` is what must stay free on the filesystem of a folder: bytes, or a
    share of it (float).
    """

    source: Source
    dest: Location
    store: StoreOptions
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    engine: Engine | None = None
    quant: str | None = None
    variant: str | None = None
    lanes: int = 16
    adapt: bool = True
    buffer: int = 512 * MIB
    verify: Proof = Proof.SHA256
    restart: bool = False
    wait: bool = False
    mirror: bool = False
    allow_incomplete: bool = False
    keep_free: int | float = GIB
    timeout: float | None = None
    stall_timeout: float | None = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Everything ``stager verify`` can be told. `sha256`: hash every file too, besides its CRC-64."""

    location: Location
    store: StoreOptions
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sha256: bool = False
    lanes: int = 16
    adapt: bool = True
    buffer: int = 512 * MIB
    timeout: float | None = None
    stall_timeout: float | None = 300.0
