"""A small OSS server of our own, so that tests and the demo speak the real protocol over real sockets.

It is an independent witness: signatures, CRC-64 and multipart rules are checked by code that shares nothing with the
product or with oss2. ``python -m tests.osslab`` serves it alone; `tests.osslab.fixtures` gives it to tests.
"""
