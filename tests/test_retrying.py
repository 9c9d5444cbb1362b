"""What is said of a call that is made again names its subject once."""

from __future__ import annotations

from typing import Any, cast

import pytest

from stager.core.errors import DeadlineExceeded, RemoteError
from stager.jobs.retrying import Troubles, again


@pytest.mark.parametrize(
    ("doing", "error", "said"),
    [
        ("list of ms://o/m", "ms://o/m, at 127.0.0.1: no answer in time", "list: ms://o/m, at 127.0.0.1: no answer in time"),
        ("read of `a/b c`", "`a/b c` of ms://o/m: cut", "read: `a/b c` of ms://o/m: cut"),
        ("upload of `x of y`", "`oss://b/m/x of y`: cut", "upload: `oss://b/m/x of y`: cut"),
        ("abort of the upload of `x`", "`oss://b/x`: cut", "abort of the upload: `oss://b/x`: cut"),
        ("list of `oss://b/m`", "the endpoint's name is not known", "list of `oss://b/m`: the endpoint's name is not known"),
        ("list of uploads", "the endpoint's name is not known", "list of uploads: the endpoint's name is not known"),
        ("delete", "`oss://b/m`: cut", "delete: `oss://b/m`: cut"),
    ],
)  # fmt: skip
def test_the_subject_is_said_once(doing: str, error: str, said: str) -> None:
    note = again(doing, RemoteError(error))
    assert (note.level, note.code, note.message) == ("info", "retry", f"{said}; trying again")


class _Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def emit(self, event: Any) -> None:
        self.notes.append(event)


def late(troubles: Troubles) -> DeadlineExceeded:
    with pytest.raises(DeadlineExceeded) as caught, troubles.named():
        raise DeadlineExceeded("--timeout ran out", hint="give it more")
    return caught.value


def test_who_runs_out_of_time_hears_what_was_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told = _Told()
    troubles = Troubles(cast(Any, told))
    assert late(troubles).message == "--timeout ran out"
    for number in range(9):
        troubles.tell("read of `a`", RemoteError(f"`a`: HTTP 50{number}"))
    assert (troubles.count, len(told.notes)) == (9, 5)
    now[0] += 7
    found = late(troubles)
    assert found.message == "--timeout ran out; the last trouble was 7.0s ago: `a`: HTTP 508"
    assert found.hint == "give it more"
    now[0] += 60
    assert late(troubles).message == "--timeout ran out", "it has gone well since"
