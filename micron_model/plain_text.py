"""Names that others made, as the text that they are; a terminal, a figure, a page and a table each have their signs."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # models are loaded where nothing is shown
    from rich.console import Console
    from rich.text import Text

_LONGEST = 2000
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def visible(text: object, most: int = _LONGEST, keep: str = "") -> str:
    """``text`` with what is no sign of its own escaped: control characters, which a terminal obeys, those that turn the
    direction of writing, and bytes of names that are not UTF-8; cut after ``most`` characters.

    Args:
        text: as it came.
        most: characters that are shown.
        keep: of those that would be escaped, those that are not; for example the line break of a text of our own.
    """
    shown = "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "backslashreplace").decode()
        for c in str(text)[: most + 1]
    )
    return shown if len(str(text)) <= most else f"{shown[:most]}…"


def say(console: Console, line: object) -> None:
    """A line to people, nothing of it markup. Not wrapped: a path that is broken over two lines cannot be copied."""
    from rich.text import Text

    console.print(Text(visible(line, 10**5, keep="\n")), soft_wrap=True)


def cell_of_terminal(text: object) -> Text:
    """For a table of rich."""
    from rich.text import Text

    return Text(visible(text, keep="\n"))


def in_figure(text: object, most: int = 80) -> str:
    """For matplotlib, in which a pair of dollars begins a formula."""
    return visible(text, most, keep="\n").replace("$", r"\$")


def in_page(text: object) -> str:
    """For HTML, in an element or between the quotes of an attribute."""
    return html.escape(visible(text, keep="\n"))


def in_csv(text: str) -> str:
    """For a cell of text: spreadsheet programs run what begins as a formula does, so an apostrophe is put before it.

    :func:`from_csv` takes it off. A number is not to be passed through this.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv(cell: str) -> str:
    """The inverse of :func:`in_csv`."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell[1:]) else cell


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as csv, to be read again as they are."""
    text = io.StringIO()
    # A writer quotes what holds its own line break; a carriage return alone would end a row as well.
    plain, quoted = (
        csv.writer(text, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return text.getvalue()
