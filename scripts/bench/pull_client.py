"""Client programs of ``scripts/bench-pull``, run by the interpreter that runs stager; each prints one JSON line.

pull_client.py read URL-FILE LANES                               files of a hub over LANES connections, thrown away
pull_client.py write ENDPOINT BUCKET PREFIX LANES COUNT SIZE     COUNT objects of SIZE zero bytes in parts, by plain threads
pull_client.py sha THREADS COUNT SIZE                            sha256 of as many bytes of memory
pull_client.py upload ENDPOINT BUCKET PREFIX THREADS FILE...     oss2.resumable_upload as it comes, one file after the other
pull_client.py compare ENDPOINT BUCKET PREFIX FOLDER             which files of FOLDER are not the objects, byte for byte
pull_client.py remove ENDPOINT BUCKET PREFIX                     all objects and unfinished uploads below PREFIX
pull_client.py crcs ENDPOINT BUCKET PREFIX FOLDER                which files of FOLDER have another size or CRC-64 than the objects
pull_client.py sums FOLDER                                       size and CRC-64 of the files of FOLDER
"""

import hashlib
import http.client
import json
import os
import sys
import threading
import time
from queue import Empty, SimpleQueue
from urllib.parse import urljoin, urlsplit

# The checkout's stager, where this interpreter has none of its own. Run with -P: what lies beside this file is no library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

REGION = "cn-test"
BLOCK = 1 << 20
RANGE = 64 << 20  # bytes that one connection reads or sends before it takes the next piece
OSS2_PART = 16 << 20


class Spent:
    """Wall and CPU seconds of this process from here on."""

    def __init__(self):
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def now(self):
        """Both so far."""
        return {"seconds": time.perf_counter() - self._began, "cpu": time.process_time() - self._cpu}


def _over(lanes, work, items):
    """`work(take)` in each of `lanes` threads, where `take()` gives the next of `items`; raises what any of them raised."""
    queue, failed = SimpleQueue(), []
    for item in items:
        queue.put(item)

    def take():
        try:
            return None if failed else queue.get_nowait()
        except Empty:
            return None

    def lane():
        try:
            work(take)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


class Hosts:
    """One thread's connections, one a host, kept."""

    def __init__(self):
        self._open = {}

    def request(self, method, url, **given):
        """The answer, its head read."""
        where = urlsplit(url)
        if where.netloc not in self._open:
            self._open[where.netloc] = http.client.HTTPConnection(where.netloc, timeout=60, blocksize=BLOCK)
        target = f"{where.path}?{where.query}" if where.query else where.path
        self._open[where.netloc].request(method, target, **given)
        return self._open[where.netloc].getresponse()


def read(listing, lanes):
    """Every URL of the file `listing` (lines of URL and size), in ranges; redirects are followed for each, as downloads do."""
    with open(listing, encoding="utf-8") as file:
        wanted = [(url, int(size)) for url, size in map(str.split, file)]
    ranges = [(url, at, min(size, at + RANGE)) for url, size in wanted for at in range(0, size, RANGE)]
    total, lock = 0, threading.Lock()

    def lane(take):
        nonlocal total
        hosts, block = Hosts(), memoryview(bytearray(BLOCK))
        while (item := take()) is not None:
            url, start, end = item
            headers = {"Range": f"bytes={start}-{end - 1}"}
            answer = hosts.request("GET", url, headers=headers)
            while answer.status in (301, 302, 303, 307, 308):
                answer.read()
                url = urljoin(url, answer.headers["Location"])
                answer = hosts.request("GET", url, headers=headers)
            got = 0
            while size := answer.readinto(block):
                got += size
            if answer.status != 206 and not (answer.status == 200 and start == 0 and got == end):
                raise SystemExit(f"error: {url} answered {answer.status}")
            if got != end - start:
                raise SystemExit(f"error: {got} bytes of {end - start} came")
            with lock:
                total += got

    spent = Spent()
    _over(int(lanes), lane, ranges)
    return {**spent.now(), "bytes": total}


def _bucket(endpoint, bucket, *, crc=False, threads=10):
    import oss2

    auth = oss2.AuthV4(os.environ["OSS_ACCESS_KEY_ID"], os.environ["OSS_ACCESS_KEY_SECRET"])
    session = oss2.Session(pool_size=threads)
    return oss2.Bucket(auth, endpoint, bucket, region=REGION, session=session, enable_crc=crc)


