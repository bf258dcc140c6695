"""The HTML report of records: what `modelfix_stats.report` shows, read from record folders."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import write_text
from modelfix_core.subject import Subject
from modelfix_metrics.decisions import predicted
from modelfix_metrics.predictions import FILE as PREDICTIONS
from modelfix_metrics.predictions import Predictions
from modelfix_metrics.value import DEFINITIONS
from modelfix_stats import StatsError
from modelfix_stats.report import CellPage, Content, Picture, Point, Sheet, build
from modelfix_stats.tables import Cell, Table
from PIL import Image

from modelfix import records
from modelfix.explanation import subject_folder
from modelfix.fix_card import class_name, value_text, versions_text
from modelfix.records import Found

CANDIDATES = "candidates.jsonl"
SHOWN = 8  # pictures of newly right and of newly wrong inputs per cell
SIDE = 96  # pixels of a picture's longer side at most
LOSSLESS = 32  # up to this many pixels pictures are kept exactly
NOTHING = "-"


def write(found: Sequence[Found], broken: Sequence[str], path: Path) -> None:
    """Write the report of some records as one HTML file, atomically.

    Parameters
    ----------
    found : sequence of Found
    broken : sequence of str
        Sentences on records that cannot be read; the report shows them.
    path : Path

    Raises
    ------
    ModelfixError
        If the records cannot stand in one report: two of one cell, or none with results.
    """
    write_text(path, html(found, broken))


def html(found: Sequence[Found], broken: Sequence[str] = ()) -> str:
    """Return the report as text; see `write`."""
    try:
        return build(content(found, broken))
    except StatsError as error:
        raise ModelfixError(f"these records give no report: {error}") from error


def content(found: Sequence[Found], broken: Sequence[str] = ()) -> Content:
    """Return what the report of some records shows."""
    sources = _Sources()
    pages = [_page(item, sources) for item in found]
    return Content(
        frame=records.frame(found),
        title=_title(found),
        problems=[*broken, *_unevaluated(found), *sources.problems],
        pages=pages,
        images=sources.images,
        definitions=[_definitions(found)],
        provenance=[_subjects(found, sources), _entrants(found), _records(found)],
    )


def _title(found: Sequence[Found]) -> str:
    subjects = sorted({item.record.subject for item in found})
    what = subjects[0] if len(subjects) == 1 else f"{len(subjects)} subjects"
    return f"Model fixing report: {what}"


def _unevaluated(found: Sequence[Found]) -> list[str]:
    waiting = [
        _name(item)
        for item in found
        if item.record.outcome is Outcome.FIXED and item.record.evaluation is None
    ]
    if not waiting:
        return []
    return [f"Not evaluated, which `modelfix evaluate` does: {', '.join(waiting)}."]


def _name(item: Found) -> str:
    return f"{item.record.subject}/{item.entrant}/{item.record.repetition}"


# -- subjects and their images ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A prepared subject with its test images."""

    subject: Subject

    @cached_property
    def test(self) -> Any:
        """The test split."""
        return self.subject.dataset(("test",))["test"]

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each sample id stands in the test split."""
        return {int(sample): place for place, sample in enumerate(self.test.ids)}


@dataclass
class _Sources:
    """Subjects by folder, each read once, and the pictures taken from them, each kept once."""

    images: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    known: dict[Path, _Source | None] = field(default_factory=dict)

    def of(self, item: Found) -> _Source | None:
        """Return the subject of a record; None, with a problem noted once, if it is not there."""
        try:
            folder = subject_folder(item.folder, item.record)
        except ModelfixError as error:
            self._note(error)
            return None
        if folder not in self.known:
            try:
                self.known[folder] = _Source(Subject.load(folder))
            except ModelfixError as error:
                self.known[folder] = None
                self._note(error)
        return self.known[folder]

    def picture(self, source: _Source, sample: int) -> str | None:
        """Return the key of a test image; None if the split has no such sample."""
        place = source.places.get(sample)
        if place is None:
            return None
        key = f"{source.subject.card.name}/{sample}"
        if key not in self.images:
            self.images[key] = encoded(source.test.x[place])
        return key

    def _note(self, error: ModelfixError) -> None:
        sentence = f"no pictures: {error}"
        if sentence not in self.problems:
            self.problems.append(sentence)


def encoded(image: np.ndarray) -> str:
    """Return an image as a ``data:`` address: WebP, at most `SIDE` pixels wide and high.

    Parameters
    ----------
    image : ndarray, [C, H, W]
        uint8, or float in [0, 1]; one or three channels, of more the first three.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
    few = len(pixels) < 3
    picture = Image.fromarray(pixels[0] if few else pixels[:3].transpose(1, 2, 0)).convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="WEBP", lossless=max(picture.size) <= LOSSLESS, quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


