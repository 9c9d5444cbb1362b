"""The table (result, mode) -> exit code and marker state, and the README's copies of the tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stager.core import errors
from stager.core.outcome import MarkerState, Mode, Result, verdict, worst

README = Path(__file__).resolve().parent.parent / "README.md"

# Written out once more, so that a changed cell is a decision and not an accident: default, --fail-open, --strict.
EXPECTED = {
    "resident": ("0 ready", "0 ready", "0 ready"),
    "unknown": ("0 unverified", "0 unverified", "3 failed"),
    "lost": ("0 partial", "0 partial", "3 failed"),
    "partial": ("0 partial", "0 partial", "4 failed"),
    "below_minimum": ("3 failed", "0 released", "3 failed"),
    "dropped": ("0 released", "0 released", "11 failed"),
    "unreadable": ("6 failed", "0 released", "6 failed"),
    "io_error": ("9 failed", "0 released", "9 failed"),
    "deadline": ("10 failed", "0 released", "10 failed"),
    "empty": ("7 failed", "0 released", "7 failed"),
    "corrupt": ("8 failed", "8 failed", "8 failed"),
}
MODES = (Mode.DEFAULT, Mode.FAIL_OPEN, Mode.STRICT)


def cell(result: Result, mode: Mode) -> str:
    found = verdict(result, mode)
    return f"{found.exit_code} {found.state.value}"


@pytest.mark.parametrize("result", list(Result), ids=lambda result: result.value)
def test_every_cell(result: Result) -> None:
    assert tuple(cell(result, mode) for mode in MODES) == EXPECTED[result.value]


def test_the_table_has_no_rows_of_its_own() -> None:
    assert set(EXPECTED) == {result.value for result in Result}
    assert set(MODES) == set(Mode)


@pytest.mark.parametrize("result", list(Result), ids=lambda result: result.value)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_what_no_cell_may_say(result: Result, mode: Mode) -> None:
    found = verdict(result, mode)
    assert (found.exit_code != 0) == (found.state is MarkerState.FAILED), (
        "a gate stays shut exactly on failure"
    )
    assert (found.state is MarkerState.READY) == (result is Result.RESIDENT), "ready means verified resident"
    if result is Result.CORRUPT:
        assert found.exit_code == 8, "a corrupt model is never let through"
    elif mode is Mode.FAIL_OPEN:
        assert found.exit_code == 0, "an init container that fails open never fails"
    if mode is Mode.STRICT and result is not Result.RESIDENT:
        assert found.exit_code != 0, "strict accepts nothing less than resident"


@given(st.lists(st.sampled_from(list(Result))))
def test_of_several_results_the_worst_counts(results: list[Result]) -> None:
    found = worst(results)
    assert all(found.severity >= result.severity for result in results)
    assert found in results or (not results and found is Result.RESIDENT)
    assert worst(results[::-1]) is found


def error_classes() -> list[type[errors.StagerError]]:
    """Every error class with an exit code of its own; `Stopped` has as many as there are signals."""
    return [errors.StagerError, *(c for c in errors.StagerError.__subclasses__() if c is not errors.Stopped)]


def test_exit_codes_are_distinct_and_nameable() -> None:
    codes = [c.exit_code for c in error_classes()]
    assert sorted(codes) == list(range(1, 12))
    slugs = [c.slug for c in errors.StagerError.__subclasses__()]
    assert len(set(slugs)) == len(slugs)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(\w+) +(\d+|128\+N) +(\w+) {2,}", errors.__doc__ or "")
    real = [
        (c.__name__, str(c.exit_code), c.slug)
        for parent in error_classes()
        for c in ([parent] if parent is errors.StagerError else [parent, *parent.__subclasses__()])
    ]
    assert drawn == [*real, ("Stopped", "128+N", "stopped")]
    for special in (c for parent in error_classes()[1:] for c in parent.__subclasses__()):
        assert special.exit_code == special.__mro__[1].exit_code, (
            "a special case exits as what it is a case of"
        )


def test_a_verdict_uses_codes_that_errors_have() -> None:
    known = {0, *(c.exit_code for c in error_classes())}
    assert {verdict(r, m).exit_code for r in Result for m in Mode} <= known


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_a_signal_is_128_more(signum: int, code: int) -> None:
    assert errors.Stopped(signum).exit_code == code


def readme_table(first: str) -> list[list[str]]:
    """The body rows, cell by cell, of the README table whose header starts with the column `first`."""
    lines = README.read_text("utf-8").splitlines() if README.exists() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    assert len(starts) == 1, f"README.md must have one table that starts with `| {first} |`"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([part.strip() for part in line.strip().strip("|").split("|")])
    return rows


def test_the_readme_shows_this_outcome_table() -> None:
    """Row: the result's name in backticks (words may follow), then one cell per mode that starts with `CODE STATE`."""
    shown = {}
    for name, *cells in readme_table("result"):
        match = re.match(r"`(\w+)`", name)
        assert match, f"`{name}` does not start with a result in backticks"
        shown[match[1]] = tuple(" ".join(re.findall(r"[\w-]+", text)[:2]) for text in cells)
    assert shown == EXPECTED


def test_the_readme_shows_these_exit_codes() -> None:
    """Row: the code, the slug in backticks, the meaning. Code 0 is `done`; the last row is `128+N`."""
    shown = [(code.strip("`"), slug.strip("`")) for code, slug, *_ in readme_table("code")]
    real = [(str(c.exit_code), c.slug) for c in error_classes()]
    assert shown == [("0", "done"), *real, ("128+N", "stopped")]