def write(endpoint, bucket, prefix, lanes, count, size):
    """Parts of memory over http.client, each lane one connection; oss2 begins, signs and completes. No checksum is taken."""
    import oss2

    place, size = _bucket(endpoint, bucket), int(size)
    payload = memoryview(bytearray(os.urandom(BLOCK)) * (RANGE // BLOCK))
    keys = [f"{prefix}{number:03}" for number in range(int(count))]
    begun = {key: place.init_multipart_upload(key).upload_id for key in keys}
    parts = {key: [] for key in keys}
    pieces = [(key, at) for key in keys for at in range(0, size, RANGE)]
    lock = threading.Lock()

    def lane(take):
        hosts = Hosts()
        while (item := take()) is not None:
            key, at = item
            number, body = 1 + at // RANGE, payload[: min(RANGE, size - at)]
            query = {"partNumber": str(number), "uploadId": begun[key]}
            answer = hosts.request(
                "PUT", place.sign_url("PUT", key, 3600, params=query, slash_safe=True), body=body
            )
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"error: part {number} was answered {answer.status}")
            with lock:
                parts[key].append(oss2.models.PartInfo(number, answer.headers["ETag"].strip('"')))

    spent = Spent()
    _over(int(lanes), lane, pieces)
    for key in keys:
        place.complete_multipart_upload(key, begun[key], sorted(parts[key], key=lambda one: one.part_number))
    return {**spent.now(), "bytes": len(keys) * size}


def sha(threads, count, size):
    """sha256 of `count` times `size` bytes, each stretch in one thread, block by block."""
    block = memoryview(bytearray(os.urandom(BLOCK)))
    size = int(size)

    def lane(take):
        while take() is not None:
            digest = hashlib.sha256()
            for at in range(0, size, BLOCK):
                digest.update(block[: min(BLOCK, size - at)])
            digest.digest()

    spent = Spent()
    _over(int(threads), lane, range(int(count)))
    return {**spent.now(), "bytes": int(count) * size}


def upload(endpoint, bucket, prefix, threads, *paths):
    """As its manual shows it: CRC on, so many threads within a file."""
    import oss2

    place = _bucket(endpoint, bucket, crc=True, threads=int(threads))
    spent = Spent()
    for path in paths:
        oss2.resumable_upload(
            place,
            prefix + os.path.basename(path),
            path,
            multipart_threshold=OSS2_PART,
            part_size=OSS2_PART,
            num_threads=int(threads),
            store=oss2.ResumableStore(root=f"{os.path.dirname(path)}.oss2"),
        )
    return {**spent.now(), "bytes": sum(map(os.path.getsize, paths))}


def _files(folder):
    """Paths below `folder`, relative to it."""
    found = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(path, folder) for path in found)


def compare(endpoint, bucket, prefix, folder):
    """The names that differ."""
    place, differing = _bucket(endpoint, bucket), []
    for name in _files(folder):
        with open(os.path.join(folder, name), "rb", buffering=0) as file:
            try:
                answer = place.get_object(prefix + name)
            except Exception as error:
                if getattr(error, "status", None) != 404:
                    raise
                differing.append(name)
                continue
            same = True
            while same and (theirs := answer.read(4 * BLOCK)):
                same = theirs == file.read(len(theirs))
            if not same or file.read(1):
                differing.append(name)
    return {"differing": differing}


def remove(endpoint, bucket, prefix):
    """Objects and unfinished uploads below `prefix`."""
    import oss2

    place = _bucket(endpoint, bucket)
    for one in oss2.ObjectIteratorV2(place, prefix=prefix):
        place.delete_object(one.key)
    for one in oss2.MultipartUploadIterator(place, prefix=prefix):
        place.abort_multipart_upload(one.key, one.upload_id)
    return {}


def sums(folder):
    """{name: (size, CRC-64)}."""
    from stager.core.checksum import crc64

    sums, known = {}, {}
    block = memoryview(bytearray(BLOCK))
    for name in _files(folder):
        path = os.path.join(folder, name)
        found = os.stat(path)
        if found.st_ino not in known:  # hard links are one file under several names
            value = 0
            with open(path, "rb", buffering=0) as file:
                while size := file.readinto(block):
                    value = crc64(block[:size], value)
            known[found.st_ino] = value
        sums[name] = found.st_size, known[found.st_ino]
    return sums


def crcs(endpoint, bucket, prefix, folder):
    """The names that differ by size or CRC-64."""
    place, differing = _bucket(endpoint, bucket), []
    for name, wanted in sums(folder).items():
        try:
            head = place.head_object(prefix + name)
        except Exception as error:
            if getattr(error, "status", None) != 404:
                raise
            differing.append(name)
            continue
        if (head.content_length, head.server_crc) != wanted:
            differing.append(name)
    return {"differing": differing}


PROGRAMS = {
    "read": read,
    "write": write,
    "sha": sha,
    "upload": upload,
    "compare": compare,
    "crcs": crcs,
    "sums": sums,
    "remove": remove,
}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
