"""One table as Markdown, LaTeX or HTML, a chart as PNG. Cells are finished text; nothing is computed here."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write_atomic

# What LaTeX would read as a command, or does not know.
TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "^": r"\^{}", "~": r"\~{}"} | {sign: f"\\{sign}" for sign in "&%_#$"}


@dataclass(frozen=True)
class Table:
    """Header and body of plain text cells, with a line above that says what the table is."""

    caption: str
    header: list[str]
    body: list[list[str]]

    def turned(self) -> Table:
        """Rows as columns: for a table with many columns and few rows."""
        header, *body = (list(cells) for cells in zip(self.header, *self.body, strict=True))
        return Table(self.caption, header, body)


def markdown(table: Table) -> list[str]:
    """Caption, blank line, table, blank line."""
    rows = [table.header, ["---"] * len(table.header), *table.body]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows]
    return [table.caption, "", *lines, ""]


def latex(table: Table, banner: str = "") -> list[str]:
    """A tabular; the caption is a comment.

    Args:
        banner: what nobody may miss, as a first row over all columns.
    """
    rows = [" & ".join(map(tex, cells)) + r" \\" for cells in [table.header, *table.body]]
    rows.insert(1, r"\hline")
    if banner:
        words = rf"\multicolumn{{{len(table.header)}}}{{p{{\linewidth}}}}{{\textbf{{{tex(banner)}}}}}"
        rows = [rf"{words} \\", r"\hline", *rows]
    return [
        f"% {table.caption}",
        r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}",
        *rows,
        r"\end{tabular}",
    ]


def as_html(table: Table) -> list[str]:
    """A table element with the caption inside."""
    lines = [f"<table><caption>{html.escape(table.caption)}</caption>"]
    for tag, rows in (("th", [table.header]), ("td", table.body)):
        for cells in rows:
            lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>")
    return [*lines, "</table>"]


# By the name that the command line gives a format.
FORMATS = {"md": markdown, "latex": latex, "html": as_html}


def tex(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(TEX.get(sign, sign) for sign in text)


def page(title: str, blocks: Sequence[str]) -> str:
    """An HTML page of finished blocks."""
    style = "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:2px 6px;text-align:left}"
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
    return "\n".join([head, *blocks]) + "\n"


def save_chart(figure: Any, path: Path) -> Path:
    """Write a matplotlib figure as a PNG without the program's version in it, and close it."""
    from matplotlib import pyplot

    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    pyplot.close(figure)
    write_atomic(path, buffer.getvalue())
    return path
