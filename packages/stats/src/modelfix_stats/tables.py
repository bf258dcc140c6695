"""Tables: the study's layouts filled from a data frame, and how any table is written."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd

from modelfix_stats.comparison import Comparison, Mode, compare
from modelfix_stats.errors import StatsError
from modelfix_stats.frame import Data, Summary
from modelfix_stats.metrics import find_metric
from modelfix_stats.study import (
    ABBREVIATIONS,
    PUBLISHED_AS,
    SUBJECTS,
    beside_published,
    published,
)
from modelfix_stats.values import describe

MARKED = 3
MARKS_NOTE = "Bold: the three best of a column; underlined: the three worst."
STATUS = {"CORRUPTED": "CORR.", "FAILURE": "FAIL.", "UNADAPTABLE": "UNAD.", "ABSENT": "-"}
STATUS_NOTE = "CORR.: CORRUPTED; UNAD.: UNADAPTABLE; FAIL.: FAILURE; -: absent."
CATEGORIES = ("model", "layer", "neuron")
FAR = 3.0  # standard deviations
BESIDE_NOTE = (
    "Mean ± standard deviation of the repetitions (ddof 1), in percent; original -> fixed model. "
    "(s): another sign, or another outcome, than the study's; (d): further from the study's than "
    "three standard deviations of both together."
)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes
    ----------
    text : str
    mark : {"", "top", "bottom"}
    span : int
        How many columns it covers.
    """

    text: str
    mark: str = ""
    span: int = 1


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes
    ----------
    title : str
    groups : tuple of str
        What stands above each column; equal neighbours are one heading. Empty: no such line.
    columns : tuple of str
    rows : tuple of tuple of Cell
    notes : tuple of str
    sections : tuple of str
        Category of each row: a line is drawn where it changes. Empty: no lines.
    widths : tuple of float
        Share of the line for each column of sentences, which are broken. Empty: numbers, as wide
        as they are.
    """

    title: str
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sections: tuple[str, ...] = field(default=())
    widths: tuple[float, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """Group and column in one line."""
        if not self.groups:
            return self.columns
        pairs = zip(self.groups, self.columns, strict=True)
        return tuple(f"{group} {column}".strip() for group, column in pairs)

    def texts(self) -> list[list[str]]:
        """Return the texts of all rows; a cell over several columns leaves the rest empty."""
        return [
            [text for cell in row for text in (cell.text, *[""] * (cell.span - 1))]
            for row in self.rows
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return the texts as a data frame."""
        return pd.DataFrame(self.texts(), columns=list(self.heads))

    def to_csv(self) -> str:
        """Return heads and texts as CSV."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.heads)
        writer.writerows(self.texts())
        return out.getvalue()

    def to_markdown(self) -> str:
        """Return a Markdown table: the best in bold, the worst underlined."""
        lines = [
            _markdown_row(self.heads),
            _markdown_row(["---"] * len(self.columns)),
            *(_markdown_row(_markdown_cells(row)) for row in self.rows),
        ]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *lines, *notes]) + "\n"

    def to_latex(self) -> str:
        """Return a LaTeX table with booktabs: the best in bold, the worst underlined."""
        text_columns = sum(1 for column in self.columns if column in ("category", "approach"))
        alignment = "l" * text_columns + "r" * (len(self.columns) - text_columns)
        if self.widths:
            ragged = r">{\raggedright\arraybackslash}"
            alignment = "".join(rf"{ragged}p{{{width}\linewidth}}" for width in self.widths)
        lines = [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{_escape(self.title)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            *self._latex_groups(),
            _latex_row(_escape(column) for column in self.columns),
            r"\midrule",
            *self._latex_body(),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {_escape(note)}" for note in self.notes),
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"

    def _latex_groups(self) -> list[str]:
        if not self.groups:
            return []
        heads, rules, start = [], [], 1
        for name, members in groupby(self.groups):
            width = len(list(members))
            if name:
                heads.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape(name)}}}")
                rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            else:
                heads += [""] * width
            start += width
        return [_latex_row(heads), "".join(rules)]

    def _latex_body(self) -> list[str]:
        lines = []
        for index, row in enumerate(self.rows):
            if index and self.sections and self.sections[index] != self.sections[index - 1]:
                lines.append(r"\midrule")
            lines.append(_latex_row(_latex_cell(cell) for cell in row))
        return lines


# -- the study's layouts ---------------------------------------------------------------------------

Column = tuple[str, str]  # a metric and which of its columns: value or gain


def effectiveness(data: Data, *, ddof: int = 1) -> Table:
    """Return the layout of the study's table 3: accuracy, its gain, and repair rate by subject.

    Parameters
    ----------
    data : DataFrame or Summary
    ddof : {0, 1}
        Of the printed standard deviations; 0 only beside the study's.

    Returns
    -------
    Table
    """
    columns = [("accuracy", "value"), ("accuracy", "gain"), ("repair_rate", "value")]
    return _by_subject(data, "Fixing effectiveness", columns, ddof)


def properties(data: Data, *, asr: str = "asr", aaod: str = "aaod", ddof: int = 1) -> Table:
    """Return the layout of the study's table 5: robustness, fairness and negative flips.

    Parameters
    ----------
    data : DataFrame or Summary
    asr, aaod : str
        Ids of the kinds of the metrics; AAOD is left out on subjects where nobody has it.
    ddof : {0, 1}

    Returns
    -------
    Table
    """
    columns = [(asr, "value"), (asr, "gain"), (aaod, "value"), (aaod, "gain"), ("nfr", "value")]
    return _by_subject(data, "Robustness, fairness and backward compatibility", columns, ddof)


def times(data: Data) -> Table:
    """Return the layout of the study's table 6: mean time by subject.

    Parameters
    ----------
    data : DataFrame or Summary

    Returns
    -------
    Table
    """
    table = _by_subject(
        data, "Average time cost", [("seconds", "value")], ddof=1, show=_show_time, short=True
    )
    heads = (*table.columns[:2], *table.groups[2:])
    notes = (*table.notes, STATUS_NOTE)
    return Table(table.title, (), heads, table.rows, notes, table.sections)


def groups(
    data: Data,
    *,
    mode: Mode = "standard",
    metrics: Sequence[str] = ("accuracy", "repair_rate", "asr", "aaod", "nfr", "seconds"),
) -> Table:
    """Return the layout of the study's table 4: letters by metric.

    Parameters
    ----------
    data : DataFrame or Summary
    mode : {"standard", "study"}
        Compact letter display, or the study's group letters.
    metrics : sequence of str
        Those without rows are left out.

    Returns
    -------
    Table
    """
    frame = data.frame if isinstance(data, Summary) else data
    metrics = [metric for metric in metrics if (frame["metric"] == metric).any()]
    compared = {metric: compare(data, metric, mode=mode) for metric in metrics}
    entrants = _entrants(describe(data))
    rows = [
        (Cell(category), Cell(label), *(Cell(_letters_of(c, name)) for c in compared.values()))
        for name, category, label in entrants
    ]
    heads = tuple(find_metric(metric).title for metric in metrics)
    notes = dict.fromkeys(line for c in compared.values() for line in c.notes if "letter" in line)
    title = "Groups of entrants that do not differ significantly"
    sections = tuple(category for _, category, _ in entrants)
    return Table(title, (), ("category", "approach", *heads), tuple(rows), tuple(notes), sections)


def _letters_of(comparison: Comparison, entrant: str) -> str:
    known = comparison.order.set_index("entrant")["letters"]
    return str(known.get(entrant, "")) or "-"


def beside_study(data: Data, *, asr: str = "asr") -> Table:
    """Return a table with a row per entrant and subject, and the study's row below.

    Every subject's row shows what was measured; below the rows of an entrant stands the study's,
    for each of its data sets that was measured too. A value is marked where it lies on the other
    side of the original model than the study's, or further from it than three standard deviations
    of both together.

    Parameters
    ----------
    data : DataFrame or Summary
    asr : str
        Id of the kind of attack success rate.

    Returns
    -------
    Table
    """
    metrics = ("accuracy", "repair_rate", "nfr", asr, "seconds")
    ours = describe(data).set_index(["entrant", "subject", "metric"], drop=False)
    theirs = describe(published()).set_index(["entrant", "subject", "metric"], drop=False)
    marks = _deviations(beside_published(data))
    rows, sections = [], []
    for name, category, label in _entrants(ours.reset_index(drop=True)):
        about = ours.loc[name]
        abbreviation = ABBREVIATIONS.get(about["approach"].iloc[0], name)
        subjects = list(about["subject"].drop_duplicates())
        lines = [(ours, (name, subject), subject, subject) for subject in subjects]
        lines += (
            [
                (theirs, (abbreviation, SUBJECTS[subject]), f"study, {SUBJECTS[subject]}", None)
                for subject in subjects
                if SUBJECTS.get(subject) in theirs.loc[abbreviation].index
            ]
            if abbreviation in theirs.index
            else []
        )
        for table, key, title, measured in lines:
            row = [Cell(category), Cell(label), Cell(title)]
            for metric in metrics:
                printed = metric if measured else PUBLISHED_AS.get(metric, metric)
                text = _beside_cell(table, (*key, printed))
                row.append(Cell(text + marks.get((name, measured, metric), "")))
            rows.append(tuple(row))
            sections.append(category)
    return Table(
        title="Measured beside the published study",
        groups=(),
        columns=("category", "approach", "subject", *(find_metric(m).title for m in metrics)),
        rows=tuple(rows),
        notes=(BESIDE_NOTE,),
        sections=tuple(sections),
    )


def _beside_cell(table: pd.DataFrame, key: tuple[str, str, str]) -> str:
    if key not in table.index:
        return "-"
    cell = table.loc[key]
    if cell["status"] != "OK":
        return str(cell["status"])
    metric = find_metric(key[2])
    text = _show_time(cell, "value") if metric.id == "seconds" else _show(cell, "value")
    if metric.scoring != "change" or math.isnan(cell["original"]):
        return text
    return f"{cell['original'] * metric.shown:.{metric.decimals}f} -> {text}"


def _deviations(beside: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Return the marks of the cells that disagree with the study's, by entrant, subject, metric."""
    marks = {}
    for cell in beside.itertuples():
        status = cell.status != cell.published_status
        far = abs(cell.deviation_in_std) > FAR
        mark = " (s)" if status or cell.same_sign is False else ""
        marks[cell.entrant, cell.subject, cell.metric] = mark + (" (d)" if far else "")
    return marks


