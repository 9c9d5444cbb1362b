"""The contract of stores, held against each of them: what `stager.store.base` says, on OSS, on a folder, and through the wrappers.

With ``STAGER_TEST_OSS=oss://bucket/prefix`` and the usual credentials and endpoint in the environment it also runs on real OSS, in a folder
of its own below that prefix, which it removes.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stager.core.checksum import crc64
from stager.core.errors import (
    Interrupted,
    NotFound,
    ObjectChanged,
    ObjectExists,
    RemoteError,
)
from stager.core.location import Location
from stager.store.base import BLOCK, Pace, Store, StoredObject, UploadedPart
from stager.store.directory import DirectoryStore
from stager.store.limit import Limited
from stager.store.opening import StoreOptions
from stager.store.oss import OssStore
from stager.store.retry import Retrying
from tests.fuselab.fixtures import FuseMount
from tests.harness import ROOT, environment
from tests.osslab.fixtures import Oss

REAL = "STAGER_TEST_OSS"


@dataclass
class Place:
    """Somewhere to keep objects, and a way to look at it that does not go through the store under test, where there is one.

    `crc` and `metadata`: whether it keeps those. `folders`: names are files, so a folder and a file cannot have the same name. `whole`: an
    object appears whole or not at all; elsewhere only a manifest can say that it is.
    """

    store: Store
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes]
    crc: bool = True
    metadata: bool = True
    folders: bool = False
    whole: bool = True
    many: bool = True
    at: Callable[[str], Store] = field(default=lambda _: pytest.fail("no other root"))


def wrapped(store: Store) -> Store:
    """As `open_store` does, with a limit that nothing here reaches."""
    return Retrying(Limited(store, 1 << 40, time.sleep), give_up_after=0.3)


def oss_store(oss: Oss, prefix: str, signature: str) -> OssStore:
    options = StoreOptions(signature=signature)
    return OssStore(Location.parse(f"oss://{oss.bucket.name}/{prefix}"), options, environ=oss.env())


def real_oss() -> Iterator[Place]:
    """A folder of its own in the bucket. What the store refuses to write, such as placeholders, is put there by oss2 alone."""
    import oss2  # type: ignore[import-untyped]

    base = f"{os.environ[REAL].rstrip('/')}/contract-{secrets.token_hex(6)}"
    prefix = Location.parse(base).prefix

    def at(folder: str) -> Store:
        return OssStore(Location.parse(f"{base}/{folder}"), StoreOptions())

    everything = OssStore(Location.parse(base), StoreOptions())
    bucket = everything._client.control
    store = at("r1")
    yield Place(
        store,
        lambda name, data: bucket.put_object(f"{prefix}/r1/{name}", data),
        lambda name: read(store, name),
        many=False,
        at=at,
    )
    for upload in list(everything.unfinished()):
        bucket.abort_multipart_upload(f"{prefix}/{upload.name}", upload.upload_id)
    keys = [one.key for one in oss2.ObjectIteratorV2(bucket, prefix=f"{prefix}/")]
    for key in keys:  # placeholders among them, which no listing of the store gives
        bucket.delete_object(key)


KINDS: list[Any] = ["oss-v4", "oss-v1", "directory", "oss-wrapped", "directory-wrapped"]
KINDS += [pytest.param(kind, marks=pytest.mark.root) for kind in ("mounted", "mounted-wrapped")]
KINDS += ["real-oss"] * (REAL in os.environ)


def test_the_suite_for_real_oss_passes_and_leaves_nothing(oss: Oss) -> None:
    """The look-alike stands in for it, so that nobody finds out only beside a real bucket that the suite is broken."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "real-oss"]
    env = environment(**oss.env(), **{REAL: oss.url("contract")})
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert re.search(r"\b[3-9]\d passed", done.stdout), done.stdout[-4000:]
    assert oss.names() == []
    assert not oss.bucket.uploads


@pytest.mark.skipif(REAL not in os.environ, reason=f"no real OSS: set {REAL}=oss://bucket/prefix")
def test_real_oss_is_among_the_stores() -> None:
    assert "real-oss" in KINDS