# -- the page of a cell ----------------------------------------------------------------------------


def _page(item: Found, sources: _Sources) -> CellPage:
    record = item.record
    notes = [record.reason] if record.reason else []
    if record.outcome is Outcome.FIXED and record.evaluation is None:
        notes.append("Not evaluated on the test split; `modelfix evaluate` does it.")
    sheets: list[Sheet] = []
    if record.evaluation is not None:
        notes += _warnings(record.evaluation)
        try:
            sheets = _sheets(item, sources)
        except ModelfixError as error:
            notes.append(f"No pictures: {error}")
    curve, damage = candidates(item.folder / CANDIDATES)
    return CellPage(
        subject=record.subject,
        entrant=item.entrant,
        repetition=record.repetition,
        tables=[*_metrics(item), _facts(item)],
        sheets=sheets,
        curve=curve,
        original_accuracy=record.validation_accuracy.get("before"),
        notes=[*notes, *damage],
    )


def _warnings(evaluation: dict[str, Any]) -> list[str]:
    metrics = evaluation.get("metrics", {})
    return [
        f"{name}: {warning}" for name, value in metrics.items() for warning in value["warnings"]
    ]


def _sheets(item: Found, sources: _Sources) -> list[Sheet]:
    stored = Predictions.load(item.folder / PREDICTIONS)
    evaluation = item.record.evaluation or {}
    if stored.fixed != evaluation.get("hashes", {}).get("fixed"):
        raise ModelfixError(
            f"{item.folder / PREDICTIONS}: holds predictions of another fixed model than the "
            "record's; evaluate the record again."
        )
    source = sources.of(item)
    if source is None:
        return []
    classes = source.subject.card.classes
    said_before, said_after = predicted(stored.before), predicted(stored.after)
    right, right_after = said_before == stored.y, said_after == stored.y

    def sheet(title: str, chosen: np.ndarray, word: str, said: np.ndarray, better: bool) -> Sheet:
        rows = np.flatnonzero(chosen)
        pictures = []
        for row in rows[:SHOWN]:
            key = sources.picture(source, int(stored.ids[row]))
            lines = (
                class_name(classes, int(stored.y[row])),
                f"{word} {class_name(classes, int(said[row]))}",
                f"input {stored.ids[row]}",
            )
            pictures += [Picture(key, lines)] if key is not None else []
        some = f", {len(pictures)} shown" if len(pictures) < len(rows) else ""
        return Sheet(f"{title}: {len(rows)} of {len(stored)} test inputs{some}", pictures, better)

    return [
        sheet("Newly right", ~right & right_after, "was", said_before, True),
        sheet("Newly wrong", right & ~right_after, "now", said_after, False),
    ]


def candidates(path: Path) -> tuple[list[Point], list[str]]:
    """Return the candidates of ``candidates.jsonl``, and a sentence if lines cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError):
        return [], [f"{path}: cannot be read, so there is no curve of the candidates."]
    points, damaged = [], 0
    for position, line in enumerate(lines):
        try:
            entry = json.loads(line)
            step = _number(entry.get("step"))
        except (ValueError, AttributeError):
            damaged += 1
            continue
        accuracy, seconds = _number(entry.get("validation_accuracy")), _number(entry.get("seconds"))
        points.append(Point(position if step is None else step, accuracy, seconds))
    if not damaged:
        return points, []
    return points, [f"{path}: {damaged} of {len(lines)} lines are damaged and left out."]


def _number(value: Any) -> float | None:
    """Return a finite number, None for anything else that a file may hold."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return value if known else None


def _metrics(item: Found) -> list[Table]:
    evaluation = item.record.evaluation
    if evaluation is None:
        return []
    rows: list[tuple[str, ...]] = []
    absent: dict[str, list[str]] = {}
    for name, after in evaluation.get("metrics", {}).items():
        if after["value"] is None:
            absent.setdefault(f"{after['status']} ({after['reason']})", []).append(name)
            continue
        before = evaluation.get("original", {}).get(name)
        p_value = (evaluation.get("comparisons", {}).get(name) or {}).get("p_value")
        texts = (
            name,
            NOTHING if before is None else value_text(before),
            value_text(after),
            NOTHING if p_value is None else f"{p_value:.2g}",
            "higher" if after["direction"] == "high" else "lower",
            after["definition"],
        )
        rows.append(texts)
    notes = ["Counts and, in brackets, Wilson intervals at 95 %; p of the exact McNemar test."]
    notes += [f"{', '.join(names)}: {why}." for why, names in absent.items()]
    columns = ("metric", "original model", "fixed model", "p", "better", "definition")
    return [_table("Metrics on the test split", columns, rows, *notes)]


