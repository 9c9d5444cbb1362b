"""Stands for an engine in a container: answers /health, and /resident with what it finds of /models in memory, by mincore(2).

With the word ``census`` it prints that and ends."""

import ctypes
import http.server
import json
import mmap
import os
import sys

MODELS = os.environ.get("MODELS", "/models")
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def pages(path):
    """(resident, all) pages of a file."""
    size = os.path.getsize(path)
    if not size:
        return 0, 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        found = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if libc.mincore(address, size, found):
            raise OSError(ctypes.get_errno(), path)
        libc.munmap(address, size)
    finally:
        os.close(descriptor)
    return sum(byte & 1 for byte in found.raw), len(found.raw)


def census():
    """(resident, all) pages of all files below MODELS."""
    every = [pages(os.path.join(at, name)) for at, _, names in os.walk(MODELS) for name in names]
    return [sum(one) for one in zip(*every, strict=True)]


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(census() if self.path == "/resident" else "ok").encode()
        self.send_response(200 if self.path in ("/resident", "/health") else 404)
        self.end_headers()
        self.wfile.write(body)


if sys.argv[1:] == ["census"]:
    print(json.dumps(census()))
elif __name__ == "__main__":
    http.server.ThreadingHTTPServer(("", 8000), Answers).serve_forever()