def _by_subject(
    data: Data,
    title: str,
    columns: Sequence[Column],
    ddof: int,
    show: Callable[[pd.Series, str], str] | None = None,
    short: bool = False,
) -> Table:
    cells = describe(data, ddof=ddof)
    wanted = {metric for metric, _ in columns}
    cells = cells[cells["metric"].isin(wanted)]
    if cells.empty:
        raise StatsError(f"the data have none of the metrics {', '.join(sorted(wanted))}.")
    layout = [
        (subject, column)
        for subject in cells["subject"].drop_duplicates()
        for column in columns
        if _has_column(cells, subject, column[0])
    ]
    entrants = _entrants(cells)
    by_key = cells.set_index(["entrant", "subject", "metric"], drop=False)
    marks = {key: _marks(cells, *key) for key in layout}
    show = show or _show
    rows = []
    for name, category, label in entrants:
        row = [Cell(category), Cell(label)]
        for subject, members in groupby(layout, key=lambda entry: entry[0]):
            here = [column for _, column in members]
            row += _subject_cells(by_key, marks, name, subject, here, show, short)
        rows.append(tuple(row))
    return Table(
        title=title,
        groups=("", "", *(subject for subject, _ in layout)),
        columns=("category", "approach", *(_head(column) for _, column in layout)),
        rows=tuple(rows),
        notes=(MARKS_NOTE,),
        sections=tuple(category for _, category, _ in entrants),
    )


