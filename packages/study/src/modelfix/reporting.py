"""The study's tables from records: for the terminal, Markdown, LaTeX or CSV."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

import modelfix_stats as ms
import pandas as pd
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_stats.tables import Table
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

BEGIN, END = "<!-- begin report -->", "<!-- end report -->"


class Layout(StrEnum):
    """Which of the study's tables."""

    EFFECTIVENESS = "effectiveness"
    PROPERTIES = "properties"
    GROUPS = "groups"
    TIMES = "times"
    BESIDE = "beside"
    FINDINGS = "findings"


TABLES = (Layout.EFFECTIVENESS, Layout.PROPERTIES, Layout.GROUPS, Layout.TIMES)


class Format(StrEnum):
    """How tables are written."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"


_MAKE: dict[Layout, Callable[[pd.DataFrame], Table]] = {
    Layout.EFFECTIVENESS: ms.effectiveness,
    Layout.PROPERTIES: ms.properties,
    Layout.GROUPS: ms.groups,
    Layout.TIMES: ms.times,
    Layout.BESIDE: ms.beside_study,
}


def make(frame: pd.DataFrame, layouts: Sequence[Layout], beside: bool = False) -> list[Table]:
    """Return the tables of a data frame of records.

    With `beside`, the findings carry the verdict of the study's own tables.

    Raises
    ------
    ModelfixError
        If the records cannot be compared: other definitions, other denominators.
    """
    try:
        return [
            ms.findings_table(frame, beside=beside)
            if layout is Layout.FINDINGS
            else _MAKE[layout](frame)
            for layout in layouts
        ]
    except ms.StatsError as error:
        raise ModelfixError(f"these records cannot stand in one table: {error}") from error


def render(tables: Sequence[Table], format_: Format) -> str:
    """Return the tables as text; Markdown, LaTeX or CSV."""
    write = {
        Format.MARKDOWN: Table.to_markdown,
        Format.LATEX: Table.to_latex,
        Format.CSV: Table.to_csv,
    }[format_]
    return "\n".join(write(table) for table in tables)


def show(tables: Sequence[Table]) -> None:
    """Print the tables to the terminal."""
    console = Console()
    wide = console if console.is_terminal else Console(width=200)
    for table in tables:
        wide.print(_rich(table))
        wide.print()


def _rich(table: Table) -> Group:
    rich = RichTable(title=table.title, title_justify="left", box=None, header_style="bold")
    for number, head in enumerate(table.heads):
        left = number < 2 or bool(table.widths)
        rich.add_column(head, justify="left" if left else "right", overflow="fold")
    styles = {"top": "bold green", "bottom": "underline"}
    for position, row in enumerate(table.rows):
        if position and table.sections and table.sections[position] != table.sections[position - 1]:
            rich.add_section()
        texts = [
            text
            for cell in row
            for text in (
                Text(cell.text, style=styles.get(cell.mark, "")),
                *[Text("")] * (cell.span - 1),
            )
        ]
        rich.add_row(*texts)
    return Group(rich, *(Text(note, style="dim") for note in table.notes))


def write(text: str, path: Path) -> None:
    """Write a report; a file that has the two marker lines keeps what stands around them.

    Raises
    ------
    ModelfixError
        If the file exists without markers, and so is not a report.
    """
    if not path.exists():
        write_text(path, f"{BEGIN}\n{text}{END}\n" if path.suffix == ".md" else text)
        return
    old = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        write_text(path, text)
        return
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ModelfixError(
            f"{path}: exists and has no lines {BEGIN} and {END} between which the report would go; "
            "add them or choose another file."
        )
    write_text(path, f"{before}{BEGIN}\n{text}{END}{after}")
