"""What the command prints: rich tables on a terminal, the same as plain text elsewhere."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfix_core.approach import ApproachInfo, Outcome
from modelfix_core.record import Record
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from modelfix_core.approach import Evidence
    from modelfix_core.subject import SubjectCard

    from modelfix.auto import Search
    from modelfix.catalogue import Catalogue
    from modelfix.cells import Cell
    from modelfix.doctor import Finding
    from modelfix.explanation import Explanation
    from modelfix.gate import Slice, Verdict

COLOURS = {
    Outcome.FIXED: "green",
    Outcome.CORRUPTED: "red",
    Outcome.FAILURE: "red",
    Outcome.UNADAPTABLE: "yellow",
}
STATES = {
    "ready": "green",
    "can be prepared": "cyan",
    "needs download": "yellow",
    "needs manual download": "red",
}
SHOWN = 8  # inputs listed per line
NOTHING = "-"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _table(title: str | None, columns: Iterable[str], right: Iterable[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    right = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def approaches(catalogue: "Catalogue") -> None:
    """Print one line per approach."""
    table = _table(None, ["approach", "", "category", "framework", "needs", "summary"])
    for info in catalogue.infos.values():
        needs = ", ".join(sorted(info.needs))
        table.add_row(
            info.name, info.abbreviation, info.category, info.framework, needs, info.summary
        )
    _console().print(table)


def subjects(rows: Sequence[dict], folder: Path) -> None:
    """Print one line per subject."""
    table = _table(None, ["subject", "state", "about"])
    for row in rows:
        table.add_row(row["name"], f"[{STATES[row['state']]}]{row['state']}", row["about"])
    console = _console()
    console.print(table)
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row["state"].startswith("needs"):
            missing.setdefault(row["how"], []).append(row["name"])
    console.print()
    for how, names in missing.items():
        console.print(f"{', '.join(names)}: {how}", highlight=False, markup=False)
    console.print(f"Prepared subjects are kept in {folder}", highlight=False)


def applicability(rows: Sequence[dict], subject: str) -> None:
    """Print which approaches can be applied to a subject, and why not."""
    table = _table(f"Approaches for {subject}", ["approach", "category", "applicable", "reason"])
    words = {True: "[green]yes", False: "[yellow]UNADAPTABLE", None: "unknown"}
    for row in rows:
        table.add_row(
            row["approach"], row["category"], words[row["applicable"]], row["reason"] or ""
        )
    _console().print(table)


def findings(found: Sequence["Finding"]) -> None:
    """Print what the doctor saw."""
    table = _table(None, ["", "what", "detail"])
    for finding in found:
        table.add_row("[green]ok" if finding.ok else "[red]problem", finding.what, finding.detail)
    _console().print(table)


def explanation(found: "Explanation", most: int, drawn: Sequence[Path]) -> None:
    """Print what was blamed and changed, the evidence, and where the pictures are."""
    console, record = _console(), found.record
    reason = f" ({record.reason})" if record.reason else ""
    console.print(
        f"[bold]{record.entrant.approach}[/] on {record.subject}, repetition "
        f"{record.repetition}: [{COLOURS[record.outcome]}]{record.outcome}[/]{reason}"
    )
    for table in (_blamed(found, most), _changes(found)):
        console.print()
        console.print(table)
    if found.new_nodes:
        console.print(f"The fixed model has {found.new_nodes} more nodes than the original.")
    for evidence in found.evidence:
        console.print()
        console.print(_evidence(evidence, most))
    if drawn:
        print()
    for path in drawn:
        print(f"picture: {path}")


def _blamed(found: "Explanation", most: int) -> Table | str:
    blame = found.localisation
    if blame is None or not len(blame):
        return "The approach blamed no weights, neurons or layers."
    title = f"Blamed {blame.kind}s: {len(blame)}"
    if len(blame) > most:
        title += f", the first {most}"
    columns = ["rank", "layer", "index", "score", "before", "after"]
    table = _table(title, columns[: 6 if blame.kind == "weight" else 4], [*columns[2:], "rank"])
    for part in found.blamed(most):
        cells = [str(part.rank), part.layer, part.index, f"{part.score:.4g}"]
        if blame.kind == "weight":
            cells += [_number(part.before), _number(part.after)]
        table.add_row(*cells)
    return table


def _changes(found: "Explanation") -> Table | str:
    if found.fixed is None:
        return "There is no fixed model."
    if not found.changes:
        return "No weight of the original model was changed."
    columns = ["layer", "kind", "values", "changed", "relative change", "largest change"]
    table = _table("Changed layers", columns, columns[2:])
    for change in found.changes:
        table.add_row(
            change.layer,
            change.kind,
            f"{change.weights:,}",
            f"{change.changed:,}",
            f"{change.relative:.2%}",
            f"{change.largest:.4g}",
        )
    return table


def _evidence(evidence: "Evidence", most: int) -> Group:
    rows = len(next(iter(evidence.columns.values())))
    title = f"{evidence.name}: {evidence.summary}"
    if rows > most:
        title += f" ({rows} rows, the first {most})"
    numbers = [
        name
        for name, column in evidence.columns.items()
        if len(column) and isinstance(column[0], int | float)
    ]
    table = _table(None, evidence.columns, numbers)
    for values in list(zip(*evidence.columns.values(), strict=True))[:most]:
        table.add_row(*(_number(v) if isinstance(v, float) else str(v) for v in values))
    return Group(Text(title, style="italic"), table)  # a table's own title wraps at its width


def blame(rows: Sequence[dict], card: "SubjectCard") -> None:
    """Print how well each approach found the planted fault."""
    cuts = sorted({k for row in rows if row["score"] for k in row["score"]["precision"]})
    columns = ["approach", "outcome", "blames", "blamed", "possible", "planted", "found"]
    columns += ["best rank", "mean rank", *(f"precision@{k}" for k in cuts), "RR"]
    table = _table(card.summary, columns, columns[3:])
    for row in rows:
        score = row["score"]
        if score is None:
            table.add_row(row["approach"], row["outcome"], row["reason"] or NOTHING)
            continue
        table.add_row(
            row["approach"],
            row["outcome"],
            f"{score['kind']}s",
            *(f"{score[key]:,}" for key in ("blamed", "possible", "planted", "found")),
            *(f"{score[key]:,.1f}" for key in ("first_rank", "mean_rank")),
            *(f"{score['precision'][k]:.2f}" if k in score["precision"] else NOTHING for k in cuts),
            NOTHING if row["repair_rate"] is None else f"{row['repair_rate']:.1%}",
        )
    _console().print(table)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def verdict(
    result: "Verdict", old: str, new: str, broken: Sequence[str], written: Sequence[Path] = ()
) -> None:
    """Print the release gate's decision, what is `broken`, and the files."""
    console = _console()
    table = _table(f"{old} -> {new} on {result.inputs} inputs", ["metric", "value"], ["value"])
    table.add_row("accuracy", f"{result.accuracy_before:.2%} -> {result.accuracy_after:.2%}")
    table.add_row("repair rate (RR)", _percent(result.repair_rate))
    table.add_row("negative flip rate (NFR)", _percent(result.nfr))
    if result.aaod is not None:
        table.add_row("odds difference (AAOD)", _show(result.aaod))
    table.add_row("newly fixed", str(len(result.newly_fixed)))
    table.add_row("newly broken", str(len(result.newly_broken)))
    console.print(table)
    if broken:
        console.print(f"newly broken inputs: {_some(broken)}", highlight=False)
    worse = sorted((part for part in result.slices if part.loss > 0), key=lambda part: -part.loss)
    if worse:
        console.print(_slices(worse[:SHOWN]))
    for reason in result.reasons:
        console.print(f"[red]refused:[/] {reason}")
    if result.passed:
        console.print("[green]passed[/]")
    for path in written:
        print(f"{'picture' if path.suffix == '.png' else 'report'}: {_from_here(path)}")


