"""Client programs of ``scripts/bench-fetch``, run by the interpreter that runs stager; each prints one JSON line.

fetch_client.py crc FILE...                                        the CRC-64 of files
fetch_client.py discard ENDPOINT OSS-URL LANES crc|nocrc           stager's readers and lanes, bytes thrown away
fetch_client.py oss2 ENDPOINT BUCKET FOLDER THREADS FILES KEY...   oss2.resumable_download, its CRC off
"""

import json
import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

# The checkout's stager, where this interpreter has none of its own. Run with -P: what lies beside this file is no library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))

REGION = "cn-test"


def _cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def crc(*paths):
    """{path: CRC-64}."""
    from stager.core.checksum import crc64

    found, block = {}, memoryview(bytearray(1 << 20))
    for path in paths:
        value = 0
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(block):
                value = crc64(block[:size], value)
        found[path] = value
    return found


class Discard:
    """All objects of a place, read over lanes; every range's CRC is taken with `check`, and proven against the objects'."""

    def __init__(self, endpoint, source, lanes, *, check):
        from stager.core.location import Location
        from stager.core.ranges import Missing, spread
        from stager.store.opening import StoreOptions, open_store

        self.store = open_store(Location.parse(source), StoreOptions(endpoint=endpoint, region=REGION))
        self.objects = list(self.store.list())
        self.check = check
        wanted = [Missing(at, one.size, ((0, one.size),)) for at, one in enumerate(self.objects)]
        self.spans = spread(wanted, lanes)
        self.lanes = lanes
        self.pieces, self.stated, self.lock = {}, {}, threading.Lock()

    def run(self):
        """Seconds, CPU seconds and bytes of the reading phase alone."""
        import anyio

        from stager.engine.lanes import Lanes
        from stager.engine.pace import Controller

        lanes = Lanes(
            self.spans,
            read=self._read,
            kit=self.store.reader,
            controller=Controller(self.lanes, self.lanes, adapt=False),
            rouse=lambda reader: reader.interrupt(),
        )
        began, cpu = time.perf_counter(), _cpu()
        anyio.run(lanes.run)
        done = {"seconds": time.perf_counter() - began, "cpu": _cpu() - cpu, "bytes": lanes.done}
        if self.check:
            self._prove()
        return done

    def _read(self, lease, reader, checkpoint):
        from stager.core.checksum import crc64

        one, start, value = self.objects[lease.span.index], lease.position, 0
        length, check = lease.take(lease.end - start), self.check

        def sink(view):
            nonlocal value
            if check:
                value = crc64(view, value)
            lease.advance(len(view), keep=True)
            checkpoint(len(view))

        answer = reader.read(one.name, start, length, sink, etag=one.etag)
        with self.lock:
            self.pieces[lease.span.index, start] = (value, length)
            self.stated[lease.span.index] = answer.crc64

    def _prove(self):
        from stager.core.checksum import combine

        for index, one in enumerate(self.objects):
            value = 0
            for _, (piece, length) in sorted(item for item in self.pieces.items() if item[0][0] == index):
                value = combine(value, piece, length)
            if value != self.stated[index]:
                sys.exit(f"error: {one.name}: CRC {value} read, {self.stated[index]} stated")


def discard(endpoint, source, lanes, check):
    """Reads and throws away."""
    return Discard(endpoint, source, int(lanes), check=check == "crc").run()


def by_oss2(endpoint, bucket, folder, threads, files, *keys):
    """Downloads: `files` objects at once, each with its share of `threads`."""
    import oss2

    auth = oss2.AuthV4(os.environ["OSS_ACCESS_KEY_ID"], os.environ["OSS_ACCESS_KEY_SECRET"])
    threads, files = int(threads), int(files)
    session = oss2.Session(pool_size=threads)

    class Bucket(oss2.Bucket):
        """nginx wants the quotes around an ETag that oss2 takes off and OSS can do without."""

        def get_object(self, key, byte_range=None, headers=None, **given):
            headers = dict(headers or {})
            if "If-Match" in headers:
                headers["If-Match"] = f'"{headers["If-Match"]}"'
            return super().get_object(key, byte_range=byte_range, headers=headers, **given)

    place = Bucket(auth, endpoint, bucket, region=REGION, session=session, enable_crc=False)

    def one(key):
        path = os.path.join(folder, os.path.basename(key))
        oss2.resumable_download(
            place,
            key,
            path,
            multiget_threshold=1 << 20,
            part_size=16 << 20,
            num_threads=max(1, threads // files),
            store=oss2.ResumableDownloadStore(root=f"{folder}.oss2"),
        )

    began = time.perf_counter()
    with ThreadPoolExecutor(files) as pool:
        list(pool.map(one, keys))
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps({"crc": crc, "discard": discard, "oss2": by_oss2}[sys.argv[1]](*sys.argv[2:])))
