"""What a report is made of, and the two ways it is written: HTML and Markdown. Nothing here knows what a benchmark is.

Prose is a string or a tuple of strings and `Mono`; the latter is shown as code. Whatever comes from a path or a kernel is safe in both: both are
escaped for where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stager.core.bench.svg import escaped
from stager.core.units import shown

WIDE, NARROW = 760.0, 340.0  # widths that charts are drawn for; CSS shows one of the two
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~&$]")


@dataclass(frozen=True, slots=True)
class Mono:
    """Words that are shown as code: names, paths, commands."""

    text: str


Prose = str | Mono | tuple[str | Mono, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A field of a table. A number has its exact `value`, and `how` it came from the JSON lines named by `runs`."""

    text: str | Mono
    value: float | None = None
    how: str = ""
    runs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is said of it when it is pointed at; empty for what is no number."""
        if not self.how:
            return ""
        noun = "run" if len(self.runs) == 1 else "runs"
        return f"{self.how}; {noun} {' '.join(self.runs)}" if self.runs else self.how


@dataclass(frozen=True, slots=True)
class Runs:
    """A field that names the runs behind its row, each a link to its JSON line."""

    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` above `rows`; the fields of the columns from `numbers` on are numbers and stand on the right, but for `Runs`."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry | Runs, ...], ...]
    numbers: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, drawn by `draw` for a width and with a name for what it defines, and what it shows."""

    name: str
    caption: Prose
    draw: Callable[[float, str], str]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of `level` 2 or 3."""

    level: int
    text: Prose


@dataclass(frozen=True, slots=True)
class Code:
    """Commands, a line each."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[Prose, ...]


Block = Heading | Code | Bullets | Table | Figure | Prose


def _parts(prose: Prose) -> tuple[str | Mono, ...]:
    return prose if isinstance(prose, tuple) else (prose,)


def html_of(prose: Prose) -> str:
    """`prose` as HTML."""
    return "".join(
        f"<code>{escaped(part.text)}</code>" if isinstance(part, Mono) else escaped(part)
        for part in _parts(prose)
    )


def markdown_of(prose: Prose, *, in_table: bool = False) -> str:
    """`prose` as Markdown on one line."""
    return "".join(
        _code_span(part.text, in_table=in_table) if isinstance(part, Mono) else _plain(part)
        for part in _parts(prose)
    )


def _plain(text: str) -> str:
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", shown(text))


def _code_span(text: str, *, in_table: bool) -> str:
    """A code span whose fence is longer than any row of backticks in it."""
    text = shown(text)
    if in_table:
        text = text.replace("|", "\\|")  # the only escape that a code span in a table knows
    fence = "`" * (_longest_ticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _longest_ticks(text: str) -> int:
    return max((len(row) for row in re.findall("`+", text)), default=0)


def blocks_as_html(blocks: Sequence[Block]) -> str:
    """The body of an HTML page."""
    return "\n".join(_block_as_html(block) for block in blocks)


def _block_as_html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html_of(block.text)}</h{block.level}>"
        case Code():
            return f"<pre>{escaped_lines(block.lines)}</pre>"
        case Bullets():
            return f"<ul>{''.join(f'<li>{html_of(item)}</li>' for item in block.items)}</ul>"
        case Table():
            return _table_as_html(block)
        case Figure():
            drawn = block.draw(WIDE, f"{block.name}-w") + block.draw(NARROW, f"{block.name}-n")
            return (
                f'<figure id="{block.name}">{drawn}<figcaption>{html_of(block.caption)}</figcaption></figure>'
            )
        case _:
            return f"<p>{html_of(block)}</p>"


def escaped_lines(lines: Sequence[str]) -> str:
    """`lines` for a ``pre`` element."""
    return "\n".join(escaped(line) for line in lines)


def _table_as_html(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{_side(table, at, table.rows[0][at] if table.rows else None)}>{escaped(name)}</th>'
        for at, name in enumerate(table.columns)
    )
    rows = "".join(
        f"<tr>{''.join(_field_as_html(table, at, field) for at, field in enumerate(row))}</tr>"
        for row in table.rows
    )
    inside = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="table" id="{table.name}" tabindex="0">{inside}</div>'


def _side(table: Table, at: int, field: Entry | Runs | None) -> str:
    return ' class="n"' if at >= table.numbers and not isinstance(field, Runs) else ""


def _field_as_html(table: Table, at: int, field: Entry | Runs) -> str:
    if isinstance(field, Runs):
        links = " ".join(f'<a href="#run-{escaped(run)}">{escaped(run)}</a>' for run in field.runs)
        return f'<td class="runs">{links}</td>'
    value = "" if field.value is None else f' data-value="{field.value!r}"'
    title = f' title="{escaped(field.title)}"' if field.title else ""
    return f"<td{_side(table, at, field)}{value}{title}>{html_of(field.text)}</td>"


def blocks_as_markdown(blocks: Sequence[Block]) -> str:
    """The same in Markdown, as GitHub understands it; a figure is its caption."""
    return "\n\n".join(_block_as_markdown(block) for block in blocks) + "\n"


def _block_as_markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {markdown_of(block.text)}"
        case Code():
            lines = [shown(line) for line in block.lines]
            fence = "`" * max(3, _longest_ticks("\n".join(lines)) + 1)
            return "\n".join([fence, *lines, fence])
        case Bullets():
            return "\n".join(f"* {markdown_of(item)}" for item in block.items)
        case Table():
            return _table_as_markdown(block)
        case Figure():
            return markdown_of(block.caption)
        case _:
            return markdown_of(block)


def _table_as_markdown(table: Table) -> str:
    heads = [markdown_of(name, in_table=True) for name in table.columns]
    sides = [
        "--:" if _side(table, at, table.rows[0][at] if table.rows else None) else "---"
        for at in range(len(heads))
    ]
    rows = [
        [
            " ".join(_plain(run) for run in field.runs)
            if isinstance(field, Runs)
            else markdown_of(field.text, in_table=True)
            for field in row
        ]
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, sides, *rows])
