"""What the words of a command line ask for before, or without, click having read them."""

from __future__ import annotations

import os
import re

_ON = ("1", "true", "t", "yes", "y", "on")
_OFF = ("", "0", "false", "f", "no", "n", "off")
_FLAGS = re.compile(r"-[hqv]+")


def switched_on(name: str) -> bool | None:
    """Whether the environment variable `name` switches a flag on, read as click reads it; None when it is no yes or no."""
    value = os.environ.get(name, "").strip().lower()
    return True if value in _ON else False if value in _OFF else None


class Words:
    """The words of stager's own: those before ``--``."""

    def __init__(self, argv: list[str]) -> None:
        self._own = argv[: argv.index("--")] if "--" in argv else argv

    @property
    def first(self) -> str:
        """The command, or whatever stands in its place; empty without one."""
        return self._own[0] if self._own else ""

    @property
    def json(self) -> bool:
        """Whether errors are to be JSON."""
        return "--json" in self._own or bool(switched_on("STAGER_JSON"))

    @property
    def traceback(self) -> bool:
        """Whether ``-vv`` was given, in any spelling."""
        short = sum(word.count("v") for word in self._own if _FLAGS.fullmatch(word))
        return short + self._own.count("--verbose") >= 2

    @property
    def only_tell(self) -> bool:
        """Whether help or the version was asked for: then no job runs."""
        flags = "".join(word for word in self._own if _FLAGS.fullmatch(word))
        return "h" in flags or "--help" in self._own or self.first == "--version"
