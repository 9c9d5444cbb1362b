"""Calls beside the main work: all are waited for, never too many at once, and the first error is everybody's end."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from stager.engine.beside import beside


def test_all_calls_are_waited_for_and_few_run_at_once() -> None:
    lock, now, most, done = threading.Lock(), [0], [0], []

    def call() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
            done.append(1)

    async def main() -> None:
        async with beside(2) as submit:
            for _ in range(8):
                submit("waiting", call)

    anyio.run(main)
    assert len(done) == 8
    assert most[0] == 2


def test_what_a_call_raises_ends_the_body_and_comes_out_bare() -> None:
    def fail() -> None:
        raise ValueError("wrong")

    async def main() -> None:
        async with beside(2) as submit:
            submit("failing", fail)
            await anyio.sleep(30)

    with pytest.raises(ValueError, match="wrong"):
        anyio.run(main)


def test_what_the_body_raises_comes_out_bare() -> None:
    async def main() -> None:
        async with beside(2) as submit:
            submit("nothing", lambda: None)
            raise KeyError("body")

    with pytest.raises(KeyError):
        anyio.run(main)
