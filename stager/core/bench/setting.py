"""A fixed setting of ``stager warm``, as a sweep tries them: so many lanes, spans so long."""

from __future__ import annotations

from dataclasses import dataclass

from stager.core.plan import WHOLE, span_text


@dataclass(frozen=True, slots=True)
class Setting:
    """`lanes` at once, always; files are read in pieces of `span` bytes, a handle each, or whole (`WHOLE`, 0)."""

    lanes: int
    span: int

    @property
    def words(self) -> tuple[str, ...]:
        """What ``stager warm`` is told."""
        return ("-P", str(self.lanes), "--span", span_text(self.span), "--no-adapt")

    @property
    def gentleness(self) -> tuple[int, int]:
        """Less is gentler to what is read from: fewer lanes first, then fewer handles."""
        return (self.lanes, -self.span if self.span != WHOLE else -(1 << 62))

    def __str__(self) -> str:
        """As the command line has it: ``-P 16 --span 64MiB``."""
        return f"-P {self.lanes} --span {span_text(self.span)}"