@pytest.fixture(scope="module")
def bucket_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mount with the manners of ossfs 2, and the folder behind it."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse")
    behind = tmp_path_factory.mktemp("bucket")
    manners = {"subtype": "ossfs2", "writes": "ossfs2", "attr_timeout": 0, "entry_timeout": 0}
    mount = FuseMount(source=str(behind), **manners)
    try:
        yield Path(mount.path), behind
        asked = mount.counters()["writing"].keys()
        assert not {"rename", "ftruncate", "fallocate", "utimens", "chmod"} & asked
    finally:
        mount.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind: str = request.param
    wrap = wrapped if kind.endswith("-wrapped") else lambda store: store
    if kind == "real-oss":
        yield from real_oss()
    elif kind.startswith("oss"):
        oss: Oss = request.getfixturevalue("oss")
        signature = "v1" if kind == "oss-v1" else "v4"
        yield Place(
            wrap(oss_store(oss, "models/r1", signature)),
            lambda name, data: oss.put(f"models/r1/{name}", data),
            lambda name: oss.get(f"models/r1/{name}"),
            at=lambda folder: wrap(oss_store(oss, f"models/{folder}", signature)),
        )
    else:
        front = behind = tmp_path
        if kind.startswith("mounted"):
            front, behind = (one / tmp_path.name for one in request.getfixturevalue("bucket_mount"))

        def put(name: str, data: bytes) -> None:
            path = behind / "r1" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        yield Place(
            wrap(DirectoryStore(str(front / "r1"))),
            put,
            lambda name: (behind / "r1" / name).read_bytes(),
            crc=False,
            metadata=False,
            folders=True,
            whole=front is behind,
            at=lambda folder: wrap(DirectoryStore(str(front / folder))),
        )


def send(store: Store, name: str, data: bytes, pace: Pace | None = None, **options: object) -> StoredObject:
    upload = store.upload(name, len(data), **options)  # type: ignore[arg-type]
    view = memoryview(data)
    for number, start in enumerate(range(0, len(data), upload.part_size), 1):
        upload.part(number, view[start : start + upload.part_size], pace=pace)
    return upload.complete()


def read(store: Store, name: str, offset: int = 0, length: int | None = None, **options: str) -> bytes:
    got: list[bytes] = []
    reader = store.reader()
    size = store.head(name).size - offset if length is None else length
    reader.read(name, offset, size, lambda view: got.append(bytes(view)), **options)
    reader.close()
    return b"".join(got)


def names(store: Store, below: str = "", **options: str) -> list[str]:
    return [one.name for one in store.list(below, **options)]


DATA = os.urandom(3 * BLOCK + 12345)


# listings


def test_a_listing_is_in_order_of_bytes_below_the_root_only(place: Place) -> None:
    given = ["b/c", "a", "b-", "b0", "ä", "Z", "b/a/x", "\U0001f600", "\uffee"]
    for name in given:
        place.put(name, name.encode())
    send(place.at("r10"), "near", b"1")  # begins with the same letters, but is no part of it
    found = list(place.store.list())
    assert [one.name for one in found] == sorted(given, key=str.encode)
    for one in found:
        assert one.size == len(one.name.encode())
        head = place.store.head(one.name)
        assert (head.etag, head.size) == (one.etag, one.size)
        assert abs(one.modified - time.time()) < 900
        assert one.readable is True


def test_a_listing_below_a_name_and_after_one(place: Place) -> None:
    for name in ("a/1", "a/2", "ab", "b", "a/3/4"):
        place.put(name, b"x")
    assert names(place.store, "a/") == ["a/1", "a/2", "a/3/4"]
    assert names(place.store, "a") == ["a/1", "a/2", "a/3/4", "ab"]
    assert names(place.store, "nothing") == []
    assert names(place.store, start_after="a/2") == ["a/3/4", "ab", "b"]
    assert names(place.store, start_after="a/2x") == ["a/3/4", "ab", "b"]  # need not exist
    assert names(place.store, "a/", start_after="a/1") == ["a/2", "a/3/4"]
    assert names(place.store, start_after="z") == []


def test_a_root_without_objects_lists_nothing(place: Place) -> None:
    assert names(place.at("nowhere/at/all")) == []


def test_placeholders_of_folders_are_not_listed(place: Place) -> None:
    if place.folders:
        pytest.skip("a folder has no placeholders")
    for name in ("", "sub/", "sub/a"):
        place.put(name, b"")
    assert names(place.store) == ["sub/a"]


def test_a_listing_of_several_pages_has_every_name_once(place: Place) -> None:
    if not place.many:
        pytest.skip("thousands of objects in a real bucket")
    given = [f"shard-{n:05}" for n in range(2345)]
    for name in given:
        place.put(name, b"")
    assert names(place.store) == given
    assert names(place.store, start_after=given[1500]) == given[1501:]


