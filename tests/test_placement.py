"""Which object names become files, and which refuse the whole model."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.core.errors import IntegrityError
from stager.core.model import FileEntry
from stager.core.placement import fault, place

GOOD = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "a/b/c.bin",
    "a/b/d.bin",
    "a b\n\t'\"",
    "back\\slash",
    "...",
    ".hidden/..x",
    "\udcff\udcfe.gguf",
    "模型.gguf",
    "x" * 250,
    f"{'y' * 255}/z",
    "a.part",
    "ab",
    "a-b",
    "a./b",
]


def test_names_that_a_folder_takes() -> None:
    names = [(name, size) for size, name in enumerate(GOOD)]
    assert place(names) == tuple(FileEntry(name, size) for name, size in names)
    assert place([]) == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty part"),
        ("/etc/passwd", "absolute"),
        ("//a", "absolute"),
        ("..", "leave the folder"),
        ("../a", "leave the folder"),
        ("a/../../b", "leave the folder"),
        ("a/..", "leave the folder"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        (".", "a dot"),
        ("./a", "a dot"),
        ("a/./b", "a dot"),
        ("a\0b", "NUL"),
        ("x" * 251, "too long"),
        (f"{'y' * 256}/z", "too long"),
        ("é" * 126, "too long"),
        ("/".join(["z" * 200] * 20), "too long"),
        ("\ud800", "no file name can hold"),
    ],
)
def test_names_that_it_does_not(name: str, why: str) -> None:
    assert why in (fault(name) or "")
    with pytest.raises(IntegrityError, match=why) as refused:
        place([("good", 1), (name, 1), ("../worse", 1)])
    assert refused.value.exit_code == 8
    assert refused.value.hint is not None
    assert "--exclude" in refused.value.hint
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 250


@pytest.mark.parametrize(
    ("first", "second", "named", "why"),
    [
        ("a", "a", "a", "listed twice"),
        ("Model.bin", "model.BIN", "model.BIN", "the same file as `Model.bin`"),
        ("straße", "STRASSE", "STRASSE", "the same file"),
        ("caf\u00e9", "cafe\u0301", "cafe\u0301", "the same file"),
        ("\u1fb3\u0301", "\u1fb4", "\u1fb4", "the same file"),
        ("\u1fb3\u0342", "\u1fbc\u0342", "\u1fbc\u0342", "the same file"),
        ("X/a", "x/b", "x/b", "in the same folder as `X`"),
        ("k/X/a", "k/x/b/c", "k/x/b/c", "in the same folder as `k/X`"),
        ("a", "a/b", "a", "need the folder `a`"),
        ("a/b", "a", "a", "need the folder `a`"),
        ("a/b/c", "A", "A", "need the folder `a`"),
        ("a", "a.part", "a.part", "part file of `a`"),
        ("a.PART", "A", "a.PART", "part file of `A`"),
        ("a", "a.part/b", "a.part", "part file of `a`"),
    ],
)
def test_names_that_get_into_each_others_way(first: str, second: str, named: str, why: str) -> None:
    assert place([(first, 1)])
    assert place([(second, 1)])
    with pytest.raises(IntegrityError, match=why) as refused:
        place([("zzz", 1), (first, 1), (second, 1)])
    assert refused.value.message.startswith(f"object `{named}`")


def test_a_size_below_zero() -> None:
    with pytest.raises(IntegrityError, match="negative"):
        place([("a", -1)])


parts = st.one_of(
    st.sampled_from(["a", "A", "b", "..", ".", "", "a.part", "é", "\udcff", "a\0"]),
    st.text(max_size=3),
)
names = st.lists(parts, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(names, max_size=5))
def test_what_it_lets_pass_can_be_made_in_one_folder_and_stays_in_it(some: list[str]) -> None:
    """The real filesystem is the judge: all files and all their part files exist side by side, below the folder."""
    try:
        entries = place([(name, 0) for name in some])
    except IntegrityError:
        return
    with tempfile.TemporaryDirectory() as outer:
        folder = f"{outer}/in"
        for entry in entries:
            for path in (f"{folder}/{entry.path}", f"{folder}/{entry.path}.part"):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        assert os.listdir(outer) == (["in"] if entries else [])
        found = sum(len(files) for _, _, files in os.walk(folder))
        assert found == 2 * len(entries)


words = st.text(
    st.characters(
        categories=("L", "N"), include_characters=" -_.+@#()[]{}:;,'\"\\*?~$!%&=|<>\n\u200d\U0001f600"
    )
    | st.sampled_from("\udc80\udcff"),
    min_size=1,
    max_size=20,
)
ordinary = st.lists(words, min_size=1, max_size=4).map("/".join)


@settings(deadline=None)
@given(st.lists(ordinary, max_size=6))
def test_ordinary_names_are_let_pass(some: list[str]) -> None:
    """Whatever the characters: numbered, so that no two are alike; only parts that are nothing but dots are not ordinary."""
    names = [f"{at}/{name}" for at, name in enumerate(some) if not {".", ".."} & set(name.split("/"))]
    assert [one.path for one in place([(name, 1) for name in names])] == names


@given(names)
def test_a_name_without_fault_stays_below(name: str) -> None:
    """By the words of POSIX: it is its own normal form, and lies below whatever folder it is joined to."""
    stays = os.path.normpath(f"/x/{name}") == f"/x/{name}" and not name.startswith("/") and "\0" not in name
    if fault(name) is None:
        assert stays
    elif stays:
        assert fault(name) in ("has a character that no file name can hold", "is too long for a file")
