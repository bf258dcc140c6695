"""Records as the data frame that the statistics take."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfix_core.approach import Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.record import FILE, Record

from modelfix.catalogue import Catalogue

if TYPE_CHECKING:
    import pandas as pd

PLANTED = "-planted-"  # part of the name of a subject with a planted fault
TIMED = "fixing"  # the part of a record's seconds that the study calls time cost


@dataclass(frozen=True)
class Found:
    """A record and where it lies."""

    folder: Path
    record: Record

    @property
    def entrant(self) -> str:
        """Name of the entrant: its folder between subject and repetition."""
        return self.folder.parent.name


def find(places: Iterable[Path]) -> tuple[list[Found], list[str]]:
    """Return the records in and below `places`, by path, and a sentence for each damaged one.

    Raises
    ------
    ModelfixError
        If a place does not exist.
    """
    found: dict[Path, Found] = {}
    broken = []
    for place in places:
        if not Path(place).exists():
            raise ModelfixError(f"{place}: does not exist; give a folder of records (RUNS).")
        for path in sorted(Path(place).rglob(FILE)):
            folder = path.parent.absolute()
            if folder in found or folder.name.endswith(".partial"):
                continue
            try:
                found[folder] = Found(folder, Record.load(folder))
            except ModelfixError as error:
                broken.append(str(error))
    return list(found.values()), broken


def choose(
    found: Sequence[Found], subjects: Sequence[str] = (), approaches: Sequence[str] = ()
) -> list[Found]:
    """Return the records of some subjects and approaches (or entrants); empty means all.

    ``arachne`` is the entrant of that name, the default preset; ``AR`` stands for every entrant of
    the approach.

    Raises
    ------
    ModelfixError
        If nothing is left, or a name occurs in no record.
    """
    chosen = list(found)
    for what, names, read in (
        ("subject", subjects, lambda item: {item.record.subject}),
        ("approach", approaches, _names),
    ):
        known = set().union(*(read(item) for item in found)) if found else set()
        unknown = sorted({name for name in names if name not in known})
        if unknown:
            raise ModelfixError(
                f"no record is of the {what} {', '.join(unknown)}; there are "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        if names:
            chosen = [item for item in chosen if read(item) & set(names)]
    entrants = {item.entrant for item in found} & set(approaches)
    abbreviated = set(approaches) - entrants
    if entrants:
        chosen = [item for item in chosen if item.entrant in entrants or _names(item) & abbreviated]
    if not chosen:
        raise ModelfixError("there are no records here; run `modelfix fix` first.")
    return chosen


def without_planted(found: Sequence[Found], named: Collection[str] = ()) -> list[Found]:
    """Return the records but those of planted faults, which no training made; `named` ones stay."""
    return [
        item for item in found if item.record.subject in named or PLANTED not in item.record.subject
    ]


def _names(item: Found) -> set[str]:
    entrant = item.record.entrant
    return {entrant.approach, entrant.abbreviation, item.entrant}


def frame(found: Sequence[Found]) -> "pd.DataFrame":
    """Return one row per subject, entrant, repetition and metric, as `modelfix_stats` takes it.

    A record whose outcome is not FIXED has rows without values. FIXED records that were not
    evaluated have their seconds only.

    Raises
    ------
    ModelfixError
        If two records are of the same entrant, subject and repetition.
    """
    import pandas as pd  # here, because most who look for records need no frame of them

    infos = Catalogue().infos
    rows: list[dict[str, Any]] = []
    seen: dict[tuple, Path] = {}
    for item in found:
        record = item.record
        key = (record.subject, item.entrant, record.repetition)
        if key in seen:
            raise ModelfixError(
                f"{item.folder} and {seen[key]} are records of the same cell; give one of them."
            )
        seen[key] = item.folder
        info = infos.get(record.entrant.approach)
        about = {
            "subject": record.subject,
            "entrant": item.entrant,
            "approach": record.entrant.approach,
            "category": record.entrant.category,
            "repetition": record.repetition,
            "deterministic": info is not None and info.deterministic,
            "outcome": str(record.outcome),
            "reason": record.reason,
        }
        rows += [{**about, **values} for values in _values(record)]
    return pd.DataFrame(rows)


def _values(record: Record) -> Iterable[dict[str, Any]]:
    fixed = record.outcome is Outcome.FIXED
    yield {"metric": "seconds", "value": record.seconds.get(TIMED) if fixed else None}
    evaluation = record.evaluation or {}
    metrics = evaluation.get("metrics", {})
    if not metrics and not fixed:
        # Without a fixed model nothing was evaluated; the cell still stands in every table.
        metrics = {name: {} for name in ("accuracy", "repair_rate", "nfr", "asr")}
    comparisons = evaluation.get("comparisons", {})
    for name, value in metrics.items():
        if fixed and value.get("value") is None:
            continue
        yield {
            "metric": name,
            "value": value.get("value") if fixed else None,
            "numerator": value.get("numerator"),
            "denominator": value.get("denominator"),
            "definition": value.get("definition"),
            "original": comparisons.get(name, {}).get("before") if fixed else None,
        }