ODD = [
    "sp ace",
    "per%41cent",
    "plus+plus",
    "q?x=1&y",
    "#hash",
    "ünïcode",
    ".dot",
    "ti~lde",
    "new\nline",
    "a=b;c",
    "~",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_go_through_every_call(place: Place, name: str) -> None:
    made = send(place.store, f"x/{name}", DATA[:1000])
    assert made.name == f"x/{name}"
    assert place.get(f"x/{name}") == DATA[:1000]
    assert names(place.store, "x/") == [f"x/{name}"]
    assert place.store.head(f"x/{name}").size == 1000
    assert read(place.store, f"x/{name}", 10, 20) == DATA[10:30]
    place.store.delete([f"x/{name}"])
    assert names(place.store) == []


# heads and reads


def test_head_knows_the_object(place: Place) -> None:
    place.put("a", DATA)
    found = place.store.head("a")
    assert (found.name, found.size, found.readable) == ("a", len(DATA), True)
    assert found.etag
    assert '"' not in found.etag
    assert found.crc64 == (crc64(DATA) if place.crc else None)
    assert found.age is not None
    assert 0 <= found.age < 900
    assert all(one.age is None for one in place.store.list())


def test_what_is_not_there_is_not_found(place: Place) -> None:
    place.put("a", b"x")
    with pytest.raises(NotFound):
        place.store.head("b")
    reader = place.store.reader()
    with pytest.raises(NotFound):
        reader.read("b", 0, 1, lambda view: pytest.fail("nothing to give"))
    assert read(place.store, "a") == b"x"


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (0, BLOCK),
        (1, BLOCK),
        (BLOCK - 1, 2),
        (len(DATA) - 1, 1),
        (0, len(DATA)),
        (17, 2 * BLOCK + 5),
    ],
)
def test_a_read_gives_exactly_the_range(place: Place, offset: int, length: int) -> None:
    place.put("a", DATA)
    head, got = place.store.head("a"), []
    reader = place.store.reader()
    for etag in (None, head.etag):
        got = []
        found = reader.read("a", offset, length, lambda view: got.append(bytes(view)), etag=etag)  # noqa: B023
        assert b"".join(got) == DATA[offset : offset + length]
        assert all(0 < len(block) <= BLOCK for block in got)
        assert (found.name, found.size, found.etag, found.crc64) == ("a", len(DATA), head.etag, head.crc64)
    reader.close()


def test_bytes_can_be_put_where_they_are_kept(place: Place) -> None:
    place.put("a", DATA)
    room, seen = bytearray(len(DATA) - 7), []
    place.store.reader().read(
        "a", 7, len(room), lambda view: seen.append(view.obj is room), into=memoryview(room)
    )
    assert bytes(room) == DATA[7:]
    assert seen
    assert all(seen)


def test_a_read_of_nothing_gives_nothing(place: Place) -> None:
    place.put("a", DATA)
    place.put("empty", b"")
    head = place.store.head("a")
    reader = place.store.reader()
    found = reader.read("a", 5, 0, lambda view: pytest.fail("nothing to give"), etag=head.etag)
    assert (found.size, found.etag) == (len(DATA), head.etag)
    assert reader.read("empty", 0, 0, lambda view: pytest.fail("nothing to give")).size == 0


def test_another_version_is_not_read(place: Place) -> None:
    place.put("a", DATA)
    etag = place.store.head("a").etag
    reader = place.store.reader()
    reader.read("a", 0, 10, lambda view: None, etag=etag)
    place.put("a", DATA[:-1] + b"!")
    for length in (10, 0):
        with pytest.raises(ObjectChanged):
            reader.read("a", 0, length, lambda view: pytest.fail("of another version"), etag=etag)
    assert reader.read("a", 0, 10, lambda view: None).etag != etag


def test_a_range_that_is_not_in_the_object_is_an_error_and_gives_nothing_beyond(place: Place) -> None:
    place.put("a", DATA[:1000])
    reader = place.store.reader()
    for offset, length in ((990, 11), (1000, 1), (5000, 10)):
        got: list[bytes] = []
        with pytest.raises(RemoteError):
            reader.read("a", offset, length, lambda view: got.append(bytes(view)))  # noqa: B023
        assert DATA[offset:1000].startswith(b"".join(got))
    assert read(place.store, "a") == DATA[:1000]