def _facts(item: Found) -> Table:
    record = item.record
    entrant, about = record.entrant, record.provenance
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items())
    rows = [
        ("approach", f"{entrant.approach} ({entrant.abbreviation}), {entrant.category}-level"),
        ("preset", entrant.preset),
        *((f"option {name}", str(value)) for name, value in entrant.config.items()),
        ("version", entrant.version),
        ("seed", str(record.seed)),
        ("candidates", str(record.candidates)),
        ("time", seconds or NOTHING),
        *((f"SHA-256, {name}", value) for name, value in record.hashes.items()),
        ("SHA-256, cell", record.cell),
        ("versions", versions_text(about.get("versions", {}))),
        ("machine", _machine(about)),
        ("record", f"runs/{_name(item)}"),
    ]
    return _table("How it was made", ("what", "value"), rows)


def _machine(about: dict[str, Any]) -> str:
    keys = ("platform", "cores", "device", "started")
    return ", ".join(f"{about[key]}" for key in keys if key in about) or NOTHING


# -- provenance and definitions --------------------------------------------------------------------


def _definitions(found: Sequence[Found]) -> Table:
    """Return the metrics' definitions, and which versions of them the records hold."""
    used: dict[str, dict[str, None]] = {}
    for item in found:
        for name, value in (item.record.evaluation or {}).get("metrics", {}).items():
            if value["value"] is not None:
                used.setdefault(name, {})[value["definition"]] = None
    rows = [
        (
            name,
            definition.formula,
            "higher" if definition.direction == "high" else "lower",
            "yes" if definition.has_gain else "no, relative to the original already",
            ", ".join(used.get(name, {})) or "not in these records",
        )
        for name, definition in DEFINITIONS.items()
    ]
    rows.append(("seconds", "duration of the fixing, without preparation and evaluation", "lower",
                 "no", "in every FIXED record"))  # fmt: skip
    columns = ("metric", "formula", "better", "compared with the original", "in these records")
    return _table("Metrics", columns, rows)


def _subjects(found: Sequence[Found], sources: _Sources) -> Table:
    rows = {}
    for item in found:
        source = None if item.record.subject in rows else sources.of(item)
        if source is None:
            continue
        card = source.subject.card
        rows[item.record.subject] = (
            card.name,
            card.dataset,
            card.architecture,
            str(len(card.classes)),
            ", ".join(f"{name} {size}" for name, size in card.splits.items()),
            str(card.provenance.get("licence") or "not stated"),
            str(card.provenance.get("origin") or "not stated"),
            str(card.seed),
            card.model_hash,
            card.data_hash,
        )
    columns = ["subject", "data", "model", "classes", "splits", "licence", "origin", "seed"]
    columns += ["SHA-256, model", "SHA-256, data"]
    return _table("Subjects", columns, rows.values())


def _entrants(found: Sequence[Found]) -> Table:
    rows: dict[str, tuple[str, ...]] = {}
    for item in found:
        entrant = item.record.entrant
        options = ", ".join(f"{name} {value}" for name, value in entrant.config.items())
        about = (item.entrant, entrant.approach, entrant.preset, options, entrant.version)
        rows.setdefault(json.dumps(about), about)
    columns = ("entrant", "approach", "preset", "options", "version")
    return _table("Entrants", columns, rows.values())


def _records(found: Sequence[Found]) -> Table:
    rows = [
        (
            item.record.subject,
            item.entrant,
            str(item.record.repetition),
            str(item.record.outcome),
            item.record.reason or "",
            str(item.record.seed),
            _machine(item.record.provenance),
            item.record.hashes.get("fixed", NOTHING)[:12],
            item.record.cell[:12],
        )
        for item in found
    ]
    columns = ["subject", "entrant", "repetition", "outcome", "reason", "seed", "machine"]
    columns += ["SHA-256, fixed model", "SHA-256, cell"]
    return _table("Records", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> Table:
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    return Table(title, (), tuple(columns), cells, notes)
