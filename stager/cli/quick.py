"""``stager ready`` without click, whose import alone takes 20 ms. Understands what is well-formed, leaves the rest to click."""

from __future__ import annotations

import os
from contextlib import suppress

from stager.core.errors import UsageError
from stager.core.marker import DEFAULT_PATH, answer_text
from stager.core.outcome import MarkerState
from stager.core.units import parse_percent

_VALUED = ("--marker", "--accept", "--min-resident")


def ready(argv: list[str]) -> int | None:
    """The exit code, the answer printed; None when `argv` needs click: help, JSON, an unknown option, a bad value."""
    parsed = _parse(argv)
    if parsed is None:
        return None
    values, paths = parsed
    least = values.get("--min-resident")
    try:
        accept = accepted(values.get("--accept", ""))
        min_resident = parse_percent(least) if least else None
    except UsageError:
        return None
    from stager.jobs.ready import Question

    question = Question(
        values.get("--marker") or DEFAULT_PATH, paths=tuple(paths), accept=accept, min_resident=min_resident
    )
    answer = question.ask()
    line = answer_text(answer.state, answer.why)
    with suppress(OSError, ValueError, AttributeError):  # stdout closed: the exit code is the answer
        print(line.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)
    return 0 if answer.ready else 3


def accepted(text: str) -> frozenset[str]:
    """The marker states in a comma-separated list. Raises `UsageError` for a name that is none."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    known = {state.value for state in MarkerState} - {MarkerState.FAILED.value}
    if names - known:
        raise UsageError(
            f"`{sorted(names - known)[0]}` is not a state to accept",
            hint=f"choose from {', '.join(sorted(known))}",
        )
    return frozenset(names)


def _parse(argv: list[str]) -> tuple[dict[str, str], list[str]] | None:
    values = {name: os.environ.get(f"STAGER_{name[2:].replace('-', '_').upper()}", "") for name in _VALUED}
    if os.environ.get("STAGER_JSON"):
        return None
    paths: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _VALUED:
            values[name] = value if equals else next(words, "")
            if not values[name]:
                return None
        elif word.startswith("-"):
            return None
        else:
            paths.append(word)
    return values, paths
