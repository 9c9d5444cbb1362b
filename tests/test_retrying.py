"""What is said of a call that is made again names its subject once."""

from __future__ import annotations

import pytest

from stager.core.errors import RemoteError
from stager.jobs.retrying import again


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
