"""Secrets in the words of somebody else's command: found by their names, and hidden wherever something of that command is told.

A secret that is named like none is not known for one. What is hidden in vain costs a reader a word; what is not costs a key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HIDDEN = "***"
"""Stands where a secret was."""

_NAMES = r"(?:keys?|tokens?|secrets?|passw(?:or)?ds?|passphrase|[_-]pass|[_-]pwd|credentials?|authorization|signature)(?:[_-]?id)?"
_NAME = re.compile(rf"{_NAMES}$", re.IGNORECASE)
_SEVERAL = re.compile(r"(api[_-]?key|s)$", re.IGNORECASE)  # options that servers take several values of
_COUNTED = re.compile(r"tokens?$", re.IGNORECASE)  # --max-tokens 4096 is no secret
_VALUE = r"""(?:\[[^\]]{0,1024}\]|\\?"[^"\\]*\\?"|'[^']*'|[^\s"'&;]+)"""
_IN_TEXT = (
    re.compile(rf"""(?P<name>{_NAMES})\\?["']?\s*[=:]\s*(?P<value>{_VALUE})""", re.IGNORECASE),
    re.compile(rf"(?<![\w-])--?(?P<name>[\w.-]{{0,64}}?{_NAMES})\s+(?!--)(?P<value>{_VALUE})", re.IGNORECASE),
    re.compile(rf"(?P<name>\b(?:bearer|basic))\s+(?P<value>{_VALUE})", re.IGNORECASE),
    re.compile(r"(?P<name>://)(?P<value>[^\s/?#\"']{1,512})@"),
)
_AROUND = "\\\"'.,:;()[]{}<>"
_SHORTEST = 4  # of a value that is hidden wherever it stands: shorter ones are in every other word
_SHORTEST_VARIABLE = 6  # the environment is full of values that nobody has written down here
_PLAIN = re.compile(r"\d{1,5}|true|false|none|null|auto|yes|bearer|basic|token", re.IGNORECASE)
_DEPTH = 3  # of shells in the words of shells


@dataclass(frozen=True, slots=True)
class Secrets:
    """Values that are to be told nowhere, the longest first."""

    values: tuple[str, ...]

    @classmethod
    def of(
        cls, words: Sequence[str], texts: Iterable[str] = (), environment: Mapping[str, str] | None = None
    ) -> Secrets:
        """Those among the `words` of a command, in other `texts`, and of the variables of its `environment`."""
        found = set(_of_words(words, 0))
        for text in texts:
            found |= _of_text(text)
        for name, value in (environment or {}).items():
            named = _variants(value) if _is_secret(name, value) else set()
            found |= {one for one in named | _userinfo(value) if len(one) >= _SHORTEST_VARIABLE}
        found |= {form for one in found for form in (_quoted(one, "/"), _quoted(one, ""), _unquoted(one))}
        return cls(tuple(sorted((one for one in found if _worth(one)), key=lambda one: (-len(one), one))))

    def hide(self, text: str) -> str:
        """`text` without them, and without what it says itself is a secret."""
        for value in self.values:
            text = text.replace(value, HIDDEN)
        for pattern in _IN_TEXT:
            text = pattern.sub(_masked, text)
        return text

    def hide_words(self, words: Sequence[str]) -> list[str]:
        """The same of the words of a command, where one can be the value of the one before."""
        return [
            HIDDEN if whole else self.hide(_assigned(word))
            for word, whole in zip(words, _values_among(words), strict=True)
        ]


def _is_secret(name: str, value: str) -> bool:
    return bool(_NAME.search(name)) and not (_COUNTED.search(name) and value.isdigit())


def _masked(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    counted = _NAME.search(name) and not _is_secret(name, value)
    if counted or value.strip(_AROUND) == HIDDEN:
        return match[0]
    start, end = (at - match.start() for at in match.span("value"))
    return f"{match[0][:start]}{HIDDEN}{match[0][end:]}"


def _assigned(word: str) -> str:
    """A word like NAME=VALUE or --name=VALUE: all of the value goes, whatever is in it."""
    name, equals, value = word.partition("=")
    alone = equals and not any(map(str.isspace, name))
    return f"{name}={HIDDEN}" if alone and value and _is_secret(name, value) else word


def _values_among(words: Sequence[str]) -> list[bool]:
    """Which of `words` are values of options that are named like secrets."""
    found: list[bool] = []
    name, more = "", False
    for word in words:
        # A value may begin with a dash, but hardly with two; those after the first with none, and no place for a PATH is one.
        value = bool(name) and not word.startswith("-" if more else "--") and "{}" not in word
        if value and (more or _is_secret(name, word)):
            found.append(True)
            name, more = (name, True) if _SEVERAL.search(name) else ("", False)
            continue
        found.append(False)
        option = word.startswith("-") and not any(one in word for one in "= \t\n:")
        name, more = (word, False) if option and _NAME.search(word) else ("", False)
    return found


def _of_words(words: Sequence[str], depth: int) -> set[str]:
    found: set[str] = set()
    for word, whole in zip(words, _values_among(words), strict=True):
        found |= _variants(word) if whole else _of_text(word)
        if _assigned(word) != word:
            found |= _variants(word.partition("=")[2])
        if depth < _DEPTH and any(map(str.isspace, word)):
            found |= _of_words(_split(word), depth + 1)
    return found


def _split(word: str) -> list[str]:
    """The words of a line for a shell."""
    lexer = shlex.shlex(word, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # a quote that is not closed
        return word.split()


def _of_text(text: str) -> set[str]:
    found: set[str] = set()
    for pattern in _IN_TEXT:
        for match in pattern.finditer(text):
            if match["name"] == "://":
                continue
            if _masked(match) != match[0]:
                found |= _variants(match["value"])
    return found | _userinfo(text)


def _userinfo(text: str) -> set[str]:
    """Of ``://USER:PASSWORD@`` the password; of ``://TOKEN@`` the token."""
    return {match["value"].partition(":")[2] or match["value"] for match in _IN_TEXT[-1].finditer(text)}


def _variants(value: str) -> set[str]:
    """`value` without the quotes and brackets around it, and each of several that commas part."""
    bare = value.strip(_AROUND)
    return {bare, *(part.strip(_AROUND) for part in bare.split(","))}


def _quoted(value: str, safe: str) -> str:
    """As it is in a URL."""
    plain = re.compile(f"[\\w.~{safe}-]", re.ASCII)
    return "".join(
        c if plain.fullmatch(c) else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in value
    )


def _unquoted(value: str) -> str:
    return re.sub(r"%([0-7][0-9A-Fa-f])", lambda code: chr(int(code[1], 16)), value)


def _worth(value: str) -> bool:
    return len(value) >= _SHORTEST and not _PLAIN.fullmatch(value) and value != HIDDEN and "{}" not in value