def search(found: "Search", left_out: Sequence[str], subject: str) -> None:
    """Print what was tried, why each was rejected, and which model was chosen."""
    columns = ["approach", "outcome", "accuracy", "RR", "NFR", "AAOD", "seconds", "verdict"]
    table = _table(
        f"Approaches tried on {subject}, judged on the validation split", columns, columns[2:-1]
    )
    for trial in found.trials:
        verdict, record = trial.verdict, trial.record
        known = [NOTHING] * 4
        if verdict is not None:
            known = [
                _show((verdict.accuracy_before, verdict.accuracy_after)),
                _percent(verdict.repair_rate),
                _percent(verdict.nfr),
                NOTHING if verdict.aaod is None else _show(verdict.aaod),
            ]
        passed = "[green]chosen" if trial is found.best else "passes"
        table.add_row(
            trial.approach,
            NOTHING if record is None else f"[{COLOURS[record.outcome]}]{record.outcome}",
            *known,
            NOTHING if record is None else f"{record.seconds.get('fixing', 0.0):.1f}",
            passed if trial.rejected is None else Text(trial.rejected),
        )
    console = _console()
    console.print(table)
    if left_out:
        console.print("\nnot tried:")
    for line in left_out:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    print()
    if found.best is None:
        console.print(f"[red]No approach gave a model of {subject} that passes.[/]")


def _slices(parts: Sequence["Slice"]) -> Table:
    columns = ["where it got worse", "inputs", "accuracy", "newly fixed", "newly broken"]
    table = _table(None, columns, columns[1:])
    for part in parts:
        accuracy = _show((part.accuracy_before, part.accuracy_after))
        counts = (part.inputs, accuracy, part.newly_fixed, part.newly_broken)
        table.add_row(f"{part.kind} {part.name}", *map(str, counts))
    return table