@pytest.mark.parametrize(
    "error", [KeyError("mine"), OSError(5, "mine"), RemoteError("mine"), KeyboardInterrupt()]
)
def test_what_the_sink_raises_comes_out_and_the_reader_stays_usable(
    place: Place, error: BaseException
) -> None:
    place.put("a", DATA)
    reader = place.store.reader()
    blocks = 0

    def sink(view: memoryview) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 2:
            raise error

    with pytest.raises(type(error)) as caught:
        reader.read("a", 0, len(DATA), sink)
    assert caught.value is error
    assert blocks == 2
    got: list[bytes] = []
    reader.read("a", 0, len(DATA), lambda view: got.append(bytes(view)))
    assert b"".join(got) == DATA
    reader.close()
    reader.close()


def test_an_interrupt_ends_the_read_under_way_and_no_other(place: Place) -> None:
    place.put("a", DATA)
    reader = place.store.reader()
    reader.interrupt()  # before: nothing happens
    got: list[bytes] = []

    def sink(view: memoryview) -> None:
        got.append(bytes(view))
        if len(got) == 1:
            other = threading.Thread(target=reader.interrupt)
            other.start()
            other.join()

    with pytest.raises(Interrupted):
        reader.read("a", 0, len(DATA), sink)
    assert DATA.startswith(b"".join(got))
    assert sum(map(len, got)) < len(DATA)
    reader.interrupt()  # between: nothing happens
    got = [b""]
    reader.read("a", 0, len(DATA), sink)
    assert b"".join(got) == DATA


