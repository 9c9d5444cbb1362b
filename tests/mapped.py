"""The `mapped` fixture: how much memory is lent out, seen where it is taken from the system."""

from __future__ import annotations

import mmap
import threading
import weakref

import pytest


class _Mapping(mmap.mmap):
    """Ends when it is closed, else when nobody knows it any more; `ended` is called once."""

    ended: weakref.finalize[..., object]

    def close(self) -> None:
        super().close()
        self.ended()


class Mapped:
    """How much anonymous memory is mapped now, and was at most, by the kernel calls themselves."""

    def __init__(self) -> None:
        self.now = self.most = self.made = 0
        self._lock = threading.Lock()

    def mmap(self, fd: int, length: int, **options: int) -> mmap.mmap:
        made = _Mapping(fd, length, **options)
        with self._lock:
            self.made += 1
            self.now += length
            self.most = max(self.most, self.now)
        made.ended = weakref.finalize(made, self._gone, length)
        return made

    def _gone(self, length: int) -> None:
        with self._lock:
            self.now -= length


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Mapped:
    counted = Mapped()
    monkeypatch.setattr("stager.engine.buffers.mmap.mmap", counted.mmap)
    return counted
