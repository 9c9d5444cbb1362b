"""A small FUSE server of our own, so that tests and benchmarks meet real mounts with known habits.

It speaks the kernel's protocol on ``/dev/fuse`` directly (no libfuse, nothing to install): ``python -m tests.fuselab``.
"""
