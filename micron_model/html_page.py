"""Pages of HTML that need no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from .plain_text import in_page

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; display: block; margin: 0.6rem 0; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.15rem 1rem 0.15rem 0; font-weight: normal; }
th { color: #555; } .big { font-size: 1.15rem; } .note { color: #555; font-size: 0.92rem; }
.missed { color: #a33; }
table.grid { margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
table.grid th, table.grid td { padding: 0.25rem 0.8rem; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
table.grid th, table.grid td { text-align: right; white-space: nowrap; }
table.grid th:first-child, table.grid td:first-child { text-align: left; padding-left: 0; white-space: normal; }
table.grid tr.first td { font-weight: 600; } table.grid tr.published td { color: #777; }
table.grid small { display: block; max-width: 24rem; color: #777; font-weight: normal; }
.scroll { overflow-x: auto; }
"""


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def image(data: bytes, description: str) -> str:
    """A PNG, embedded."""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{in_page(description)}" src="data:image/png;base64,{encoded}">'


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><th>{in_page(k)}</th><td>{in_page(v)}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"


def grid(rows: Sequence[Sequence[Any]], kinds: Sequence[str] = ()) -> str:
    """The first row is the header. A pair is a value and what is written small below it."""

    def cell(tag: str, value: Any) -> str:
        text, small = value if isinstance(value, tuple) else (value, "")
        below = f"<small>{in_page(small)}</small>" if small else ""
        return f"<{tag}>{in_page(text)}{below}</{tag}>"

    head = "".join(cell("th", value) for value in rows[0])
    body = "".join(
        f'<tr class="{kinds[i] if kinds else ""}">{"".join(cell("td", value) for value in row)}</tr>'
        for i, row in enumerate(rows[1:])
    )
    return f'<div class="scroll"><table class="grid"><tr>{head}</tr>{body}</table></div>'


def page(title: str, sections: Sequence[tuple[str, str]], *, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        sections: (heading, HTML); without a heading if that is empty.
        style: CSS beyond the common one.
    """
    body = "".join(f"<h2>{in_page(name)}</h2>{content}" if name else content for name, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{in_page(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body><h1>{in_page(title)}</h1>{body}</body></html>"
    )
