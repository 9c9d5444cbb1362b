"""Reads the pages of ``stager bench --report`` back: HTML and Markdown into tables that can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
Field = tuple[str, float | None, str, tuple[str, ...]]  # text, value, title, links


@dataclass
class Grid:
    """A table: the storage it stands under, its columns, its rows."""

    id: str
    storage: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[Field]] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        """Columns and rows as they are read."""
        return [self.columns, *([one[0] for one in row] for row in self.rows)]


class Page(HTMLParser):
    """A parsed page. Raises `AssertionError` for tags that are not closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.grids: list[Grid] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self._heading = ""
        self._text: list[str] | None = None
        self._cell: tuple[float | None, str] = (None, "")
        self._links: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    @property
    def ids(self) -> list[str]:
        """The ids of all elements."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "div" and attributes.get("class") == "table":
            self.grids.append(Grid(attributes["id"], self._heading))
        if tag == "tr":
            self.grids[-1].rows.append([])
        if tag in ("td", "th", "h3"):
            value = attributes.get("data-value")
            self._text, self._cell, self._links = (
                [],
                (None if value is None else float(value), attributes.get("title", "")),
                [],
            )
        if tag == "a" and self._text is not None:
            self._links.append(attributes["href"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()
        if tag in ("td", "th", "h3"):
            text = "".join(self._text or ())
            self._text = None
            if tag == "td":
                self.grids[-1].rows[-1].append((text, *self._cell, tuple(self._links)))
            elif tag == "th":
                self.grids[-1].columns.append(text)
            else:
                self._heading = re.sub(r" \([^()]*\)$", "", text)
        if tag == "table":
            self.grids[-1].rows = [row for row in self.grids[-1].rows if row]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, header first, as a reader would see them."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([_seen(one) for one in _fields(line)])
        before = line
    return [[rows[0], *rows[2:]] for rows in tables]


def _fields(line: str) -> list[str]:
    """As GitHub splits a row: at every bar without a backslash before it, code or not."""
    return [one.replace("\\|", "|").strip() for one in re.split(r"(?<!\\)\|", line)[1:-1]]


def _seen(text: str) -> str:
    code = re.fullmatch(r"(`+)( ?)(.+?)\2\1", text)
    if code:
        assert code[1] not in code[3].replace(code[1] + "`", ""), f"the fence is too short: {text}"
        return code[3]
    return re.sub(r"\\([\\`*_{}\[\]<>#|~&$])", r"\1", text)
