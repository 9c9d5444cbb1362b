"""``stager ready`` without click, whose import alone takes 20 ms. Understands what is well-formed, leaves the rest to click."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

from stager.cli.words import switched_on
from stager.core.errors import UsageError
from stager.core.marker import DEFAULT_PATH, answer_text
from stager.core.outcome import MarkerState
from stager.core.units import parse_percent

_PATIENCE_MS = 1000
_ATOMIC = 4000  # bytes; a pipe with room for anything takes 4096 at once
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
    _say(answer_text(answer.state, answer.why))
    return 0 if answer.ready else 3


def _say(line: str) -> None:
    """Print `line` if somebody takes it: stdout may be closed, or a pipe that nobody reads. The exit code is the answer."""
    with suppress(OSError, ValueError, AttributeError):
        fd = sys.stdout.fileno()
        room = select.poll()
        room.register(fd, select.POLLOUT)
        if room.poll(_PATIENCE_MS):
            os.write(fd, line.encode("utf-8", "backslashreplace")[:_ATOMIC] + b"\n")


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
    if switched_on("STAGER_JSON") is not False:
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