def comparison(cells: Sequence["Cell"], info: ApproachInfo | None = None) -> None:
    """Print one line per cell, their mean, and where the files are."""
    console = _console()
    title = None
    if info is not None:
        title = f"{info.title} ({info.category}-level) on {cells[0].record.subject}"
    columns = [name for name, _ in COLUMNS]
    table = _table(title, columns, set(columns) - {"outcome"})
    for cell in cells:
        table.add_row(*(_show(column(cell.record)) for _, column in COLUMNS))
    if len(cells) > 1 and not (info is not None and info.deterministic):
        table.add_section()
        table.add_row(*_means(cells))
    console.print(table)
    console.print()
    for cell in cells:
        _print_files(console, cell)


def side_effects(columns: Mapping[str, Sequence[Record]], written: Sequence[Path] = ()) -> None:
    """Print one line per method of post-processing, means over the repetitions, and the files."""
    from modelfix_metrics.post_processing import describe

    first = next(iter(columns.values()))[0]
    names = [name for name, _ in COLUMNS[2:-1]]
    title = f"{first.entrant.approach} on {first.subject}, with and without post-processing"
    table = _table(title, ["method", "outcome", *names, "fitted"], names)
    for method, records in columns.items():
        outcomes = dict.fromkeys(str(record.outcome) for record in records)
        shown = [_mean_shown([column(record) for record in records]) for _, column in COLUMNS[2:-1]]
        fitted = "; ".join(dict.fromkeys(filter(None, map(describe, records))))
        table.add_row(method, ", ".join(outcomes), *shown, fitted)
    console = _console()
    console.print(table)
    for method, records in columns.items():
        for record in records:
            notes = [*record.provenance.get("post_processing", {}).get("warnings", [])]
            notes += [record.reason] if record.reason else []
            for note in notes:
                console.print(f"[yellow]note:[/] {method}: {note}", highlight=False)
    print()
    for path in written:
        print(f"{'picture' if path.suffix == '.png' else 'record'}: {_from_here(path)}")


def _mean_shown(values: Sequence[tuple[float | None, ...]]) -> str:
    """Return the means of every place over the repetitions, as `_show` does."""
    means = []
    for place in zip(*values, strict=True):
        known = [value for value in place if value is not None]
        means.append(statistics.mean(known) if known else None)
    return _show(tuple(means))


def _print_files(console: Console, cell: "Cell") -> None:
    record = cell.record
    if record.reason:
        console.print(f"repetition {record.repetition}: {record.reason}", highlight=False)
    reused = " (complete already, reused)" if cell.reused else ""
    folder = _from_here(cell.folder)
    console.print(f"record: {folder / 'record.json'}{reused}", soft_wrap=True, highlight=False)
    for file, what in (("fixed.onnx", "fixed model"), ("predictions.parquet", "predictions")):
        if (cell.folder / file).exists():
            console.print(f"{what}: {folder / file}", soft_wrap=True, highlight=False)
    for value in (record.evaluation or {}).get("metrics", {}).values():
        for warning in value["warnings"]:
            console.print(f"[yellow]note:[/] {value['metric']}: {warning}", highlight=False)


def _from_here(path: Path) -> Path:
    """Return `path` as seen from the working directory, where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# -- the columns of a comparison -------------------------------------------------------------------

Shown = str | tuple[float | None, ...]


def _metric(record: Record, name: str, model: str = "metrics") -> float | None:
    """Return a value of the fixed model (``metrics``) or of the ``original`` one."""
    return (record.evaluation or {}).get(model, {}).get(name, {}).get("value")


def _before_after(name: str) -> Callable[[Record], Shown]:
    return lambda record: (_metric(record, name, "original"), _metric(record, name))


def _after(name: str) -> Callable[[Record], Shown]:
    return lambda record: (_metric(record, name),)


COLUMNS: list[tuple[str, Callable[[Record], Any]]] = [
    ("repetition", lambda record: str(record.repetition)),
    ("outcome", lambda record: f"[{COLOURS[record.outcome]}]{record.outcome}"),
    ("accuracy", _before_after("accuracy")),
    ("RR", _after("repair_rate")),
    ("NFR", _after("nfr")),
    ("ASR", _before_after("asr")),
    ("AAOD", _before_after("aaod")),
    ("seconds", lambda record: f"{record.seconds.get('fixing', 0.0):.1f}"),
]


def _show(value: Shown) -> str:
    if isinstance(value, str):
        return value
    if all(part is None for part in value):
        return NOTHING
    return " -> ".join(_percent(part) for part in value)


def _percent(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.2%}"


def _means(cells: Sequence["Cell"]) -> list[str]:
    row = []
    for name, column in COLUMNS:
        values = [column(cell.record) for cell in cells]
        if name == "repetition":
            row.append("mean ± std")
        elif isinstance(values[0], str):
            row.append("")
        else:
            row.append(_mean_of([value[-1] for value in values]))
    return row


def _mean_of(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return NOTHING
    return f"{statistics.mean(known):.2%} ± {statistics.stdev(known):.2%}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