def test_readers_of_many_threads_do_not_mix(place: Place) -> None:
    for n in range(8):
        place.put(f"f{n}", bytes([n]) * (BLOCK + n))
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(5):
            wrong.extend([n] * (read(place.store, f"f{n}") != bytes([n]) * (BLOCK + n)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# uploads


@pytest.mark.parametrize("size", [0, 1, 1000, len(DATA)])
def test_a_small_object_arrives(place: Place, size: int) -> None:
    made = send(place.store, "sub/folder/a", DATA[:size], metadata={"sha256": "abc", "note": "grün"})
    assert place.get("sub/folder/a") == DATA[:size]
    head = place.store.head("sub/folder/a")
    assert (made.name, made.size, made.etag) == ("sub/folder/a", size, head.etag)
    if place.crc:
        assert made.crc64 == head.crc64 == crc64(DATA[:size])
    if place.metadata:
        assert dict(head.metadata) == dict(made.metadata) == {"sha256": "abc", "note": "grün"}


@pytest.fixture(scope="module")
def large() -> bytes:
    return os.urandom(1 << 20) * 33


def test_an_object_in_parts_appears_whole_or_not_at_all(place: Place, large: bytes) -> None:
    upload = place.store.upload("a", len(large), metadata={"k": "v"})
    assert upload.part_size == place.store.upload("b", len(large)).part_size
    assert len(large) > 2 * upload.part_size
    assert upload.parts == ()
    view, size = memoryview(large), upload.part_size
    if place.whole:
        upload.part(1, memoryview(bytes(size)))  # replaced by the next: it has the same number
    sent = [upload.part(n + 1, view[n * size : (n + 1) * size]) for n in range(3)]
    assert [(one.number, one.size) for one in sent] == [(1, size), (2, size), (3, len(large) - 2 * size)]
    assert [one.crc64 for one in sent] == [crc64(view[n * size : (n + 1) * size]) for n in range(3)]
    if place.whole:
        assert names(place.store) == []
    made = upload.complete()
    assert place.get("a") == large
    assert made.size == len(large)
    assert made.etag == place.store.head("a").etag
    if place.crc:
        assert made.crc64 == crc64(large)
    if place.metadata:
        assert dict(place.store.head("a").metadata) == {"k": "v"}
    upload.abort()  # harmless now
    assert place.get("a") == large


def test_an_upload_goes_on_where_another_process_left_it(place: Place, large: bytes) -> None:
    view = memoryview(large)
    first = place.store.upload("a", len(large))
    size = first.part_size
    kept = first.part(1, view[:size])
    del first
    second = place.store.upload("a", len(large), resume=True)
    assert [(one.number, one.size, one.crc64) for one in second.parts] == [(1, size, kept.crc64)]
    for number in (2, 3):
        second.part(number, view[(number - 1) * size : number * size])
    made = second.complete()
    assert place.get("a") == large
    if place.crc:
        assert made.crc64 == crc64(large)
    # There is nothing to go on with any more, nor for another object: a whole file on a mount may be an older one.
    third = place.store.upload("a", len(large), resume=True)
    assert third.parts == ()
    third.abort()


def test_what_an_upload_has_is_read_block_by_block_and_a_stop_leaves_it(place: Place, large: bytes) -> None:
    first = place.store.upload("a", len(large))
    size = first.part_size
    for number in (1, 2):
        first.part(number, memoryview(large)[(number - 1) * size : number * size])
    del first
    paced: list[int] = []
    assert len(place.store.upload("a", len(large), resume=True, pace=paced.append).parts) == 2
    if place.crc:
        assert paced == [], "the store tells what it has"
        return
    assert sum(paced) == 2 * size
    assert max(paced) <= BLOCK

    def stop(_size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # with all that its traceback refers to
        place.store.upload("a", len(large), resume=True, pace=stop)
    assert len(place.store.upload("a", len(large), resume=True).parts) == 2, kept


def test_nothing_of_an_aborted_upload_is_there(place: Place, large: bytes) -> None:
    place.put("a", b"old")
    upload = place.store.upload("a", len(large))
    upload.part(1, memoryview(large)[: upload.part_size])
    upload.abort()
    upload.abort()
    if place.whole:
        assert place.get("a") == b"old"
    assert names(place.store) == ["a"] * place.whole
    again = place.store.upload("a", len(large), resume=True)
    assert again.parts == ()
    again.abort()


def test_parts_at_once_are_parts_of_one_object(place: Place, large: bytes) -> None:
    upload = place.store.upload("a", len(large))
    if not upload.concurrent:
        pytest.skip("one part after the other")
    view, size, together = memoryview(large), upload.part_size, threading.Barrier(3)
    paced: dict[int, int] = {}

    def part(number: int) -> UploadedPart:
        def pace(block: int) -> None:
            if number not in paced:
                together.wait(60)  # passes only with all three on their way
            paced[number] = paced.get(number, 0) + block

        return upload.part(number, view[(number - 1) * size : number * size], pace=pace)

    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(part, (3, 1, 2)))
    assert [(one.number, one.size) for one in sent] == [(3, len(large) - 2 * size), (1, size), (2, size)]
    assert paced == {one.number: one.size for one in sent}, "each by its own pace"
    upload.complete()
    assert place.get("a") == large


def test_unfinished_uploads_of_that_very_name_are_discarded(place: Place, large: bytes) -> None:
    first = memoryview(large)
    left = [place.store.upload(name, len(large)) for name in ("a", "a2")]
    size = left[0].part_size
    for upload in left:
        upload.part(1, first[:size])
    del left, upload
    made = place.store.upload("a", len(large), discard=True, resume=True)
    assert made.parts == ()
    if not place.whole:
        made.part(1, first[1 : size + 1])
        assert made.part(2, first[:size]).number == 2
        made.abort()
    del made
    again = place.store.upload("a", len(large), resume=True)
    assert again.parts == ()
    again.abort()
    near = place.store.upload("a2", len(large), resume=True)
    assert [one.number for one in near.parts] == [1]
    near.abort()


@pytest.mark.parametrize("parts", [False, True], ids=["single", "parts"])
def test_an_object_that_is_there_is_replaced_only_where_that_was_asked_for(
    place: Place, large: bytes, parts: bool
) -> None:
    data = large if parts else DATA
    send(place.store, "a", data, replace=False)
    with pytest.raises(ObjectExists):
        send(place.store, "a", b"other", replace=False)
    with pytest.raises(ObjectExists):
        send(place.store, "a", large, replace=False)
    with suppress(ObjectExists):  # which may be said early, or at the end
        place.store.upload("a", len(large), resume=True, replace=False).abort()
    assert place.get("a") == data
    send(place.store, "a", b"new")
    assert place.get("a") == b"new"


def test_an_upload_is_paced_block_by_block_and_the_pace_may_end_it(place: Place) -> None:
    paced: list[int] = []
    upload = place.store.upload("a", len(DATA))
    upload.part(1, memoryview(DATA), pace=paced.append)
    upload.complete()
    assert sum(paced) == len(DATA)
    assert max(paced) <= BLOCK

    error = OSError(5, "mine")

    def stop(size: int) -> None:
        raise error

    with pytest.raises(OSError) as caught:
        send(place.store, "b", DATA, pace=stop)
    assert caught.value is error
    assert "b" not in names(place.store)


# deletion


def test_what_is_deleted_is_gone_and_what_was_never_there_counts_as_deleted(place: Place) -> None:
    for name in ("a", "b/c", "d"):
        place.put(name, b"x")
    place.store.delete(["a", "nothing", "b/c"])
    assert names(place.store) == ["d"]
    place.store.delete([])
    place.store.delete(["a"])
    assert names(place.store) == ["d"]