def _subject_cells(
    by_key: pd.DataFrame,
    marks: Mapping[tuple, Mapping[str, str]],
    name: str,
    subject: str,
    columns: Sequence[Column],
    show: Callable[[pd.Series, str], str],
    short: bool,
) -> list[Cell]:
    """Return the cells of an entrant on a subject; one outcome over all where there is no value."""
    found = {
        metric: by_key.loc[(name, subject, metric)]
        for metric, _ in columns
        if (name, subject, metric) in by_key.index
    }
    if not found:
        return [Cell("-", span=len(columns))]
    statuses = {cell["status"] for cell in found.values()}
    if len(statuses) == 1 and statuses != {"OK"}:
        status = str(statuses.pop())
        return [Cell(STATUS.get(status, status) if short else status, span=len(columns))]
    return [
        Cell(show(found[metric], kind), marks[subject, (metric, kind)].get(name, ""))
        if metric in found
        else Cell("-")
        for metric, kind in columns
    ]


def _has_column(cells: pd.DataFrame, subject: str, metric: str) -> bool:
    here = cells[(cells["subject"] == subject) & (cells["metric"] == metric)]
    return bool((here["status"] == "OK").any())


def _entrants(cells: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return entrant, category and label of the rows: model, layer, neuron, then as in the data."""
    about = cells.drop_duplicates("entrant")
    known = [c for c in about["category"].drop_duplicates() if c not in CATEGORIES]
    position = {category: i for i, category in enumerate((*CATEGORIES, *known))}
    rows = [
        (row.entrant, row.category, ABBREVIATIONS.get(row.entrant, row.entrant))
        for row in about.itertuples()
    ]
    return sorted(rows, key=lambda row: position[row[1]])


def _head(column: Column) -> str:
    metric, kind = column
    title = find_metric(metric).title
    return f"↑{title}" if kind == "gain" else title


def _marks(cells: pd.DataFrame, subject: str, column: Column) -> dict[str, str]:
    """Return the marks of the three best and worst; none where these overlap."""
    metric, kind = column
    here = cells[
        (cells["subject"] == subject) & (cells["metric"] == metric) & (cells["status"] == "OK")
    ].set_index("entrant")
    sign = 1 if kind == "gain" else find_metric(metric).sign
    values = (sign * here["gain" if kind == "gain" else "mean"]).dropna().round(12)
    count = min(MARKED, len(values) // 2)
    best = values.rank(ascending=False, method="min") <= count
    worst = values.rank(ascending=True, method="min") <= count
    return {name: "top" if best[name] else "bottom" for name in values.index[best ^ worst]}


def _show(cell: pd.Series, kind: str) -> str:
    if cell["status"] != "OK":
        return STATUS.get(cell["status"], str(cell["status"]))
    if kind == "gain":
        return "-" if math.isnan(cell["gain"]) else signless(f"{cell['gain']:.2f}")
    metric = find_metric(cell["metric"])
    mean = f"{metric.shown * cell['mean']:.{metric.decimals}f}"
    if math.isnan(cell["std"]):
        return mean
    return f"{mean} ± {metric.shown * cell['std']:.{metric.spread_decimals}f}"


def signless(text: str) -> str:
    """Return the number without the sign of a negative zero."""
    return text.removeprefix("-") if float(text) == 0 else text


def _show_time(cell: pd.Series, kind: str) -> str:
    if cell["status"] != "OK":
        return STATUS.get(cell["status"], str(cell["status"]))
    return duration(cell["mean"])


def duration(seconds: float) -> str:
    """Return ``13h46m`` from an hour on, ``09m05s`` below, ``0.4s`` below ten seconds."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60:02d}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:02d}h{minutes % 60:02d}m"


# -- comparisons -----------------------------------------------------------------------------------


def ranking_table(comparison: Comparison) -> Table:
    """Return the entrants of a comparison from best to worst.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Table
    """
    rows = [
        (
            Cell(f"{row.rank:.0f}"),
            Cell(row.entrant),
            Cell(row.letters or "-"),
            Cell(_number(row.score)),
            Cell(_interval(row.low, row.high)),
            Cell(str(row.subjects)),
            Cell(_rank(row.complete_rank)),
            Cell(f"{row.fixed}/{row.attempted}"),
        )
        for row in comparison.order.itertuples()
    ]
    return Table(
        title=f"{find_metric(comparison.metric).title} in {comparison.unit}, higher is better",
        groups=(),
        columns=(
            "rank",
            "approach",
            "letters",
            "score",
            "95 % interval",
            "subjects",
            "rank on shared subjects",
            "fixed",
        ),
        rows=tuple(rows),
    )


def pairs_table(comparison: Comparison) -> Table:
    """Return the pairs of a comparison: difference, subjects won and lost, new subjects.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Table
    """
    rows = [
        (
            Cell(f"{row.a} - {row.b}"),
            Cell(_number(row.delta)),
            Cell(_interval(row.low, row.high)),
            Cell(_p(row.p)),
            Cell(_p(row.p_adjusted)),
            Cell("yes" if row.significant else ("?" if pd.isna(row.p) else "no")),
            Cell(f"{row.won} / {row.lost} / {row.tied}"),
            Cell(_interval(row.new_low, row.new_high)),
            Cell(_number(row.g)),
        )
        for row in comparison.pairs.itertuples()
    ]
    return Table(
        title=f"Pairs: {find_metric(comparison.metric).title} in {comparison.unit}",
        groups=(),
        columns=(
            "approach",
            "difference",
            "95 % interval",
            "p",
            "adjusted p",
            "significant",
            "won / lost / tied",
            "interval on new subjects",
            "Hedges g",
        ),
        rows=tuple(rows),
    )


def matrix_table(comparison: Comparison) -> Table:
    """Return the matrix of adjusted p values; ``?`` where a pair is untestable.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Table
    """
    names = list(comparison.matrix)
    values = comparison.matrix.to_numpy()
    rows = [
        (Cell(name), *(Cell("" if i == j else _p(values[i, j])) for j in range(len(names))))
        for i, name in enumerate(names)
    ]
    title = f"Adjusted p values: {find_metric(comparison.metric).title}"
    return Table(title, (), ("approach", *names), tuple(rows))


def _number(value: float) -> str:
    return "-" if pd.isna(value) else signless(f"{value:.2f}")


def _interval(low: float, high: float) -> str:
    return "-" if pd.isna(low) or pd.isna(high) else f"{_number(low)} to {_number(high)}"


def _p(value: float) -> str:
    if pd.isna(value):
        return "?"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _rank(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"


# -- writing ---------------------------------------------------------------------------------------

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "<": r"$<$",
    ">": r"$>$",
}


def _escape(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.mark:
        text = rf"\textbf{{{text}}}" if cell.mark == "top" else rf"\underline{{{text}}}"
    return rf"\multicolumn{{{cell.span}}}{{c}}{{{text}}}" if cell.span > 1 else text


def _markdown_cells(row: Sequence[Cell]) -> list[str]:
    wraps = {"": "{}", "top": "**{}**", "bottom": "<u>{}</u>"}
    return [
        text
        for cell in row
        for text in (wraps[cell.mark].format(_plain(cell.text)), *[""] * (cell.span - 1))
    ]


def _plain(text: str) -> str:
    return text.replace("|", r"\|")


def _markdown_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"
