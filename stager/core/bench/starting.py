"""Starts of a real command: how it is told its model, and which lines it has spoken."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from stager.core.errors import UsageError

PLACE = "{}"
"""Stands for the PATH in the words of a command. Doubled, `{{}}`, it stands for itself."""

_DOUBLED = "{{}}"
_LONGEST = 1 << 16  # bytes of a line; what is longer is looked through in parts
_KEPT = 1 << 16  # bytes of the end of all that was said


def placed(words: Sequence[str], path: str) -> list[str]:
    """`words` with `path` wherever they say `PLACE`."""
    return [path.join(pieces(word)) for word in words]


def pieces(word: str) -> list[str]:
    """What stands before, between and behind each `PLACE` of `word`; a single one when there is none."""
    found = [""]
    for at, part in enumerate(word.split(_DOUBLED)):
        first, *others = part.split(PLACE)
        found[-1] += (PLACE if at else "") + first
        found += others
    return found


def check_words(words: Sequence[str]) -> None:
    """Raises `UsageError` for a word of JSON with an empty object: `PLACE` in it would become the path."""
    for word in words:
        try:
            empty = word.strip() != PLACE and _has_empty(json.loads(word))
        except (ValueError, RecursionError):
            continue
        if empty:
            raise UsageError(
                f"`{PLACE}` in CMD stands for PATH, also in JSON",
                hint=f"write `{_DOUBLED}` for an empty object",
            )


def _has_empty(value: object) -> bool:
    if isinstance(value, dict):
        return not value or any(map(_has_empty, value.values()))
    return isinstance(value, list) and any(map(_has_empty, value))


def parse_pattern(text: str) -> re.Pattern[str]:
    """The regular expression in `text`. Raises `UsageError` for none, and for one that any line would match."""
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise UsageError(f"`{text}` is not a regular expression: {exc}") from exc
    if pattern.search(""):
        raise UsageError(
            f"`{text}` matches an empty line too", hint="name words that CMD prints when it is ready"
        )
    return pattern


class Lines:
    """What a command says: fed as it comes, in any pieces. Keeps the end, and knows whether any line matched `pattern`."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._open: dict[int, bytearray] = {}
        self._last = bytearray()
        self.matched = False

    def feed(self, stream: int, data: bytes) -> None:
        """`data` came from `stream`; empty at its end."""
        self._last += data[-_KEPT:]
        del self._last[:-_KEPT]
        if self._pattern is None or self.matched:
            return
        rest = self._open.setdefault(stream, bytearray())
        rest += data
        whole, _, last = rest.replace(b"\r", b"\n").rpartition(b"\n")
        if not data or len(last) > _LONGEST:
            whole, last = rest.replace(b"\r", b"\n"), bytearray()
        self._open[stream] = last
        self.matched = any(map(self._pattern.search, whole.decode("utf-8", "replace").split("\n")))

    @property
    def end(self) -> str:
        """The last that was said, of all streams together."""
        return self._last.decode("utf-8", "replace")
